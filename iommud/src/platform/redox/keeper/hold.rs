//! The process that has a server's memory mapped, and speaks to the server in the keeper's place.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use iommu_protocol::ids::PciAddress;
use libredox::call::{call_rw, call_wo, fstat};
use syscall::flag::CallFlags;

use super::patience::Patience;
use super::{ANSWER, next, page};
use crate::addr::{PhysAddr, PhysRange};
use crate::platform::notes::NotesPage;
use crate::platform::redox::events::number;
use crate::platform::redox::fork::Process;
use crate::platform::redox::memory::Translation;
use crate::platform::redox::scheme::{GIVE_UP, HELD};
use crate::platform::{HUGE_PAGE_LENGTH, Mapping, Sharing};
use crate::topology::tags::TagRecord;

/// First words of its lines: the server has been told that the memory is mapped, or could not be.
const TOLD: &str = "held";
const UNTOLD: &str = "unheld";

/// Where the memory is; functions and tags that were noted there; that the server lets the memory of those before it go, that a unit uses
/// it, that it says nothing.
const RANGES: &str = "ranges";
const NOTES: &str = "notes";
const TAGS: &str = "tags";
const GO: &str = "go";
const STAY: &str = "stay";
const SILENT: &str = "silent";

/// What a server has left.
pub(super) struct Contents {
    /// Its memory.
    pub(super) ranges: Vec<PhysRange>,
    /// Functions that were driven.
    pub(super) driven: Vec<PciAddress>,
    /// Tags that units may hold, if it noted them.
    pub(super) tags: Option<TagRecord>,
}

/// A process that has mapped the memory of a server: the memory is nobody else's until its input ends. The keeper maps
/// none of it, since a process with mappings of a dead server's cannot fork; and it asks the server nothing itself,
/// since a server that hangs does not answer.
pub(super) struct Hold {
    process: Process,
    input: File,
    output: File,
    /// What it has said and nobody has read.
    said: Vec<u8>,
    /// The server knows that its memory is held.
    told: bool,
}

impl Hold {
    /// Starts one that has nothing yet. `leave` gives up, in that process, what is not its own.
    pub(super) fn new(patience: &Patience, leave: impl FnOnce()) -> io::Result<Self> {
        let ((reader, input), (output, mut writer)) = (io::pipe()?, io::pipe()?);
        let (input, output) = (File::from(OwnedFd::from(input)), File::from(OwnedFd::from(output)));
        let (mut own, mut others) = (Some(reader), Some((input, output)));
        let process = Process::new(|| {
            leave();
            drop(others.take());
            own.take().is_some_and(|reader| hold(reader, &mut writer))
        })?;
        let (input, output) = others.ok_or(io::ErrorKind::BrokenPipe)?;
        patience.watch(&output)?;
        Ok(Self { process, input, output, said: Vec::new(), told: false })
    }

    /// Begins to map everything that `memory` stands for, and then tells the server, which waits for that.
    pub(super) fn bring(&mut self, memory: &OwnedFd) -> io::Result<()> {
        let word = number(memory)?.to_ne_bytes();
        call_wo(number(&self.input)?, &word, CallFlags::FD | CallFlags::FD_CLONE, &[])?;
        Ok(())
    }

    /// Whether the server is known to have been told.
    pub(super) const fn told(&self) -> bool {
        self.told
    }

