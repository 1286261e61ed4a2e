//! The holder: the process that maps a server's memory, and calls the server in the keeper's place.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use libredox::call::{call_rw, call_wo, fstat};
use syscall::flag::CallFlags;

use super::Contents;
use super::bounded_read::Patience;
use super::descriptors::next;
use super::waits::Queue;
use super::words::{
    GO, NOTES, RANGES, SILENT, STAY, Said, TAGS, TOLD, UNTOLD, contents, noted, ranges, tags,
};
use crate::addr::PAGE_SIZE;
use crate::platform::handover_page::NotesPage;
use crate::platform::redox::events::number;
use crate::platform::redox::fork::Process;
use crate::platform::redox::memory::Translation;
use crate::platform::redox::scheme::{GIVE_UP, HELD};
use crate::platform::{HUGE_PAGE_LENGTH, Mapping, Sharing};

/// How long the holder may take for a line of output. It waits for nothing but an answer of the server.
const ANSWER: Duration = Duration::from_secs(10);

/// The keeper's side of the holder. Until the holder's input ends, the kernel gives the memory to no other process.
/// The keeper maps none of the memory: a process with mappings of a dead server's memory cannot fork. Nor does the
/// keeper call the server, since a server that hangs does not answer.
pub(super) struct Hold {
    process: Process,
    input: File,
    output: File,
    /// Output of the holder that was read but not used yet.
    said: Said,
    /// The server acknowledged that its memory is held.
    told: bool,
}

impl Hold {
    /// Starts a holder without memory. The new process calls `leave`, which drops inherited values that belong to the
    /// keeper.
    pub(super) fn new(waits: &Queue, leave: impl FnOnce()) -> io::Result<Self> {
        let ((reader, input), (output, mut writer)) = (io::pipe()?, io::pipe()?);
        let (input, output) = (File::from(OwnedFd::from(input)), File::from(OwnedFd::from(output)));
        let (mut own, mut others) = (Some(reader), Some((input, output)));
        let process = Process::new(|| {
            leave();
            drop(others.take());
            own.take().is_some_and(|reader| hold(reader, &mut writer))
        })?;
        let (input, output) = others.ok_or(io::ErrorKind::BrokenPipe)?;
        waits.watch(&output)?;
        Ok(Self { process, input, output, said: Said::default(), told: false })
    }

    /// Sends `memory` to the holder. The holder maps all of it and then notifies the server, which waits for that.
    pub(super) fn bring(&mut self, memory: &OwnedFd) -> io::Result<()> {
        let word = number(memory)?.to_ne_bytes();
        call_wo(number(&self.input)?, &word, CallFlags::FD | CallFlags::FD_CLONE, &[])?;
        Ok(())
    }

    /// Whether the server's acknowledgement is known.
    pub(super) const fn told(&self) -> bool {
        self.told
    }

    /// Waits until the server has acknowledged that all its memory is mapped.
    pub(super) fn be_told(
        &mut self,
        patience: &mut Patience<Queue>,
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

    /// Asks for the ranges of the memory, and for the server's notes in it. `UnexpectedEof` when the holder has
    /// ended.
    pub(super) fn contents(&mut self, patience: &mut Patience<Queue>) -> io::Result<Contents> {
        // If the holder has ended, this write fails. Then reading the lines fails as well.
        let _ = self.input.write_all(b"?");
        let held = self.line(patience, None, &[RANGES])?.1;
        let names = self.line(patience, None, &[NOTES])?.1;
        let bits = self.line(patience, None, &[TAGS])?.1;
        let both = ranges(&held).zip(noted(&names));
        let (ranges, driven) = both.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Contents { ranges, driven, tags: tags(&bits) })
    }

    /// Asks the server, through the holder, whether no unit uses the memory of earlier servers any more.
    pub(super) fn may_go(
        &mut self,
        patience: &mut Patience<Queue>,
        server: &mut Process,
    ) -> io::Result<bool> {
        self.input.write_all(b"g")?;
        match self.line(patience, Some(server), &[GO, STAY, SILENT])?.0 {
            GO => Ok(true),
            STAY => Ok(false),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for the next line that begins with one of `words`. Returns that word, and the other words of the line.
    fn line<'a>(
        &mut self,
        patience: &mut Patience<Queue>,
        mut server: Option<&mut Process>,
        words: &[&'a str],
    ) -> io::Result<(&'a str, Vec<String>)> {
        loop {
            if let Some(line) = self.said.line(words) {
                return Ok(line);
            }
            let ended = || match &mut server {
                Some(server) => server.ended().map(|status| status.is_some()),
                None => Ok(false),
            };
            let mut bytes = [0; 512];
            let mut output = &self.output;
            match patience.read(ANSWER, ended, || output.read(&mut bytes))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.said.hear(bytes.get(..length).unwrap_or_default()),
            }
        }
    }

    /// Gives the memory up: ends the holder's input and waits for the holder to end.
    pub(super) fn end(self) -> io::Result<()> {
        let Self { mut process, input, output, .. } = self;
        drop((input, output));
        process.wait().map(drop)
    }

    /// Kills a holder that never got any memory to map.
    pub(super) fn kill(mut self) -> io::Result<()> {
        self.process.kill().map(drop)
    }
}

/// Runs the holder. `input` carries the descriptor of the memory, and then one byte for each question. Returns
/// whether it succeeded.
fn hold(input: PipeReader, output: &mut PipeWriter) -> bool {
    let ended = held_until_the_end(input, output);
    ended.inspect_err(|error| log::error!("memory cannot be held: {error}")).is_ok()
}

fn held_until_the_end(mut input: PipeReader, output: &mut PipeWriter) -> io::Result<()> {
    // The keeper closes the input when the server ended before it sent its memory.
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
    // From this call on a unit may use the memory, even if no answer comes.
    writeln!(output, "{}", if say(&memory, HELD).is_ok() { TOLD } else { UNTOLD })?;
    let mut byte = [0];
    while input.read(&mut byte)? > 0 {
        let text = match &byte {
            b"g" => format!("{}\n", may_go(&memory)),
            _ => contents(&ranges, notes.noted(), notes.tags()),
        };
        output.write_all(text.as_bytes())?;
    }
    drop(pieces);
    Ok(())
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

/// Bytes of a page, as a `usize`.
fn page() -> usize {
    usize::try_from(PAGE_SIZE).unwrap_or(4096)
}
