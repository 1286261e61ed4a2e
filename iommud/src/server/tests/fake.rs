//! A unit, memory of buffers and a bus that do what a test sets, and note what they are told.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::fmt::{self, Write};

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::wire::Access;

use crate::addr::{IovaRange, PhysAddr, PhysRange};
use crate::hw::page_table::{PteFormat, PteSlot};
use crate::hw::testing::TestMemory;
use crate::hw::{
    BufferMemory, BufferPool, Constraints, Entry, HardwareFault, MemoryError, Unit, UnitError,
};
use crate::server::Discovery;
use crate::topology::capabilities::{DomainTag, LevelSet, PageSizes, UnitCapabilities};
use crate::topology::pci::PciFunction;

/// An act of a server on a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Done {
    /// An entry that denies.
    Blocked(RequesterId),
    /// An entry that does not.
    Opened(RequesterId),
    /// Translation was turned on.
    On,
}

/// The state of a fake unit.
#[derive(Default)]
pub(in crate::server) struct Hardware {
    /// Every command from now on fails.
    pub(in crate::server) dead: bool,
    /// It translated for its previous owner.
    pub(in crate::server) translating: bool,
    /// It can send messages.
    pub(in crate::server) sends: bool,
    /// The messages that it was to send.
    pub(in crate::server) messages: Vec<(u64, u32)>,
    /// The faults that the next calls find, and how many were lost.
    pub(in crate::server) faults: VecDeque<(Vec<HardwareFault>, u32)>,
    /// How often it was asked for faults.
    pub(in crate::server) asked: u32,
    /// Everything that was done, in order.
    pub(in crate::server) done: Vec<Done>,
}

/// The fake unit; clones share its state.
#[derive(Clone, Default)]
pub(in crate::server) struct FakeUnit(Rc<RefCell<Hardware>>);

impl FakeUnit {
    /// Changes or reads its state.
    pub(in crate::server) fn change<T>(&self, change: impl FnOnce(&mut Hardware) -> T) -> T {
        change(&mut self.0.borrow_mut())
    }

    fn command(&self) -> Result<(), UnitError> {
        if self.0.borrow().dead { Err(UnitError::Dead) } else { Ok(()) }
    }
}

/// A write to an address of which nothing is known.
pub(super) fn fault(source: RequesterId) -> HardwareFault {
    HardwareFault {
        source,
        address: None,
        access: FaultAccess::Write,
        reason: 5,
        words: "write without permission",
    }
}

/// Entries: address, 8 for a table, else 4 and the access.
pub(in crate::server) enum Format {}

impl PteFormat for Format {
    fn leaf(phys: PhysAddr, access: Access, _: u8) -> u64 {
        phys.0 | 4 | u64::from(access.bits())
    }

    fn table(next: PhysAddr, _: u8) -> u64 {
        next.0 | 8
    }

    fn decode(entry: u64, _: u8) -> PteSlot {
        let phys = PhysAddr(entry & !0xfff);
        let access = [Access::empty(), Access::READ, Access::WRITE, Access::all()];
        match entry & 0xc {
            0 => PteSlot::Empty,
            8 => PteSlot::Table(phys),
            _ => PteSlot::Leaf { phys, access: access[usize::try_from(entry & 3).unwrap()] },
        }
    }
}

impl Unit for FakeUnit {
    type Memory = TestMemory;
    type Format = Format;

    /// Five frames in all.
    const RUNS: &'static [usize] = &[4, 1];

    fn capabilities(&self) -> UnitCapabilities {
        UnitCapabilities {
            levels: LevelSet::FOUR,
            page_sizes: PageSizes::all(),
            coherent: true,
            forces_snoop: true,
            caches_absent: false,
            publishes: false,
            last_tag: 100,
            pass_through: true,
            physical_bits: 46,
            iova_bits: 48,
            deepens: false,
        }
    }

    fn found_translating(&self) -> bool {
        self.0.borrow().translating
    }

    fn write_entry(
        &mut self,
        _: &mut TestMemory,
        source: RequesterId,
        entry: Entry,
    ) -> Result<(), UnitError> {
        let done = if entry == Entry::Blocked { Done::Blocked } else { Done::Opened };
        self.0.borrow_mut().done.push(done(source));
        Ok(())
    }

    fn suppress_faults(
        &mut self,
        _: &mut TestMemory,
        _: RequesterId,
        _: bool,
    ) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate_entry(
        &mut self,
        _: &mut TestMemory,
        _: RequesterId,
        _: Option<DomainTag>,
    ) -> Result<(), UnitError> {
        self.command()
    }

    fn publish_pages(
        &mut self,
        _: &mut TestMemory,
        _: DomainTag,
        _: IovaRange,
    ) -> Result<(), UnitError> {
        self.command()
    }

    fn invalidate_pages(
        &mut self,
        _: &mut TestMemory,
        _: DomainTag,
        _: IovaRange,
        _: bool,
    ) -> Result<(), UnitError> {
        self.command()
    }

    fn enable(&mut self, _: &mut TestMemory) -> Result<(), UnitError> {
        self.command()?;
        self.0.borrow_mut().done.push(Done::On);
        Ok(())
    }

    fn revive(&mut self, _: &mut TestMemory) -> Result<(), UnitError> {
        self.command()
    }

    fn take_faults(
        &mut self,
        _: &mut TestMemory,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        self.command()?;
        let mut unit = self.0.borrow_mut();
        unit.asked += 1;
        let (faults, lost) = unit.faults.pop_front().unwrap_or_default();
        assert!(faults.len() <= limit);
        faults.into_iter().for_each(sink);
        Ok(lost)
    }

    fn enable_fault_interrupt(&mut self, address: u64, data: u32) -> Result<(), UnitError> {
        let mut unit = self.0.borrow_mut();
        if !unit.sends {
            return Err(UnitError::Unsupported { what: "messages" });
        }
        unit.messages.push((address, data));
        Ok(())
    }

    fn describe(&mut self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "registers: none")
    }
}

/// Memory of buffers, from 1 GiB on. Nothing is used twice.
#[derive(Default)]
pub(in crate::server) struct Buffers {
    next: u64,
}

impl BufferMemory for Buffers {
    type Share = ();

    fn allocate(
        &mut self,
        _: u32,
        length: u64,
        _: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        let first = PhysAddr((1 << 30) + self.next);
        self.next += length;
        PhysRange::new(first, length).map(|range| vec![range]).ok_or(MemoryError::Exhausted)
    }

    fn release(&mut self, _: u32) {}

    fn pool(&self) -> BufferPool {
        BufferPool::UNLIMITED
    }

    fn share(&mut self, _: u32) -> Option<()> {
        None
    }
}

/// The functions that a walk finds; clones share them.
#[derive(Clone, Default)]
pub(super) struct Bus {
    pub(super) there: Rc<RefCell<Vec<PciFunction>>>,
    pub(super) walks: Rc<Cell<u32>>,
}

impl Discovery for Bus {
    fn walk(&mut self) -> Option<Vec<PciFunction>> {
        self.walks.set(self.walks.get() + 1);
        Some(self.there.borrow().clone())
    }

    fn answers(&mut self, address: PciAddress) -> bool {
        self.there.borrow().iter().any(|function| function.address == address)
    }
}
