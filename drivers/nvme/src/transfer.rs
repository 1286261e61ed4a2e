//! Ranges of a namespace, written and read: a pattern, or a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Instant;

use nvme::{Data, NamespaceInfo, Operation, Request, Trouble, Troubles, Work};

use crate::Failure;
use crate::disk::Disk;
use crate::options::Options;

/// Bytes of one transfer, unless the options state a size.
pub(crate) const TRANSFER: u64 = 128 << 10;

/// Discards the data of reads.
pub(crate) struct Nothing;

impl Work for Nothing {
    type Error = Failure;

    fn prepare(&mut self, _: &Request, _: &mut Data) -> Result<(), Failure> {
        Ok(())
    }

    fn finish(&mut self, _: &Request, _: &Data) -> Result<(), Failure> {
        Ok(())
    }

    fn trouble(&mut self, trouble: &Trouble) {
        println!("nvme: {trouble}");
    }
}

/// A range that is written from a pattern or a file, or read and compared with the pattern or stored in the file.
struct Transfer {
    operation: Operation,
    /// Offset of the range in the namespace, and its length, in bytes.
    from: u64,
    length: u64,
    block_size: u64,
    seed: u64,
    file: Option<File>,
    /// Bytes to be copied to memory, or copied from it.
    bytes: Vec<u8>,
}

impl Work for Transfer {
    type Error = Failure;

    fn prepare(&mut self, request: &Request, memory: &mut Data) -> Result<(), Failure> {
        let at = request.first * self.block_size;
        if self.operation != Operation::Write {
            memory.fill(0xee);
            return Ok(());
        }
        self.bytes.resize(usize::try_from(memory.length()).unwrap_or(0), 0);
        match &mut self.file {
            None => fill(&mut self.bytes, self.seed, at),
            Some(file) => load(file, at - self.from, &mut self.bytes)?,
        }
        Ok(memory.write(0, &self.bytes)?)
    }

    fn finish(&mut self, request: &Request, memory: &Data) -> Result<(), Failure> {
        let at = request.first * self.block_size;
        if self.operation == Operation::Read {
            self.bytes.resize(usize::try_from(memory.length()).unwrap_or(0), 0);
            memory.read(0, &mut self.bytes)?;
        }
        match (&mut self.file, self.operation) {
            (_, Operation::Write | Operation::Flush) => Ok(()),
            (None, Operation::Read) => compare(&self.bytes, self.seed, at),
            (Some(file), Operation::Read) => {
                let at = at - self.from;
                let count = usize::try_from(self.length - at).unwrap_or(usize::MAX);
                file.seek(SeekFrom::Start(at))?;
                Ok(file.write_all(self.bytes.get(..count).unwrap_or(&self.bytes))?)
            }
        }
    }

    fn trouble(&mut self, trouble: &Trouble) {
        Nothing.trouble(trouble);
    }
}

/// Writes or reads as the options say.
pub(crate) fn transfer(
    disk: &mut Disk,
    options: &Options,
    operation: Operation,
) -> Result<(), Failure> {
    let namespace = disk.namespace(options.namespace)?;
    let file = match &options.file {
        Some(path) if operation == Operation::Read => Some(File::create(path)?),
        Some(path) => Some(File::open(path)?),
        None => None,
    };
    let length = match (options.length, &file, operation) {
        (Some(length), ..) => length,
        (None, Some(file), Operation::Write) => file.metadata()?.len(),
        _ => 1 << 20,
    };
    let (from, seed, block_size) = (options.from, options.pattern, namespace.block_size);
    let size = options.size.unwrap_or(TRANSFER);
    within(namespace, from, length, size)?;
    let bytes = Vec::new();
    let mut work = Transfer { operation, from, length, block_size, seed, file, bytes };
    loop {
        let started = Instant::now();
        let troubles = disk.run(requests(namespace, operation, from, length, size), &mut work)?;
        if operation == Operation::Write {
            let (namespace, operation) = (namespace.id, Operation::Flush);
            let flush = Request { namespace, operation, first: 0, blocks: 0 };
            disk.run([(flush, 0)], &mut Nothing)?;
        }
        tell(disk, options, &work, troubles, started);
        if !options.forever {
            return Ok(());
        }
        if operation == Operation::Write {
            // The pattern left by a killed driver shows how far it got.
            work.seed = work.seed.wrapping_add(1);
        }
    }
}

/// # Errors
/// The range does not begin with a block, or leaves the namespace; transfers are no whole blocks.
fn within(namespace: NamespaceInfo, from: u64, length: u64, each: u64) -> Result<(), Failure> {
    let NamespaceInfo { blocks: size, block_size, most_blocks: most, .. } = namespace;
    if !from.is_multiple_of(block_size) {
        let what = "a beginning inside of a block:";
        return Err(nvme::Error::Unsupported { what, value: from }.into());
    }
    if each == 0 || !each.is_multiple_of(block_size) {
        return Err(nvme::Error::Unsupported { what: "a transfer of", value: each }.into());
    }
    let (first, blocks) = (from / block_size, length.div_ceil(block_size));
    if first.checked_add(blocks).is_none_or(|end| end > size) {
        return Err(nvme::Error::Range { first, blocks, size, most }.into());
    }
    Ok(())
}

fn tell(disk: &Disk, options: &Options, work: &Transfer, troubles: Troubles, started: Instant) {
    let word = if work.operation == Operation::Write { "written" } else { "read" };
    let (length, ms) = (work.length, started.elapsed().as_millis());
    let Troubles { aborts, resets } = troubles;
    let woken = match options.interrupts {
        true => format!(", {} interrupts", disk.nvme.woken()),
        false => String::new(),
    };
    println!("nvme: {length} bytes {word} in {ms} ms, {aborts} aborts, {resets} resets{woken}");
}

/// The transfers of a range within a namespace, each of `size` bytes at most, with its length.
pub(crate) fn requests(
    namespace: NamespaceInfo,
    operation: Operation,
    from: u64,
    length: u64,
    size: u64,
) -> impl Iterator<Item = (Request, u64)> {
    let block = namespace.block_size;
    let step = size.min(namespace.most_blocks * block);
    (0..length.div_ceil(step)).map(move |index| {
        let done = index * step;
        let blocks = step.min(length - done).div_ceil(block);
        let first = (from + done) / block;
        (Request { namespace: namespace.id, operation, first, blocks }, blocks * block)
    })
}

/// Bytes of a file; zeros behind its end.
fn load(file: &mut File, at: u64, bytes: &mut [u8]) -> Result<(), Failure> {
    file.seek(SeekFrom::Start(at))?;
    let mut found = Vec::new();
    file.take(u64::try_from(bytes.len()).unwrap_or(u64::MAX)).read_to_end(&mut found)?;
    bytes.fill(0);
    if let Some(start) = bytes.get_mut(..found.len()) {
        start.copy_from_slice(&found);
    }
    Ok(())
}

/// Eight bytes of the pattern. They differ from seed to seed and from any repeated word.
const fn word(seed: u64, at: u64) -> [u8; 8] {
    (seed ^ (at >> 3)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

fn fill(bytes: &mut [u8], seed: u64, at: u64) {
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (place, offset) in words.iter_mut().zip((at..).step_by(8)) {
        *place = word(seed, offset);
    }
}

fn compare(bytes: &[u8], seed: u64, at: u64) -> Result<(), Failure> {
    let (words, _) = bytes.as_chunks::<8>();
    let wrong = words.iter().zip((at..).step_by(8)).find(|(found, at)| **found != word(seed, *at));
    wrong.map_or(Ok(()), |(_, at)| Err(Failure::WrongData { at }))
}
