//! The keeper on Redox: starts the server, has all of its memory mapped by a third process, and starts the next server
//! when it dies.
//!
//! The kernel counts who maps a frame: while somebody does, the frames of a dead server's tables and buffers are
//! nobody else's, and a unit goes on walking them. The keeper keeps its name space; the server has none.
//!
//! ```text
//! server dies   its name is taken back; whoever waits for its answer gets ENODEV
//!               the next server is started: the memory stays out of every device's reach there
//!               it takes the units over, its name is entered, and only then is the old memory given up
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iommu_protocol::ids::PciAddress;
use libredox::call::{
    call_ro, call_rw, call_wo, close, fstat, getns, register_scheme_to_ns, write,
};
use syscall::error::{ENODEV, Error};
use syscall::flag::CallFlags;
use syscall::schemev2::{Cqe, CqeOpcode};

use super::fork::Process;
use super::kept;
use super::memory::Translation;
use super::options::Options;
use super::ready::{Announce, NAME};
use super::scheme::{GIVE_UP, HELD};
use crate::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use crate::platform::notes::NotesPage;
use crate::platform::pace::{End, MOST_FAILURES, Pace};
use crate::platform::{HUGE_PAGE_LENGTH, Mapping, Sharing};

/// Requests of one scheme that can wait at a time are numbered from 0 on; nobody waits with a higher number.
const MOST_WAITING: u32 = 1024;

/// How long clients of a dead server are answered.
const LEARNING: Duration = Duration::from_millis(50);

/// A process that has mapped the memory of a server: the memory is nobody else's until its input ends. The keeper maps
/// none of it, since a process with mappings of a dead server's cannot fork.
struct Hold {
    process: Process,
    input: PipeWriter,
    output: BufReader<PipeReader>,
    /// Whether it was given memory.
    given: bool,
}

impl Hold {
    /// Starts one that has nothing yet. `leave` gives up, in that process, what is not its own.
    fn new(leave: impl FnOnce()) -> io::Result<Self> {
        let (reader, input) = io::pipe()?;
        let (output, mut writer) = io::pipe()?;
        let (mut own, mut others) = (Some(reader), Some((input, output)));
        let process = Process::new(|| {
            leave();
            drop(others.take());
            own.take().is_some_and(|reader| hold(reader, &mut writer))
        })?;
        let (input, output) = others.ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { process, input, output: BufReader::new(output), given: false })
    }

    /// Has everything mapped that `memory` stands for. It tells the server, which waits for that.
    fn bring(&mut self, memory: &OwnedFd) -> io::Result<()> {
        let word = number(memory)?.to_ne_bytes();
        call_wo(number(&self.input)?, &word, CallFlags::FD | CallFlags::FD_CLONE, &[])?;
        self.given = true;
        Ok(())
    }

    /// Where the memory is, and what the server has noted there.
    fn contents(&mut self) -> io::Result<(Vec<PhysRange>, Vec<PciAddress>)> {
        self.input.write_all(b"?")?;
        let ranges = self.line(range)?;
        Ok((ranges, self.line(|name| name.parse().ok())?))
    }

    /// What the words of its next line mean.
    fn line<T>(&mut self, meaning: impl Fn(&str) -> Option<T>) -> io::Result<Vec<T>> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let words = line.split_whitespace().map(meaning).collect::<Option<_>>();
        words.ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Gives the memory up.
    fn end(self) -> io::Result<()> {
        let Self { process, input, output, .. } = self;
        drop((input, output));
        process.wait().map(drop)
    }
}

/// `FIRST+LENGTH`, both hexadecimal.
fn range(text: &str) -> Option<PhysRange> {
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let (first, length) = text.split_once('+')?;
    PhysRange::new(PhysAddr(number(first)?), number(length)?)
}

/// That process: `input` brings the memory and then a byte each time that it is asked what it has. Says whether all
/// went well.
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
    say(&memory, HELD)?;
    let mut byte = [0];
    while input.read(&mut byte)? > 0 {
        let words =
            ranges.iter().map(|range| format!("{:x}+{:x} ", range.first().0, range.length()));
        let names = notes.noted().map(|function| format!("{function} "));
        let text: String = words.chain(["\n".into()]).chain(names).chain(["\n".into()]).collect();
        output.write_all(text.as_bytes())?;
    }
    drop(pieces);
    Ok(())
}

