//! The command ring. Commands are submitted together with a wait, and calls return only after the wait is done.

use super::port::Port;
use super::spec::command;
use super::spec::registers::{self, Control, Status};
use crate::addr::{Iova, IovaRange, PAGE_SIZE};
use crate::hw::hal::{Clock, MemoryError, Nanos, RegisterIo, TableMemory};
use crate::hw::poll;
use crate::hw::ring::{Ring, Semaphore};
use crate::hw::unit::UnitError;
use crate::hw::waits::Invalidations;
use crate::topology::capabilities::DomainTag;

/// Frames of the ring, and the log2 of its entries.
pub(super) const FRAMES: usize = 1;
const LENGTH: u8 = 8;

/// Entries that stay free: 0x20 bytes (48882 section 2.4, for units that read one command ahead).
const FREE: usize = 2;

/// Deadline for commands.
const LIMIT: Nanos = Nanos(100_000_000);

/// Reads of the semaphore for each read of the status register.
const LOOKS: u32 = 64;

/// The ring, and the word that waits write.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    ring: Ring,
    done: Semaphore,
    coherent: bool,
    pub(super) told: Invalidations,
}

/// How a submission ended.
enum End {
    Done,
    /// The unit stopped: a command was illegal or could not be read.
    Stopped(Status),
}

impl Commands {
    /// An empty ring.
    ///
    /// # Errors
    /// `Exhausted`.
    pub(super) fn allocate<M: TableMemory>(
        memory: &mut M,
        coherent: bool,
    ) -> Result<Self, MemoryError> {
        let ring = Ring::allocate(memory, FRAMES)?;
        let done = Semaphore::allocate(memory, u64::MAX)?;
        Ok(Self { ring, done, coherent, told: Invalidations::default() })
    }

    /// Gives the ring to a unit that is not taking commands.
    pub(super) fn install<R: RegisterIo, C: Clock>(&mut self, port: &mut Port<R, C>) {
        port.write(registers::COMMAND_BASE, registers::ring_base(self.ring.base().0, LENGTH));
        self.reset(port);
    }

    /// Starts over at the ring's first entry. The unit must not be taking commands.
    fn reset<R: RegisterIo, C: Clock>(&mut self, port: &mut Port<R, C>) {
        self.ring.set_offset(0);
        port.write(registers::COMMAND_HEAD, 0);
        port.write(registers::COMMAND_TAIL, 0);
    }

    /// Gives up an unanswered wait. The unit must not be taking commands, so that it cannot answer late.
    pub(super) fn give_up_wait<M: TableMemory>(&self, memory: &mut M) {
        self.done.answer(memory);
    }

    /// Executes commands, in as many rounds as needed, each with its wait.
    ///
    /// # Errors
    /// `Timeout`, `Dead`, and `Queue` when the unit stopped twice over the same commands.
    pub(super) fn execute<R: RegisterIo, C: Clock, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
        commands: impl IntoIterator<Item = [u64; 2]>,
    ) -> Result<(), UnitError> {
        let mut commands = commands.into_iter();
        let round = self.ring.entries() - FREE - 1;
        let mut batch = alloc::vec::Vec::new();
        loop {
            batch.clear();
            batch.extend(commands.by_ref().take(round));
            if batch.is_empty() {
                return Ok(());
            }
            self.round(port, memory, &batch)?;
        }
    }

    /// Executes commands that fit in the ring at once. A unit that stops is restarted and gets them once more.
    pub(super) fn round<R: RegisterIo, C: Clock, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
        commands: &[[u64; 2]],
    ) -> Result<(), UnitError> {
        // A wait that timed out before may still be pending. The ring is not empty until it is done.
        self.settle(port, memory)?;
        if let End::Stopped(_) = self.submit(port, memory, commands)? {
            self.restart(port)?;
            if let End::Stopped(status) = self.submit(port, memory, commands)? {
                let what = "command ring stopped on an illegal or unreadable command";
                return Err(UnitError::Queue { what, status: status.bits() });
            }
        }
        Ok(())
    }

    fn submit<R: RegisterIo, C: Clock, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
        commands: &[[u64; 2]],
    ) -> Result<End, UnitError> {
        self.told.given(commands.len());
        for command in commands {
            self.ring.put(memory, *command, self.coherent);
        }
        let value = self.done.advance();
        let wait = command::completion_wait(self.done.address().0, value);
        self.ring.put(memory, wait, self.coherent);
        // This store hands the commands to the unit.
        port.write(registers::COMMAND_TAIL, self.ring.offset());
        let ended = self.settle(port, memory);
        match &ended {
            Ok((End::Done, took)) => self.told.done(*took),
            _ => self.told.not_done(),
        }
        ended.map(|(end, _)| end)
    }

    /// Waits until the latest wait is done, or the unit has stopped. Also returns the time from the first look to the
    /// last; `None` when they are the same.
    fn settle<R: RegisterIo, C: Clock, M: TableMemory>(
        &self,
        port: &mut Port<R, C>,
        memory: &M,
    ) -> Result<(End, Option<Nanos>), UnitError> {
        let Port { registers, clock, .. } = port;
        let mut looks = 0;
        let end = poll::until_timed(clock, LIMIT, || {
            if self.done.reached(memory) {
                return Some(Ok(End::Done));
            }
            looks = (looks + 1) % LOOKS;
            if looks != 0 {
                return None;
            }
            match registers.read64(registers::STATUS) {
                u64::MAX => Some(Err(UnitError::Dead)),
                status => {
                    let status = Status::from_bits_retain(status);
                    let stopped = !status.contains(Status::COMMANDS_RUN);
                    stopped.then_some(Ok(End::Stopped(status)))
                }
            }
        });
        match end {
            Some((end, took)) => end.map(|end| (end, took)),
            None => match port.status()? {
                status if status.contains(Status::COMMANDS_RUN) => {
                    Err(UnitError::Timeout { what: "completion of commands" })
                }
                status => Ok((End::Stopped(status), None)),
            },
        }
    }

    /// Restarts a stopped unit with an empty ring.
    fn restart<R: RegisterIo, C: Clock>(&mut self, port: &mut Port<R, C>) -> Result<(), UnitError> {
        port.set_control(port.control - Control::COMMANDS);
        port.wait_clear(Status::COMMANDS_RUN, "command ring to stop")?;
        self.reset(port);
        port.set_control(port.control | Control::COMMANDS);
        port.wait_set(Status::COMMANDS_RUN, "command ring to start")
    }
}

