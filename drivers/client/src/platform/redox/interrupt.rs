//! Interrupts of a function through a message vector of its own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use event::{EventFlags, RawEventQueue};
use libredox::flag::CLOCK_MONOTONIC;

use super::scheme::after;
use crate::error::Error;
use crate::platform::Memory;

/// An entry of the table (PCI Local Bus Specification 3.0, 6.8.2.6): address, data, and its mask.
const ADDRESS: u64 = 0;
const DATA: u64 = 8;
const CONTROL: u64 = 12;
const MASKED: u32 = 1;

/// Address of messages to local interrupt controllers, and the position of an identifier in it (Intel SDM volume 3,
/// 11.11.1).
const MESSAGES: u32 = 0xfee0_0000;
const IDENTIFIER: u32 = 12;

/// The vector that the kernel numbers 0.
const FIRST_VECTOR: u8 = 32;

/// The interrupts of a function.
#[derive(Debug)]
pub struct Interrupt {
    /// The table, and the offset of its first entry.
    table: (Memory, u64),
    /// Eight bytes: the number of interrupts so far. Writing them back acknowledges these interrupts.
    counter: File,
    queue: RawEventQueue,
    timer: File,
}

impl Interrupt {
    /// Lets the first vector of the table, which is at `offset`, raise an unused vector of the first processor. That
    /// vector is given back when this is dropped.
    pub(super) fn new(table: Memory, offset: u64) -> Result<Self, Error> {
        let (processor, vector, counter) = reserve()?;
        let timer = format!("/scheme/time/{CLOCK_MONOTONIC}");
        let timer = File::options().read(true).write(true).open(timer)?;
        let queue = RawEventQueue::new().map_err(io::Error::from)?;
        for file in [&counter, &timer] {
            let fd = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
            queue.subscribe(fd, 0, EventFlags::READ).map_err(io::Error::from)?;
        }
        let mut interrupt = Self { table: (table, offset), counter, queue, timer };
        let address = MESSAGES | u32::from(processor) << IDENTIFIER;
        interrupt.entry(CONTROL, MASKED)?;
        interrupt.entry(ADDRESS, address)?;
        interrupt.entry(ADDRESS + 4, 0)?;
        interrupt.entry(DATA, vector.into())?;
        interrupt.entry(CONTROL, 0)?;
        Ok(interrupt)
    }

    fn entry(&mut self, word: u64, value: u32) -> Result<(), Error> {
        let (table, offset) = &mut self.table;
        table.write_u32(*offset + word, value).ok_or(Error::Outside)
    }

    /// Waits at most `timeout` for an interrupt since the last call. Returns whether there was one.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut count = [0; 8];
            if self.counter.read(&mut count)? == count.len() {
                // Interrupts since the read can still be read.
                let _ = self.counter.write(&count)?;
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.timer.write_all(&after(left)?)?;
            // The event is of the counter or of the timer, perhaps from an earlier wait.
            self.queue.next_event().map_err(io::Error::from)?;
        }
    }
}

impl Drop for Interrupt {
    /// Stops messages before the vector is given to others.
    fn drop(&mut self) {
        let _ = self.entry(CONTROL, MASKED);
    }
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
