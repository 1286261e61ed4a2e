//! The event loop of the server. It handles one event at a time, to completion.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use event::{EventFlags, RawEventQueue};
use redox_scheme::wrappers::ReadinessBased;
use redox_scheme::{Response, SignalBehavior, Socket};
use syscall::data::TimeSpec;
use syscall::flag::CLOCK_MONOTONIC;

use super::held_memory::Memory;
use super::interrupt::Vector;
use super::keeper_link::Keeper;
use super::machine::SharedSpace;
use super::memory::Buffers;
use super::more::More;
use super::registration::Announce;
use super::rhythm::{Alarm, Rhythm};
use super::scheme::{IommuScheme, Window};
use crate::hw::{BufferMemory, Clock, Unit};
use crate::platform::MonotonicClock;
use crate::platform::units::{Family, LateUnits};

/// Time between two polls while units report faults by interrupt and have none.
const CALM: Duration = Duration::from_secs(1);

/// The most requests taken from the kernel at a time.
const REQUESTS: usize = 32;

/// The timer that wakes the loop without a request. Each alarm has its own file of the time scheme, so that an event
/// identifies its alarm.
struct Timer {
    soon: File,
    some_day: File,
    rhythm: Rhythm,
}

impl Timer {
    fn open(period: Duration) -> io::Result<Self> {
        Ok(Self { soon: clock()?, some_day: clock()?, rhythm: Rhythm::new(period) })
    }

    /// The alarm of the file with this descriptor number. `None` when it is another file.
    fn alarm_of(&self, file: usize) -> Option<Alarm> {
        let is = |clock: &File| number(clock).is_ok_and(|number| number == file);
        match file {
            _ if is(&self.soon) => Some(Alarm::Soon),
            _ if is(&self.some_day) => Some(Alarm::SomeDay),
            _ => None,
        }
    }

    /// Ensures that an alarm is set. See [`Rhythm::arm`].
    fn arm(&mut self, faults: u64) -> io::Result<()> {
        let Self { soon, some_day, rhythm } = self;
        rhythm.arm(faults, |which, after| match which {
            Alarm::Soon => alarm(soon, after),
            Alarm::SomeDay => alarm(some_day, after),
        })
    }
}

/// Opens a timer of the monotonic clock.
pub(super) fn clock() -> io::Result<File> {
    let path = format!("/scheme/time/{CLOCK_MONOTONIC}");
    File::options().read(true).write(true).open(path)
}

/// Sets a timer to send one more event, `after` from now.
pub(super) fn alarm(mut clock: &File, after: Duration) -> io::Result<()> {
    let mut now = TimeSpec::default();
    clock.read_exact(&mut now)?;
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    let now = Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanos);
    let then = now.saturating_add(after);
    let then = TimeSpec {
        tv_sec: i64::try_from(then.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i32::try_from(then.subsec_nanos()).unwrap_or(0),
    };
    clock.write_all(&then)
}

/// The open files that the loop waits for.
pub(super) struct Loop {
    socket: Socket,
    queue: RawEventQueue,
    timer: Timer,
}

impl Loop {
    /// Opens the files of the loop. `period` is the time between two polls of the units for faults.
    ///
    /// # Errors
    /// An error of the kernel.
    pub(super) fn open(period: Duration) -> io::Result<Self> {
        let socket = Socket::nonblock().map_err(from)?;
        let timer = Timer::open(period)?;
        let queue = RawEventQueue::new()?;
        queue.subscribe(socket.inner().raw(), 0, EventFlags::READ)?;
        queue.subscribe(number(&timer.soon)?, 0, EventFlags::READ)?;
        queue.subscribe(number(&timer.some_day)?, 0, EventFlags::READ)?;
        Ok(Self { socket, queue, timer })
    }

