//! `nvme`: an NVMe controller used through iommud.

mod bench;
mod disk;
mod options;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use iommu_client::Connection;
use nvme::{NamespaceInfo, Operation, Request};

use disk::{Disk, Troubles};
use options::{Command, Options, USAGE};

/// Bytes of one transfer.
const TRANSFER: u64 = 128 << 10;

/// How long a fault may take to be told.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the driver ends other than as expected.
enum Failure {
    Client(iommu_client::Error),
    Nvme(nvme::Error),
    File(std::io::Error),
    WrongData { at: u64 },
    NoFault,
    Fault(String),
}

impl From<iommu_client::Error> for Failure {
    fn from(error: iommu_client::Error) -> Self {
        Self::Client(error)
    }
}

impl From<nvme::Error> for Failure {
    fn from(error: nvme::Error) -> Self {
        match error {
            nvme::Error::Client(error) => Self::Client(error),
            error => Self::Nvme(error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::File(error)
    }
}

impl Failure {
    /// Says what happened; gives the exit code.
    fn report(&self) -> u8 {
        let (text, code) = match self {
            Self::Client(error) if error.refusal().is_some() => (format!("refused: {error}"), 3),
            Self::Client(error) => (format!("failed: {error}"), 1),
            Self::Nvme(error) => (format!("failed: {error}"), 1),
            Self::File(error) => (format!("failed: {error}"), 1),
            Self::WrongData { at } => (format!("wrong data at byte {at}"), 4),
            Self::NoFault => ("no fault came".into(), 5),
            Self::Fault(fault) => (format!("a fault that was not expected: {fault}"), 6),
        };
        println!("nvme: {text}");
        code
    }
}

fn main() -> ExitCode {
    match Options::parse(lexopt::Parser::from_env()) {
        Ok(options) => match run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report().into(),
        },
        Err(error) => {
            println!("nvme: {error}\n{USAGE}");
            2.into()
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let connection = Connection::system()?;
    let mut disk = open(&connection, &options.device, options)?;
    match options.command {
        Command::Info => info(&disk),
        Command::Write => transfer(&mut disk, options, Operation::Write)?,
        Command::Read => transfer(&mut disk, options, Operation::Read)?,
        Command::Rogue => rogue(&mut disk, options)?,
        Command::Bench => match &options.against {
            None => bench::alone(&connection, &mut disk, options)?,
            Some(name) => {
                let mut other = open(&connection, name, options)?;
                bench::pairs(&connection, &mut disk, &mut other, options)?;
                other.close()?;
            }
        },
    }
    let fault = disk.device.next_fault()?;
    disk.close()?;
    fault.map_or(Ok(()), |fault| Err(Failure::Fault(fault.to_string())))
}

fn open(connection: &Connection, name: &str, options: &Options) -> Result<Disk, Failure> {
    let disk = Disk::open(connection, name, options)?;
    let name = disk.device.address();
    println!("nvme: {name} attached, {}", if disk.confined { "confined" } else { "NOT CONFINED" });
    Ok(disk)
}

fn info(disk: &Disk) {
    let info = disk.nvme.info();
    println!("model:     {}", info.model);
    println!("serial:    {}", info.serial);
    println!("firmware:  {}", info.firmware);
    let (queues, depth) = (disk.nvme.queues(), disk.nvme.depth());
    println!("transfers: at most {} bytes, {depth} at once in {queues} queues", info.most_bytes);
    for NamespaceInfo { id, blocks, block_size, .. } in &info.namespaces {
        println!("namespace {id}: {blocks} blocks of {block_size} bytes");
    }
}

/// The transfers of a range of a namespace, and their lengths.
fn requests(
    namespace: NamespaceInfo,
    operation: Operation,
    from: u64,
    length: u64,
) -> impl Iterator<Item = (Request, u64)> {
    let block = namespace.block_size;
    let step = TRANSFER.min(namespace.most_blocks * block);
    let end = from.saturating_add(length);
    (0..length.div_ceil(step)).map(move |index| {
        let start = from + index * step;
        let bytes = step.min(end - start);
        let blocks = bytes.div_ceil(block);
        let request = Request { namespace: namespace.id, operation, first: start / block, blocks };
        (request, blocks * block)
    })
}

fn transfer(disk: &mut Disk, options: &Options, operation: Operation) -> Result<(), Failure> {
    let namespace = disk.namespace(options.namespace)?;
    let mut file = match &options.file {
        Some(path) if operation == Operation::Read => Some(File::create(path)?),
        Some(path) => Some(File::open(path)?),
        None => None,
    };
    let length = match (options.length, &file, operation) {
        (Some(length), ..) => length,
        (None, Some(file), Operation::Write) => file.metadata()?.len(),
        _ => 1 << 20,
    };
    let (from, seed, size) = (options.from, options.pattern, namespace.block_size);
    if !from.is_multiple_of(size) {
        return Err(nvme::Error::Unsupported {
            what: "a beginning inside of a block:",
            value: from,
        }
        .into());
    }
    let mut source = file.as_ref().map(File::try_clone).transpose()?;
    for round in 1_u64.. {
        let started = Instant::now();
        let prepare = |request: &Request, bytes: &mut [u8]| match (&mut source, operation) {
            (_, Operation::Read | Operation::Flush) => {
                bytes.fill(0xee);
                Ok(())
            }
            (None, _) => {
                fill(bytes, seed, request.first * size);
                Ok(())
            }
            (Some(file), _) => load(file, request.first * size - from, bytes),
        };
        let finish = |request: &Request, bytes: &[u8]| match (&mut file, operation) {
            (_, Operation::Write | Operation::Flush) => Ok(()),
            (None, _) => compare(bytes, seed, request.first * size),
            (Some(file), _) => {
                let at = request.first * size - from;
                let count = usize::try_from(length - at).unwrap_or(usize::MAX).min(bytes.len());
                file.seek(SeekFrom::Start(at))?;
                Ok(file.write_all(bytes.get(..count).unwrap_or_default())?)
            }
        };
        let Troubles { aborts, resets } =
            disk.run(requests(namespace, operation, from, length), prepare, finish)?;
        if operation == Operation::Write {
            let flush = Request {
                namespace: namespace.id,
                operation: Operation::Flush,
                first: 0,
                blocks: 0,
            };
            disk.run([(flush, 1)], |_, _| Ok(()), |_, _| Ok(()))?;
        }
        let word = if operation == Operation::Write { "written" } else { "read" };
        let ms = started.elapsed().as_millis();
        let woken = if options.interrupts {
            format!(", {} interrupts", disk.nvme.woken())
        } else {
            String::new()
        };
        println!("nvme: {length} bytes {word} in {ms} ms, {aborts} aborts, {resets} resets{woken}");
        if !options.forever {
            break;
        }
        if round == u64::MAX {
            break;
        }
    }
    Ok(())
}

/// The next bytes of a file; zeros behind its end.
fn load(file: &mut File, at: u64, bytes: &mut [u8]) -> Result<(), Failure> {
    file.seek(SeekFrom::Start(at))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let count = file.read(rest)?;
        let (_, later) = rest.split_at_mut(count);
        rest = later;
        if count == 0 {
            rest.fill(0);
            break;
        }
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

/// A wrong pointer: the controller is told to write where nothing was granted.
fn rogue(disk: &mut Disk, options: &Options) -> Result<(), Failure> {
    let namespace = disk.namespace(options.namespace)?;
    match disk.nvme.read_to_address(namespace.id, 0, options.iova) {
        Ok(()) => println!("nvme: the controller says that it has written to {:#x}", options.iova),
        Err(error) => println!("nvme: read to {:#x}: {error}", options.iova),
    }
    let fault = disk.device.wait_fault(PATIENCE)?.ok_or(Failure::NoFault)?;
    if fault.address.is_some_and(|address| address & !0xfff != options.iova & !0xfff) {
        return Err(Failure::Fault(fault.to_string()));
    }
    println!("nvme: fault {fault}");
    let ended = disk.nvme.reset()?.len();
    // The faults of one transfer.
    while let Some(fault) = disk.device.next_fault()? {
        println!("nvme: fault {fault}");
    }
    println!("nvme: reset, {ended} requests ended");
    transfer(disk, options, Operation::Write)?;
    transfer(disk, options, Operation::Read)
}