/// Builds the command that invalidates everything of a domain.
pub(super) const fn whole_domain(tag: DomainTag) -> [u64; 2] {
    command::invalidate_pages(tag.0, command::EVERYTHING, true, true)
}

/// Builds the command that invalidates the smallest power of two of pages around `range` that a command can name.
pub(super) fn pages(tag: DomainTag, range: IovaRange, upper_levels: bool) -> [u64; 2] {
    let (address, sized) = cover(range.page_aligned());
    command::invalidate_pages(tag.0, address, sized, upper_levels)
}

/// The address field and S for whole pages (48882 section 2.2.3, page size encodings). The first and the last address
/// agree above some bit. In the field that bit is clear, as in the first address, and all bits below it are set.
fn cover(range: IovaRange) -> (u64, bool) {
    let (Iova(first), Iova(last)) = (range.first(), range.last());
    if last - first < PAGE_SIZE {
        return (first, false);
    }
    match (first ^ last).ilog2() {
        // The encoding of a larger size means everything.
        high if high > 50 => (command::EVERYTHING, true),
        high => (first | ((1 << high) - 1), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(first: u64, length: u64) -> (u64, bool) {
        let range = IovaRange::new(Iova(first), length).unwrap();
        let [_, second] = pages(DomainTag(1), range, false);
        (second & !0xfff, second & 1 != 0)
    }

    /// 48882 table "Example Page Size Encodings": with S set, the lowest clear bit from 12 on, bit n, gives
    /// 2^(n+1) bytes. Linux build_inv_address gives the same for the same ranges.
    #[test]
    fn sizes() {
        assert_eq!(of(0x7000, 0x1000), (0x7000, false));
        assert_eq!(of(0x4000, 0x2000), (0x4000, true));
        assert_eq!(of(0x4000, 0x4000), (0x5000, true));
        // Two pages across a boundary: 16 KiB.
        assert_eq!(of(0x1000, 0x2000), (0x1000, true));
        assert_eq!(of(0x3000, 0x2000), (0x3000, true));
        assert_eq!(of(0x20_0000, 0x20_0000), (0x2f_f000, true));
        assert_eq!(of(0x4000_0000, 0x4000_0000), (0x5fff_f000, true));
        // Across 4 GiB: 8 GiB from 0 on.
        assert_eq!(of(0xffff_f000, 0x2000), (0xffff_f000, true));
        assert_eq!(of(0, 1 << 51), (0x0003_ffff_ffff_f000, true));
        assert_eq!(of(0, 1 << 52), (0x7fff_ffff_ffff_f000, true));
        assert_eq!(of(0, u64::MAX), (0x7fff_ffff_ffff_f000, true));
    }

    /// The range that a unit decodes covers the given range. Unless it is "everything", no smaller one would.
    #[test]
    fn covers() {
        let decode = |address: u64| {
            let size = 2u64 << (address | 0xfff).trailing_ones();
            (address & !(size - 1), size)
        };
        for (first, pages) in [(0, 2), (1, 2), (3, 2), (7, 9), (511, 2), (512, 512), (0xf_ffff, 2)]
        {
            let (address, sized) = of(first << 12, pages << 12);
            assert!(sized);
            let (start, size) = decode(address);
            let end = (first + pages) << 12;
            assert!(start <= first << 12 && end <= start + size, "{first:#x} {pages}");
            let half = size / 2;
            assert!(
                first << 12 < start + half && end > start + half,
                "{first:#x} {pages}: too large"
            );
        }
    }
}
