//! Interrupts of a function through a message vector of its own.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::scheme::after;
use super::vector::Vector;
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

/// Bytes of an event: three words (redox_syscall, `Event`).
const EVENT: usize = 24;

/// The interrupts of a function.
#[derive(Debug)]
pub struct Interrupt {
    /// The table, and the offset of its first entry.
    table: (Memory, u64),
    vector: Vector,
}

impl Interrupt {
    /// Lets the first entry of the table, which is at `offset`, raise the vector. The vector is given back when the
    /// last of its descriptors is closed.
    pub(super) fn new(table: Memory, offset: u64, vector: Vector) -> Result<Self, Error> {
        let address = MESSAGES | u32::from(vector.processor) << IDENTIFIER;
        let data = vector.number.into();
        let mut interrupt = Self { table: (table, offset), vector };
        interrupt.entry(CONTROL, MASKED)?;
        interrupt.entry(ADDRESS, address)?;
        interrupt.entry(ADDRESS + 4, 0)?;
        interrupt.entry(DATA, data)?;
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
        let Vector { counter, queue, timer, .. } = &mut self.vector;
        loop {
            let mut count = [0; 8];
            if counter.read(&mut count)? == count.len() {
                // Interrupts since the read can still be read.
                let _ = counter.write(&count)?;
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            timer.write_all(&after(left)?)?;
            // The event is of the counter or of the timer, perhaps from an earlier wait.
            queue.read_exact(&mut [0; EVENT])?;
        }
    }
}

impl Drop for Interrupt {
    /// Stops messages before the vector is given to others.
    fn drop(&mut self) {
        let _ = self.entry(CONTROL, MASKED);
    }
}
