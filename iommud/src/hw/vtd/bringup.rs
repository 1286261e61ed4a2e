//! From a unit as firmware or a previous owner left it to one that translates with our tables.
//!
//! ```text
//! bring_up  identify -> faults masked and cleared -> old queue drained and stopped -> our queue on
//! (policy writes every entry)
//! enable    RTADDR, SRTP -> context cache and IOTLB, all -> TE (if it was off) -> protected ranges off
//! ```
//!
//! Translation that is on stays on. Until the root pointer is swapped the old tables translate; between the
//! swap and the end of the global invalidations a request may be translated by either (section 6.6), which
//! is never more than the old owner and the policy allow together. Domain ids of the old owner mean nothing
//! here and are forgotten by the same invalidations. A unit with ESRTPS does both in one step; the explicit
//! invalidations cost it nothing and are not left out.

use core::marker::PhantomData;

use super::port::{LIMIT, Port};
use super::queue::Queue;
use super::spec::capability::{Capability, ExtendedCapability};
use super::spec::descriptor;
use super::spec::register::{
    CAPABILITY, COMPLETION_CONTROL, EXTENDED_CAPABILITY, FAULT_CONTROL, FAULT_LOG, INTERRUPT_MASK,
    IO_RIGHTS, QUEUE, QUEUE_ADDRESS, QUEUE_HEAD, QUEUE_TAIL, ROOT_TABLE, SET_ROOT, TABLE_MODE,
    TRANSLATION, VERSION,
};
use super::unit::{Phase, VtdUnit};
use crate::addr::PhysAddr;
use crate::hw::seams::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::UnitError;

/// Levels 3, 4 and 5 in SAGAW.
const USABLE_WIDTHS: u8 = 0b1110;

/// Addresses in registers: bits 63:12.
const ADDRESS: u64 = !0xfff;

/// The widest physical address that tables can hold.
const MOST_HOST_BITS: u8 = 52;

/// Where a unit was told that its root table and its queue are (sections 11.4.5 and 11.4.9.3). Of
/// whoever owned it last; whether it uses them is not looked at.
pub fn addresses_told(registers: &mut impl RegisterIo) -> [PhysAddr; 2] {
    [ROOT_TABLE, QUEUE_ADDRESS].map(|register| PhysAddr(registers.read64(register) & ADDRESS))
}

impl<R: RegisterIo, C: Clock, M: TableMemory> VtdUnit<R, C, M> {
    /// Takes a unit over as far as taking entries. `host_bits` is the host address width that firmware
    /// states (DMAR, "Host Address Width" + 1). Translation stays as it is: off, or on with the old tables.
    ///
    /// As [`VtdUnit::prepare`] and [`VtdUnit::take_over`].
    ///
    /// # Errors
    /// `Dead`, `Unsupported` and `Memory` before the unit was touched; `Timeout`, `Queue` when it does not
    /// do what it is told: what it translates is then as it was.
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

    /// Looks at what the unit can do, and allocates the three frames that it needs, which are never given back.
    /// Nothing is written to it. [`VtdUnit::take_over`] is next; if that fails, [`crate::hw::Unit::revive`] may be
    /// tried later.
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
        let version = port.registers.read32(VERSION);
        let capability = Capability(port.registers.read64(CAPABILITY));
        let extended = ExtendedCapability(port.registers.read64(EXTENDED_CAPABILITY));
        if version == u32::MAX || capability.0 == u64::MAX || extended.0 == u64::MAX {
            return Err(UnitError::Dead);
        }
        let status = port.status()?;
        let old_root = port.registers.read64(ROOT_TABLE);
        check(capability, extended, status, old_root)?;
        let root = memory.allocate_run(1)?;
        let queue = Queue::allocate(memory)?;
        Ok(Self {
            port,
            queue,
            version,
            capability,
            extended,
            host_bits: host_bits.min(MOST_HOST_BITS),
            root,
            phase: Phase::Preparing,
            root_changed: false,
            next_fault: None,
            memory: PhantomData,
        })
    }

    /// Takes a unit over from whoever had it before, as far as taking entries.
    ///
    /// # Errors
    /// `Dead`, `Timeout`, `Queue`: what it translates is as it was.
    pub fn take_over(&mut self, memory: &mut M) -> Result<(), UnitError> {
        let old_root = self.port.registers.read64(ROOT_TABLE);
        self.silence()?;
        self.stop_old_queue()?;
        self.start_queue()?;
        // In other modes the unit takes only descriptors of the other width; `enable` tries the queue then.
        if old_root & TABLE_MODE == 0 {
            self.invalidate(memory, &[])?;
        }
        Ok(())
    }

    /// Masks the unit's interrupts and clears what it has recorded for its previous owner.
    pub(super) fn silence(&mut self) -> Result<(), UnitError> {
        self.port.registers.write32(FAULT_CONTROL, INTERRUPT_MASK);
        self.port.registers.write32(COMPLETION_CONTROL, INTERRUPT_MASK);
        if self.port.status()? & FAULT_LOG != 0 {
            self.port.switch_off(FAULT_LOG, "the fault log to stop")?;
        }
        self.forget_faults()
    }

    /// Lets the previous owner's queue run dry and stops it (section 6.5.2). What a stuck one still holds
    /// is given up: `enable` invalidates everything.
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
        // What it was stopped at must not be taken for an error of ours.
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

    /// Makes the unit use the root table at `root`, in legacy mode (sections 6.6 and 11.4.5). From here on
    /// hardware may read our tables: they are complete.
    fn set_root(&mut self, root: PhysAddr) -> Result<(), UnitError> {
        self.port.registers.write64(ROOT_TABLE, root.0);
        self.port.switch_on(SET_ROOT, "the root table to be taken")
    }
}

/// Refuses what cannot be driven.
fn check(
    capability: Capability,
    extended: ExtendedCapability,
    status: u32,
    old_root: u64,
) -> Result<(), UnitError> {
    if !extended.queued_invalidation() {
        return Err(UnitError::Unsupported { what: "queued invalidation (ECAP.QI)" });
    }
    if capability.widths() & USABLE_WIDTHS == 0 {
        return Err(UnitError::Unsupported {
            what: "second-stage tables of 3 to 5 levels (SAGAW)",
        });
    }
    // Section 11.4.5: the mode of a unit that translates may change only with ESRTPS.
    let other_mode = old_root & (TABLE_MODE | IO_RIGHTS) != 0;
    if status & TRANSLATION != 0 && other_mode && !capability.enhanced_root() {
        return Err(UnitError::Unsupported { what: "taking over from scalable mode (ESRTPS)" });
    }
    Ok(())
}
