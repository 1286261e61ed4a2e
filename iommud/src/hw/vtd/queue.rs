//! The invalidation queue (section 6.5.2). A request is a list of descriptors, followed by one wait. It is done when
//! the unit has written the wait's value.
//!
//! The queue is empty between requests, since each one is waited for. A request fills at most half of the queue. So a
//! request that was aborted fits in again behind its own remains. The unit executes IOTLB invalidations only after
//! the context-cache invalidations before them (section 6.5.2.12), so that no fence is needed in between.

use super::port::Port;
use super::spec::descriptor::{self, Descriptor};
use super::spec::register::{
    COMPLETION_ERROR, FAULT_STATUS, QUEUE_ERROR, QUEUE_HEAD, QUEUE_TAIL, TIMEOUT_ERROR,
};
use crate::addr::PhysAddr;
use crate::hw::hal::{Clock, MemoryError, RegisterIo, TableMemory};
use crate::hw::poll;
use crate::hw::ring::{Ring, Semaphore};
use crate::hw::unit::UnitError;
use crate::hw::waits::Invalidations;

/// Most descriptors of a request, its wait included.
const LONGEST: usize = 127;

/// Reads of the status word before the error bits are read as well.
const PATIENCE: u32 = 8;

/// How a wait ended.
enum Outcome {
    Done,
    /// A device TLB did not answer, and the unit dropped the waits it had pending.
    Aborted {
        /// The fault status register at that moment.
        status: u32,
    },
}

/// A queue of 256 descriptors and the word its waits write.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    ring: Ring,
    done: Semaphore,
    pub(super) told: Invalidations,
}

impl Queue {
    /// Allocates a queue. The unit is not given it yet.
    pub(super) fn allocate<M: TableMemory>(memory: &mut M) -> Result<Self, MemoryError> {
        let ring = Ring::allocate(memory, 1)?;
        let done = Semaphore::allocate(memory, u32::MAX.into())?;
        Ok(Self { ring, done, told: Invalidations::default() })
    }

    /// Begins at the first descriptor again. The unit must not be taking any. The values of waits keep counting up,
    /// so that a late answer is not taken for a new one.
    pub(super) fn restart(&mut self) {
        self.ring.set_offset(0);
    }

    /// Address of the queue.
    pub(super) const fn base(&self) -> PhysAddr {
        self.ring.base()
    }

    /// Submits `request` and waits until the unit has done it.
    ///
    /// # Errors
    /// `Timeout`, `Dead`; `Queue` when the unit refused a descriptor, or when a device twice did not answer.
    #[inline(always)]
    pub(super) fn submit<R: RegisterIo, C: Clock, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
        request: &[Descriptor],
    ) -> Result<(), UnitError> {
        if request.len() >= LONGEST {
            return Err(UnitError::Unsupported { what: "a request longer than half the queue" });
        }
        self.put(port, memory, request);
        if self.done.reached(memory) {
            self.told.done_at_once();
            return Ok(());
        }
        self.see_through(port, memory, request)
    }

    /// Waits until the unit has done `request`, which was submitted. Submits it once more if the unit aborted it.
    #[inline(never)]
    fn see_through<R: RegisterIo, C: Clock, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
        request: &[Descriptor],
    ) -> Result<(), UnitError> {
        match self.wait(port, memory)? {
            Outcome::Done => return Ok(()),
            Outcome::Aborted { .. } => self.put(port, memory, request),
        }
        match self.wait(port, memory)? {
            Outcome::Done => Ok(()),
            Outcome::Aborted { status } => Err(UnitError::Queue {
                what: "a device did not answer an invalidation",
                status: status.into(),
            }),
        }
    }

    /// Writes the descriptors and their wait, and hands them to the unit. The unit always reads the queue through the
    /// caches, even if it does not read tables so (ECAP.C, section 11.4.3).
    #[inline(always)]
    fn put<R: RegisterIo, C, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
        request: &[Descriptor],
    ) {
        self.told.given(request.len());
        // The mask limits the value to 32 bits.
        let value = u32::try_from(self.done.advance()).unwrap_or(0);
        let wait = descriptor::wait(self.done.address(), value);
        match request {
            [] => self.ring.put(memory, wait, true),
            [before @ .., last] => {
                for descriptor in before {
                    self.ring.put(memory, *descriptor, true);
                }
                self.ring.put_two(memory, [*last, wait], true);
            }
        }
        port.registers.write32(QUEUE_TAIL, self.tail());
    }

    /// Waits until the unit has written the latest value.
    #[inline(never)]
    fn wait<R: RegisterIo, C: Clock, M: TableMemory>(
        &mut self,
        port: &mut Port<R, C>,
        memory: &mut M,
    ) -> Result<Outcome, UnitError> {
        let mut looks = 0;
        let mut refused = None;
        let Port { registers, clock, limit } = port;
        let seen = poll::until_timed(clock, *limit, || {
            if self.done.reached(memory) {
                return Some(Ok(Outcome::Done));
            }
            looks += 1;
            if looks < PATIENCE { None } else { self.check(registers, memory, &mut refused) }
        });
        match &seen {
            Some((Ok(Outcome::Done), took)) => self.told.done(*took),
            _ => self.told.not_done(),
        }
        match (seen.map(|(seen, _)| seen), refused) {
            (Some(Ok(Outcome::Aborted { status })), _) => Ok(Outcome::Aborted { status }),
            (Some(Err(error)), _) => Err(error),
            (_, Some(status)) => {
                Err(UnitError::Queue { what: "the unit refused an invalidation", status })
            }
            (Some(Ok(done)), None) => Ok(done),
            (None, None) => Err(UnitError::Timeout { what: "an invalidation" }),
        }
    }

    /// Checks for errors (section 6.5.2.11) and clears them, so that the queue goes on.
    fn check<R: RegisterIo, M: TableMemory>(
        &self,
        registers: &mut R,
        memory: &mut M,
        refused: &mut Option<u64>,
    ) -> Option<Result<Outcome, UnitError>> {
        let status = registers.read32(FAULT_STATUS);
        if status == u32::MAX {
            return Some(Err(UnitError::Dead));
        }
        if status & QUEUE_ERROR != 0 {
            let bad = self.replace_head(registers, memory);
            refused.get_or_insert(bad);
            registers.write32(FAULT_STATUS, QUEUE_ERROR);
        }
        if status & COMPLETION_ERROR != 0 {
            registers.write32(FAULT_STATUS, COMPLETION_ERROR);
        }
        if status & TIMEOUT_ERROR != 0 {
            registers.write32(FAULT_STATUS, TIMEOUT_ERROR);
            return Some(Ok(Outcome::Aborted { status }));
        }
        None
    }

    /// Replaces the descriptor at the head by a harmless one: a wait that writes a word which is never read. Returns
    /// the low word of the replaced descriptor.
    fn replace_head<R: RegisterIo, M: TableMemory>(
        &self,
        registers: &mut R,
        memory: &mut M,
    ) -> u64 {
        let (frame, word) = self.ring.place_at(registers.read32(QUEUE_HEAD).into());
        let bad = memory.load(frame, word);
        let [low, high] = descriptor::wait(self.done.spare(), 0);
        memory.store(frame, word, low);
        memory.store(frame, word + 1, high);
        bad
    }

    /// IQT, a byte offset below 4096.
    fn tail(&self) -> u32 {
        u32::try_from(self.ring.offset()).unwrap_or(0)
    }
}