    /// Waits until the server has taken note that everything is mapped.
    pub(super) fn be_told(
        &mut self,
        patience: &mut Patience,
        server: &mut Process,
    ) -> io::Result<()> {
        match self.line(patience, Some(server), &[TOLD, UNTOLD])?.0 {
            TOLD => {
                self.told = true;
                Ok(())
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Where the memory is, and what the server has noted there. `UnexpectedEof`: the process has ended.
    pub(super) fn contents(&mut self, patience: &mut Patience) -> io::Result<Contents> {
        // Who has ended reads nothing; then there is no line either.
        let _ = self.input.write_all(b"?");
        let ranges = self.line(patience, None, &[RANGES])?.1;
        let names = self.line(patience, None, &[NOTES])?.1;
        let tags = self.line(patience, None, &[TAGS])?.1;
        let ranges = ranges.iter().map(|word| range(word)).collect::<Option<_>>();
        let named = names.iter().map(|name| name.parse().ok()).collect::<Option<_>>();
        // Tags that cannot be read are any tags.
        let tags = tags.first().and_then(|bits| u64::from_str_radix(bits, 16).ok());
        let tags = tags.map(TagRecord::from_bits);
        let (ranges, driven) = ranges.zip(named).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Contents { ranges, driven, tags })
    }

    /// Whether the server says that no unit uses the memory of servers before it.
    pub(super) fn may_go(
        &mut self,
        patience: &mut Patience,
        server: &mut Process,
    ) -> io::Result<bool> {
        self.input.write_all(b"g")?;
        match self.line(patience, Some(server), &[GO, STAY, SILENT])?.0 {
            GO => Ok(true),
            STAY => Ok(false),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// The next line that begins with one of `words`: the word, and the others.
    fn line<'a>(
        &mut self,
        patience: &mut Patience,
        mut server: Option<&mut Process>,
        words: &[&'a str],
    ) -> io::Result<(&'a str, Vec<String>)> {
        loop {
            while let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.said.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let mut line = line.split_whitespace();
                let first = line.next();
                if let Some(word) = words.iter().find(|word| Some(**word) == first) {
                    return Ok((word, line.map(str::to_owned).collect()));
                }
            }
            let mut bytes = [0; 512];
            match patience.read(&self.output, server.as_deref_mut(), ANSWER, &mut bytes)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.said.extend(bytes.get(..length).unwrap_or_default()),
            }
        }
    }

    /// Gives the memory up.
    pub(super) fn end(self) -> io::Result<()> {
        let Self { mut process, input, output, .. } = self;
        drop((input, output));
        process.wait().map(drop)
    }

    /// Ends a process that did not get to mapping everything.
    pub(super) fn kill(mut self) -> io::Result<()> {
        self.process.kill().map(drop)
    }
}

/// `FIRST+LENGTH`, both hexadecimal.
fn range(text: &str) -> Option<PhysRange> {
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let (first, length) = text.split_once('+')?;
    PhysRange::new(PhysAddr(number(first)?), number(length)?)
}

/// That process: `input` brings the memory and then a byte for each question. Says whether all went well.
fn hold(input: PipeReader, output: &mut PipeWriter) -> bool {
    let ended = held_until_the_end(input, output);
    ended.inspect_err(|error| log::error!("memory cannot be held: {error}")).is_ok()
}

fn held_until_the_end(mut input: PipeReader, output: &mut PipeWriter) -> io::Result<()> {
    // The keeper has nothing to hold when a server did not get that far.
    let Some(memory) = next(&input)? else { return Ok(()) };
    let translation = Translation::open()?;
    let length = fstat(number(&memory)?)?.st_size;
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?;
    let last = length.checked_sub(page()).ok_or(io::ErrorKind::InvalidData)?;
    let map = |offset: usize, length: usize| {
        let at = u64::try_from(offset).map_err(|_| io::ErrorKind::InvalidData)?;
        let piece = Mapping::new(memory.as_fd(), at, length, Sharing::Shared)?;
        let range = translation.range(piece.base(), length)?;
        Ok::<_, io::Error>((range, piece))
    };
    let (mut ranges, mut pieces) = (Vec::new(), Vec::new());
    for offset in (0..last).step_by(HUGE_PAGE_LENGTH) {
        let (range, piece) = map(offset, HUGE_PAGE_LENGTH.min(last - offset))?;
        ranges.push(range);
        pieces.push(piece);
    }
    let (range, notes) = map(last, page())?;
    ranges.push(range);
    let notes = NotesPage::new(notes, None).ok_or(io::ErrorKind::InvalidData)?;
    // From then on a unit may use the memory, whether an answer comes or not.
    writeln!(output, "{}", if say(&memory, HELD).is_ok() { TOLD } else { UNTOLD })?;
    let mut byte = [0];
    while input.read(&mut byte)? > 0 {
        let text = match &byte {
            b"g" => format!("{}\n", may_go(&memory)),
            _ => contents(&ranges, &notes),
        };
        output.write_all(text.as_bytes())?;
    }
    drop(pieces);
    Ok(())
}

/// Three lines.
fn contents(ranges: &[PhysRange], notes: &NotesPage) -> String {
    let ranges = ranges.iter().map(|range| format!(" {:x}+{:x}", range.first().0, range.length()));
    let names = notes.noted().map(|function| format!(" {function}"));
    let first = std::iter::once(RANGES.to_owned()).chain(ranges);
    let second = std::iter::once(format!("\n{NOTES}")).chain(names);
    let tags = notes.tags().map(|tags| format!(" {:x}", tags.to_bits()));
    let third = std::iter::once(format!("\n{TAGS}")).chain(tags);
    first.chain(second).chain(third).chain(["\n".to_owned()]).collect()
}

fn may_go(memory: &OwnedFd) -> &'static str {
    match say(memory, GIVE_UP) {
        Ok(1) => GO,
        Ok(_) => STAY,
        Err(_) => SILENT,
    }
}

fn say(memory: &OwnedFd, word: u64) -> io::Result<usize> {
    Ok(call_rw(number(memory)?, &mut [0; 8], CallFlags::empty(), &[word])?)
}