/// A server that serves.
struct Running {
    process: Process,
    /// A second descriptor of its socket: its scheme lives until this is closed.
    socket: OwnedFd,
    /// The server learns of the end of its keeper by the end of this.
    _memory: OwnedFd,
    hold: Hold,
    since: Instant,
}

/// What a server is: it ends as `Process::new` says.
pub(super) type Serve = fn(&Options, Announce) -> bool;

/// Runs servers with these options until one ends for good; says whether that was a good end.
pub(super) fn keep(options: &Options, serve: Serve, announce: Announce) -> bool {
    let Some(program) = std::env::args_os().next() else { return false };
    let mut keeper = Keeper { options: options.clone(), serve, program, old: Vec::new() };
    keeper.run(announce).unwrap_or_else(|error| {
        log::error!("keeper: {error}");
        if keeper.old.is_empty() { false } else { keeper.stay() }
    })
}

struct Keeper {
    options: Options,
    serve: Serve,
    program: OsString,
    /// Memory of servers that are dead. A unit may use it.
    old: Vec<Hold>,
}

impl Keeper {
    fn run(&mut self, announce: Announce) -> io::Result<bool> {
        // The first one is waited for by whoever boots: when it cannot run, neither can others.
        let mut announce = Some(announce);
        let mut pace = Pace::default();
        loop {
            let started = self.start(announce.take())?;
            let (end, lived) = match started {
                Ok(running) => self.follow(running)?,
                Err(end) if self.old.is_empty() => return Ok(end == End::Final(0)),
                Err(end) => (end, Duration::ZERO),
            };
            if let End::Final(code) = end {
                return Ok(code == 0);
            }
            let Some(pause) = pace.after(end, lived) else {
                log::error!("keeper: {MOST_FAILURES} servers in a row could not run: giving up");
                self.stay();
            };
            std::thread::sleep(pause);
        }
    }

    /// Nothing more can be done, but what units use must not become anybody else's.
    fn stay(&self) -> ! {
        log::error!(
            "keeper: units go on with the tables of the last server, which are held for ever"
        );
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }

    /// Starts a server and holds its memory; announces it when it serves. How it ended if it did not get there.
    fn start(&mut self, mut announce: Option<Announce>) -> io::Result<Result<Running, End>> {
        let since = Instant::now();
        let mut hold = Hold::new(|| {
            self.old.clear();
            drop(announce.take());
        })?;
        let (reader, writer) = io::pipe()?;
        let mut ends = Some((reader, hold));
        let mut writer = Some(OwnedFd::from(writer));
        let process = Process::new(|| {
            self.old.clear();
            drop((announce.take(), ends.take()));
            let keeper = writer.take().map(|pipe| Announce::Keeper(kept::Keeper::over(pipe)));
            keeper.is_some_and(|keeper| (self.serve)(&self.options, keeper))
        })?;
        drop(writer);
        let reader;
        (reader, hold) = ends.ok_or(io::ErrorKind::BrokenPipe)?;
        match self.meet(&reader, &mut hold, announce) {
            Ok((socket, memory)) => {
                Ok(Ok(Running { process, socket, _memory: memory, hold, since }))
            }
            Err(error) => {
                log::error!("keeper: the server did not get to serving: {error}");
                if !hold.given {
                    hold.end()?;
                    return Ok(Err(End::from(process.wait()?)));
                }
                // Units may use its tables already.
                let end = End::from(process.wait()?);
                self.keep_for_next(hold)?;
                Ok(Err(end))
            }
        }
    }

    fn meet(
        &mut self,
        pipe: &PipeReader,
        hold: &mut Hold,
        announce: Option<Announce>,
    ) -> io::Result<(OwnedFd, OwnedFd)> {
        let (socket, memory) = (receive(pipe)?, receive(pipe)?);
        hold.bring(&memory)?;
        let root = receive(pipe)?.into_raw_fd();
        let root = usize::try_from(root).map_err(|_| io::ErrorKind::InvalidData)?;
        match announce {
            Some(announce) => {
                announce.pass_on(root).map_err(|error| io::Error::from_raw_os_error(error.errno))?
            }
            None => register_scheme_to_ns(getns()?, NAME, root)?,
        }
        if !self.old.is_empty() {
            self.give_up(&memory)?;
        }
        Ok((socket, memory))
    }

