//! The event log and the log of page requests.

use super::port::Port;
use super::spec::event as layout;
use super::spec::registers::{self, Control, Status};
use crate::hw::hal::{Clock, MemoryError, Nanos, RegisterIo, TableMemory};
use crate::hw::poll;
use crate::hw::ring::Ring;
use crate::hw::unit::UnitError;

/// Frames of a log, and the log2 of its entries: 4096. One blocked DMA of a kilobyte can fill 256 of them.
pub(super) const FRAMES: usize = 16;
const LENGTH: u8 = 12;

/// How long an entry may stay unwritten after the unit has announced it.
const ENTRY_LIMIT: Nanos = Nanos(1_000_000);

/// The registers of a log, and its bits in the control and status registers.
#[derive(Debug)]
struct Place {
    base: u32,
    head: u32,
    tail: u32,
    on: Control,
    running: Status,
    overflow: Status,
    stop: &'static str,
    start: &'static str,
}

/// A log that a unit writes.
#[derive(Clone, Debug)]
pub(super) struct Log {
    ring: Ring,
    place: &'static Place,
    coherent: bool,
}

impl Log {
    /// The event log.
    ///
    /// # Errors
    /// `Exhausted`.
    pub(super) fn events<M: TableMemory>(
        memory: &mut M,
        coherent: bool,
    ) -> Result<Self, MemoryError> {
        const PLACE: Place = Place {
            base: registers::EVENT_BASE,
            head: registers::EVENT_HEAD,
            tail: registers::EVENT_TAIL,
            on: Control::EVENT_LOG,
            running: Status::EVENTS_RUN,
            overflow: Status::EVENT_OVERFLOW,
            stop: "event log to stop",
            start: "event log to start",
        };
        Ok(Self { ring: Ring::allocate(memory, FRAMES)?, place: &PLACE, coherent })
    }

    /// The log of page requests.
    ///
    /// # Errors
    /// `Exhausted`.
    pub(super) fn requests<M: TableMemory>(
        memory: &mut M,
        coherent: bool,
    ) -> Result<Self, MemoryError> {
        const PLACE: Place = Place {
            base: registers::PPR_BASE,
            head: registers::PPR_HEAD,
            tail: registers::PPR_TAIL,
            on: Control::PPR_LOG,
            running: Status::PPR_RUN,
            overflow: Status::PPR_OVERFLOW,
            stop: "page request log to stop",
            start: "page request log to start",
        };
        Ok(Self { ring: Ring::allocate(memory, FRAMES)?, place: &PLACE, coherent })
    }

    /// Gives the log to a unit that is not writing any.
    pub(super) fn install<R: RegisterIo, C: Clock>(&mut self, port: &mut Port<R, C>) {
        port.write(self.place.base, registers::ring_base(self.ring.base().0, LENGTH));
        self.ring.set_offset(0);
        port.write(self.place.head, 0);
        port.write(self.place.tail, 0);
    }

    /// Passes entries to `sink`, oldest first, until it refuses one. The refused entry stays for the next call. If
    /// there are none, only one register is read. Returns how many entries are known to be lost; an overflow counts
    /// as one.
    ///
    /// # Errors
    /// `Dead`, `Timeout`.
    pub(super) fn take<R: RegisterIo, C: Clock, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
        sink: &mut dyn FnMut([u64; 2]) -> bool,
    ) -> Result<u32, UnitError> {
        let tail = match port.read(self.place.tail) {
            u64::MAX => return Err(UnitError::Dead),
            tail => registers::pointer(tail),
        };
        let waiting = self.ring.ahead(tail);
        if waiting == 0 {
            return Ok(0);
        }
        let (mut lost, mut left) = (0, waiting);
        while left > 0 {
            // The first entry that does not arrive is waited for; later ones are not.
            let limit = if lost == 0 { ENTRY_LIMIT } else { Nanos(0) };
            match self.entry(port, memory, limit) {
                Some(entry) if !sink(entry) => break,
                Some(_) => {}
                None => lost += 1,
            }
            self.ring.consume(memory, self.coherent);
            left -= 1;
        }
        port.write(self.place.head, self.ring.offset());
        let overflowed = left == 0 && port.status()?.intersects(self.place.overflow);
        if overflowed {
            self.restart(port)?;
        }
        // A full log drops the next entries. QEMU does so without setting the overflow bit.
        let full = waiting + 1 >= self.ring.entries();
        Ok(lost + u32::from(overflowed || full))
    }

    /// The next entry. The unit may move its pointer before the entry is in memory. Entries are cleared when they are
    /// read, so an entry has arrived when it has a code. `None` if it does not arrive in time.
    fn entry<R: RegisterIo, C: Clock, M: TableMemory>(
        &self,
        port: &mut Port<R, C>,
        memory: &M,
        limit: Nanos,
    ) -> Option<[u64; 2]> {
        poll::until(&mut port.clock, limit, || {
            let entry = self.ring.peek(memory);
            (layout::code_of(entry[0]) != 0).then_some(entry)
        })
    }

    /// Restarts a log that overflowed (48882 section 2.5.1, "Event Log Restart Procedure"): off, wait until it
    /// stopped, clear the overflow, on, wait until it runs. All of its entries have been read; the pointers stay.
    fn restart<R: RegisterIo, C: Clock>(&self, port: &mut Port<R, C>) -> Result<(), UnitError> {
        let control = port.control;
        port.set_control(control - self.place.on);
        let stopped = port.wait_clear(self.place.running, self.place.stop);
        port.write(registers::STATUS, self.place.overflow.bits());
        port.set_control(control);
        stopped?;
        port.wait_set(self.place.running, self.place.start)
    }
}
