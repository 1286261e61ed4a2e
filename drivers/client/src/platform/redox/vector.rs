//! An interrupt vector that the kernel has reserved, and what a process needs to wait for it.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libredox::flag::CLOCK_MONOTONIC;

use crate::handover::{INTERRUPT_VARIABLE, InterruptHandover};

/// The vector that the kernel numbers 0.
const FIRST_VECTOR: u8 = 32;

/// Flag of an event queue's request: report when the descriptor can be read (redox_syscall, `EVENT_READ`).
const READABLE: usize = 1;

/// A reserved vector of a processor. It is given back when the last descriptor of `counter` is closed.
#[derive(Debug)]
pub struct Vector {
    /// The processor's identifier in messages.
    pub(super) processor: u8,
    /// The vector.
    pub(super) number: u8,
    /// Eight bytes: the number of interrupts so far. Writing them back acknowledges these interrupts.
    pub(super) counter: File,
    /// Reports when the counter or the timer can be read.
    pub(super) queue: File,
    /// Ends a wait.
    pub(super) timer: File,
}

impl Vector {
    /// The vector that a launcher handed on; else an unused one of the processor that the machine was started with.
    pub(super) fn any() -> io::Result<Self> {
        match std::env::var(INTERRUPT_VARIABLE) {
            Ok(text) => {
                let handover = text
                    .parse()
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                Self::handed_over(&handover)?.subscribed()
            }
            Err(_) => Self::reserve()?.subscribed(),
        }
    }

    /// Reserves an unused vector of the processor that the machine was started with.
    ///
    /// # Errors
    /// No vector is free; this is not uid 0, or has no such names.
    pub fn reserve() -> io::Result<Self> {
        let (processor, number, counter) = reserve()?;
        let mut options = File::options();
        let queue = options.read(true).write(true).create(true).open("/scheme/event")?;
        let timer = format!("/scheme/time/{CLOCK_MONOTONIC}");
        let timer = File::options().read(true).write(true).open(timer)?;
        Ok(Self { processor, number, counter, queue, timer })
    }

    /// Gives the descriptors of a vector to a program that this process starts. The program finds them by the
    /// variable's value, which is returned. `keep` makes a descriptor of the program's own from one of this process.
    ///
    /// # Errors
    /// Those of `keep`.
    pub fn hand_over(
        &self,
        mut keep: impl FnMut(BorrowedFd<'_>) -> io::Result<u32>,
    ) -> io::Result<InterruptHandover> {
        Ok(InterruptHandover {
            counter: keep(self.counter.as_fd())?,
            queue: keep(self.queue.as_fd())?,
            timer: keep(self.timer.as_fd())?,
            processor: self.processor,
            vector: self.number,
        })
    }

    fn handed_over(handover: &InterruptHandover) -> io::Result<Self> {
        Ok(Self {
            processor: handover.processor,
            number: handover.vector,
            counter: clone(handover.counter)?.into(),
            queue: clone(handover.queue)?.into(),
            timer: clone(handover.timer)?.into(),
        })
    }

    /// Has the queue report on this process's descriptors.
    fn subscribed(self) -> io::Result<Self> {
        for file in [&self.counter, &self.timer] {
            let fd = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
            let words = [fd, READABLE, 0].map(usize::to_ne_bytes);
            (&self.queue).write_all(words.as_flattened())?;
        }
        Ok(self)
    }
}

/// Clones a descriptor that the process which started this one left open for it. The other one stays open.
pub(super) fn clone(number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the number is not -1. Its descriptor was left open for this purpose, and this crate never closes it. If
    // there is none, the kernel refuses the clone.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// Takes an unused vector of the processor that the machine was started with. Returns the processor, the vector, and
/// its counter.
fn reserve() -> io::Result<(u8, u8, File)> {
    let mut first = [0; 8];
    File::open("/scheme/irq/bsp")?.read_exact(&mut first)?;
    let processor = u8::try_from(u64::from_le_bytes(first)).map_err(io::Error::other)?;
    let directory = format!("/scheme/irq/cpu-{processor:02x}");
    for entry in fs::read_dir(&directory)?.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u8>().ok()) else { continue };
        let Some(vector) = number.checked_add(FIRST_VECTOR) else { continue };
        // Another process may have taken it in between.
        let mut options = File::options();
        let path = format!("{directory}/{number}");
        match options.read(true).write(true).create(true).open(path) {
            Ok(counter) => return Ok((processor, vector, counter)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no interrupt vector is free"))
}
