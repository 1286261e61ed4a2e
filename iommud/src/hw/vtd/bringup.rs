//! Takes a unit, as firmware or a previous owner left it, to where it translates with our tables.
//!
//! ```text
//! bring_up  identify -> faults masked and cleared -> old queue drained and stopped -> our queue on
//! (policy writes every entry)
//! enable    RTADDR, SRTP -> context cache and IOTLB, all -> TE (if it was off) -> protected ranges off
//! ```
//!
//! Translation that is on stays on. Until the root pointer is swapped, the old tables translate. Between the swap and
//! the end of the global invalidations, the entries of either owner may translate a request (section 6.6). Until then
//! the IOTLB also holds translations of the old owner under its domain ids. They would serve an entry of ours with
//! one of these ids: its device would reach memory that the old owner granted to another device. So entries written
//! before `enable` must have domain ids that the old owner did not use (see [`crate::topology::tags`]). Then a
//! request reaches only memory that one of the two owners grants to its source. A unit with ESRTPS does both in one
//! step. There the explicit invalidations cost nothing, and they are not left out.

use core::marker::PhantomData;

use super::port::{LIMIT, Port};
use super::queue::Queue;
use super::spec::descriptor;
use super::spec::register::{
    COMPLETION_CONTROL, FAULT_CONTROL, FAULT_LOG, INTERRUPT_MASK, QUEUE, QUEUE_ADDRESS, QUEUE_HEAD,
    QUEUE_TAIL, ROOT_TABLE, SET_ROOT, TABLE_MODE, TRANSLATION,
};
use super::survey::{Identity, RUNS, capabilities, identify, usable_host_bits};
use super::unit::{Phase, VtdUnit};
use crate::addr::PhysAddr;
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::{Survey, UnitError};

/// Addresses in registers: bits 63:12.
const ADDRESS: u64 = !0xfff;

/// Reads the addresses of the root table and the queue that the unit's previous owner set (sections 11.4.5 and
/// 11.4.9.3). It does not check whether the unit uses them.
pub fn addresses_told(registers: &mut impl RegisterIo) -> [PhysAddr; 2] {
    [ROOT_TABLE, QUEUE_ADDRESS].map(|register| PhysAddr(registers.read64(register) & ADDRESS))
}

impl<R: RegisterIo, C: Clock, M: TableMemory> VtdUnit<R, C, M> {
    /// Identifies the unit, as [`VtdUnit::bring_up`] will find it. Writes nothing and waits for nothing.
    ///
    /// # Errors
    /// `Dead`, `Unsupported`: bring-up would fail in the same way.
    pub fn survey(registers: R, clock: C, host_bits: u8) -> Result<Survey, UnitError> {
        let identity = identify(&mut Port { registers, clock, limit: LIMIT })?;
        let host_bits = usable_host_bits(host_bits);
        Ok(Survey {
            capabilities: capabilities(identity.capability, identity.extended, host_bits),
            coherence_known: true,
            runs: RUNS,
            frame_per_bus: true,
        })
    }

    /// Takes a unit over until it accepts entries: [`VtdUnit::prepare`], then [`VtdUnit::take_over`]. `host_bits` is
    /// the host address width that firmware states (DMAR, "Host Address Width" + 1). Translation stays as it is: off,
    /// or on with the old tables.
    ///
    /// # Errors
    /// `Dead`, `Unsupported` and `Memory` before the unit is changed. `Timeout` and `Queue` when it does not obey; it
    /// then translates as before.
    pub fn bring_up(
        registers: R,
        clock: C,
        memory: &mut M,
        host_bits: u8,
    ) -> Result<Self, UnitError> {
        let mut unit = Self::prepare(registers, clock, memory, host_bits)?;
        unit.take_over(memory)?;
        Ok(unit)
    }