    /// Gives the memory of dead servers up, if the one that runs says that no unit uses it.
    fn give_up(&mut self, memory: &OwnedFd) -> io::Result<()> {
        if say(memory, GIVE_UP)? == 1 {
            for hold in self.old.drain(..) {
                hold.end()?;
            }
            self.options.left.clear();
            log::info!("keeper: memory of the server before given back");
        } else {
            log::warn!("keeper: a unit is not enabled: memory of the server before stays held");
        }
        Ok(())
    }

    /// Waits for the server's end and clears up behind it.
    fn follow(&mut self, running: Running) -> io::Result<(End, Duration)> {
        let Running { process, socket, hold, since, .. } = running;
        let status = process.wait()?;
        let (end, lived) = (End::from(status), since.elapsed());
        if !matches!(end, End::Final(_)) {
            log::error!(
                "keeper: the server ended ({status}) after {lived:.1?}: its memory is held"
            );
        }
        let _ = fs::remove_file(format!("/scheme/{NAME}"));
        answer(&self.program, socket)?;
        self.keep_for_next(hold)?;
        Ok((end, lived))
    }

    fn keep_for_next(&mut self, mut hold: Hold) -> io::Result<()> {
        let contents = hold.contents();
        self.old.push(hold);
        let (ranges, driven) = contents?;
        self.options.left.extend(ranges);
        self.options.driven = driven;
        Ok(())
    }
}

/// Answers whoever waits for a dead server, in a process of its own: an answer to a client that was killed while it
/// waited makes the kernel unmap what the client lent, at the server's addresses, in whoever answers.
fn answer(program: &OsString, socket: OwnedFd) -> io::Result<()> {
    let mut child = Command::new(program).arg("--answer").stdin(Stdio::from(socket)).spawn()?;
    // This process's socket is closed by now: the scheme ends when the other one closes its own.
    child.wait().map(drop)
}

/// That process: standard input is the scheme's socket. Who asks after an answer with his number was written, and
/// before the socket is closed, would wait for ever: answers are written until everybody had time to learn.
pub(super) fn answer_all() {
    let end = Instant::now() + LEARNING;
    while Instant::now() < end {
        answer_once();
        std::thread::sleep(LEARNING / 10);
    }
    answer_once();
    let _ = close(0);
}

fn answer_once() {
    let gone = Error::mux(Err(Error::new(ENODEV)));
    for tag in 0..MOST_WAITING {
        let answer = Cqe {
            flags: CqeOpcode::RespondRegular as u8,
            extra_raw: [0; 3],
            tag,
            result: u64::try_from(gone).unwrap_or(u64::MAX),
        };
        // Most numbers are nobody's.
        let _ = write(0, &answer);
    }
}

fn say(memory: &OwnedFd, word: u64) -> io::Result<usize> {
    Ok(call_rw(number(memory)?, &mut [0; 8], CallFlags::empty(), &[word])?)
}

/// The next descriptor out of a pipe.
fn receive(pipe: &PipeReader) -> io::Result<OwnedFd> {
    next(pipe)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// As [`receive`]; `None` when the other end is closed.
#[allow(unsafe_code)]
fn next(pipe: &PipeReader) -> io::Result<Option<OwnedFd>> {
    let mut word = [0; 8];
    match call_ro(number(pipe)?, &mut word, CallFlags::FD | CallFlags::FD_CLOEXEC, &[])? {
        1 => {
            let number = i32::try_from(usize::from_ne_bytes(word));
            let number = number.map_err(|_| io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel has just made it, for this process alone.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
        }
        _ => Ok(None),
    }
}

fn number(descriptor: &impl AsRawFd) -> io::Result<usize> {
    usize::try_from(descriptor.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn page() -> usize {
    usize::try_from(PAGE_SIZE).unwrap_or(4096)
}