    /// Lets the keeper map the server's memory. Serves nothing else until it has done so.
    ///
    /// # Errors
    /// The keeper is gone, or an error of the kernel.
    pub(super) fn be_held(&mut self, keeper: &Keeper, memory: Memory) -> io::Result<()> {
        keeper.give_socket_and_memory(&self.socket).map_err(from)?;
        let memory = RefCell::new(memory);
        let mut requests = ReadinessBased::new(&self.socket, REQUESTS);
        loop {
            self.queue.next_event()?;
            if !requests.read_requests().map_err(from)? || memory.borrow().lost {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            requests.process_requests(|| memory.borrow_mut());
            requests.poll_all_requests(|| memory.borrow_mut()).map_err(from)?;
            requests.write_responses().map_err(from)?;
            if memory.borrow().held {
                return Ok(());
            }
        }
    }

    /// Makes the scheme known and serves it. Returns when the kernel sends no more requests, or with an error.
    ///
    /// # Errors
    /// The kernel refuses to register the scheme, or one of the files fails.
    pub(super) fn run<U: Family>(
        mut self,
        mut scheme: IommuScheme<U, Buffers>,
        mut vector: Option<Vector>,
        (mut late, mut more): (LateUnits<SharedSpace>, Option<More>),
        announce: Announce,
    ) -> io::Result<()> {
        if let Some(vector) = &vector {
            self.queue.subscribe(number(vector.file())?, 0, EventFlags::READ)?;
            self.timer.rhythm.rest(CALM);
        }
        self.timer.arm(0)?;
        // Created before the name space is given up, because its hash maps take their keys from the random scheme.
        let mut requests = ReadinessBased::new(&self.socket, REQUESTS);
        announce.announce(&self.socket, &mut scheme).map_err(from)?;
        log::info!("serving /scheme/iommu");
        let scheme = RefCell::new(scheme);
        let mut clock = MonotonicClock::new();
        loop {
            // Requests are read after every event, since reading does not block. An event of any other file makes the
            // loop poll the units too.
            let woken = self.queue.next_event()?;
            if woken.fd != self.socket.inner().raw() {
                if let Some(alarm) = self.timer.alarm_of(woken.fd) {
                    self.timer.rhythm.passed(alarm);
                }
                let raised = vector.as_mut().map_or(Ok(false), Vector::raised)?;
                let now = clock.now();
                let mut scheme = scheme.borrow_mut();
                let server = scheme.server_mut();
                let taken = if raised { server.fault_interrupt() } else { server.tick() };
                if taken > 0 && !raised && self.timer.rhythm.was_calm() {
                    log::warn!("faults: not told by interrupt: asked for from now on");
                    self.timer.rhythm.ask_always();
                }
                late.recover(server, now);
                let grown = more.as_mut().is_some_and(|more| more.grow(server, now));
                self.timer.arm(taken.max((grown || server.has_unfinished()).into()))?;
            }
            if !requests.read_requests().map_err(from)? {
                return Ok(());
            }
            requests.process_requests(|| scheme.borrow_mut());
            scheme.borrow_mut().answer_claims();
            requests.poll_all_requests(|| scheme.borrow_mut()).map_err(from)?;
            requests.write_responses().map_err(from)?;
            if scheme.borrow().has_claims() {
                // Claims end at a deadline even without other events. So the loop must wake soon.
                self.timer.arm(1)?;
            }
            tell_readable(&self.socket, &mut scheme.borrow_mut())?;
        }
    }
}

/// Notifies the kernel of the watched sessions that became readable.
fn tell_readable<U: Unit, B: BufferMemory<Share = Window>>(
    socket: &Socket,
    scheme: &mut IommuScheme<U, B>,
) -> io::Result<()> {
    while let Some(id) = scheme.next_ready() {
        let readable = syscall::flag::EventFlags::EVENT_READ.bits();
        socket
            .write_response(Response::post_fevent(id, readable), SignalBehavior::Restart)
            .map_err(from)?;
    }
    Ok(())
}

/// A descriptor's number as a `usize`, which system calls take.
pub(super) fn number(file: &impl AsRawFd) -> io::Result<usize> {
    usize::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn from(error: syscall::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno)
}