    /// Reads the capabilities of the unit, and allocates its three frames, which are never freed. Nothing is written
    /// to the unit. Call [`VtdUnit::take_over`] next; if that fails, [`crate::hw::Unit::revive`] can be tried later.
    ///
    /// # Errors
    /// `Dead`, `Unsupported`, `Memory`.
    pub fn prepare(
        registers: R,
        clock: C,
        memory: &mut M,
        host_bits: u8,
    ) -> Result<Self, UnitError> {
        let mut port = Port { registers, clock, limit: LIMIT };
        let Identity { version, capability, extended, translating } = identify(&mut port)?;
        let root = memory.allocate_run(1)?;
        let queue = Queue::allocate(memory)?;
        Ok(Self {
            port,
            queue,
            version,
            capability,
            extended,
            host_bits: usable_host_bits(host_bits),
            root,
            phase: Phase::Preparing,
            found_translating: translating,
            root_changed: false,
            next_fault: None,
            memory: PhantomData,
        })
    }

    /// Takes the unit over from its previous owner, until it accepts entries.
    ///
    /// # Errors
    /// `Dead`, `Timeout`, `Queue`: the unit translates as before.
    pub fn take_over(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let old_root = self.port.registers.read64(ROOT_TABLE);
        self.mask_interrupts()?;
        self.stop_old_queue()?;
        self.start_queue()?;
        // In other table modes the unit accepts only 256-bit descriptors. There `enable` is the first use of the
        // queue.
        if old_root & TABLE_MODE == 0 {
            self.invalidate(memory, &[])?;
        }
        Ok(())
    }

    /// Masks the unit's interrupts and clears the faults that it recorded for its previous owner.
    pub(super) fn mask_interrupts(&mut self) -> Result<(), UnitError> {
        self.port.registers.write32(FAULT_CONTROL, INTERRUPT_MASK);
        self.port.registers.write32(COMPLETION_CONTROL, INTERRUPT_MASK);
        if self.port.status()? & FAULT_LOG != 0 {
            self.port.switch_off(FAULT_LOG, "the fault log to stop")?;
        }
        self.forget_faults()
    }

    /// Lets the previous owner's queue run empty and stops it (section 6.5.2). The descriptors in a stuck queue are
    /// given up, because `enable` invalidates everything.
    fn stop_old_queue(&mut self) -> Result<(), UnitError> {
        if self.port.status()? & QUEUE == 0 {
            return Ok(());
        }
        let tail = self.port.registers.read32(QUEUE_TAIL);
        let drained =
            self.port.wait_for(QUEUE_HEAD, "the old invalidation queue", |head| head == tail);
        match drained {
            Err(UnitError::Timeout { .. }) => {
                let head = self.port.registers.read32(QUEUE_HEAD);
                self.port.registers.write32(QUEUE_TAIL, head);
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        self.port.switch_off(QUEUE, "the old invalidation queue to stop")?;
        // Otherwise an error of the old queue would be taken for one of ours.
        self.forget_errors()
    }

    /// Starts our queue: 256 descriptors of 128 bits, which is QS 0 and DW 0.
    pub(super) fn start_queue(&mut self) -> Result<(), UnitError> {
        self.port.registers.write32(QUEUE_TAIL, 0);
        self.port.registers.write64(QUEUE_ADDRESS, self.queue.base().0);
        self.port.switch_on(QUEUE, "the invalidation queue to start")
    }

    /// See [`crate::hw::Unit::enable`].
    pub(super) fn start_translation(&mut self, memory: &mut M) -> Result<(), UnitError> {
        if self.phase == Phase::Translating {
            return Ok(());
        }
        if self.capability.write_buffer() {
            self.port.flush_write_buffer()?;
        }
        self.phase = Phase::Told;
        self.set_root(self.root)?;
        let drain = self.drain();
        self.invalidate(memory, &[descriptor::context_global(), descriptor::iotlb_global(drain)])?;
        if self.port.status()? & TRANSLATION == 0 {
            self.port.switch_on(TRANSLATION, "translation to start")?;
        }
        if self.capability.protected_memory() {
            self.port.unprotect_memory()?;
        }
        self.phase = Phase::Translating;
        Ok(())
    }

    /// Makes the unit use the root table at `root`, in legacy mode (sections 6.6 and 11.4.5). From here on the
    /// hardware may read our tables, which are complete.
    fn set_root(&mut self, root: PhysAddr) -> Result<(), UnitError> {
        self.port.registers.write64(ROOT_TABLE, root.0);
        self.port.switch_on(SET_ROOT, "the root table to be taken")
    }
}
