//! A machine for measurements: table memory like the daemon's, a unit that only counts, devices.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::wire::{Access, AllocateFlags};
use iommud::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use iommud::engine::Engine;
use iommud::hw::vtd::VtdUnit;
use iommud::hw::{
    BufferMemory, BufferPool, Clock, Constraints, Entry, HardwareFault, MemoryError, Nanos,
    RegisterIo, Unit, UnitError,
};
use iommud::platform::{HUGE_PAGE, HUGE_PAGE_LENGTH, HugeTables, Mapping, Sharing};
use iommud::policy::{
    Allocate, AllocateRequest, Batch, BatchRequest, Claim, ClientId, Config, Event, Orders, Placed,
    Quotas, Registry, Request, SessionId, UnitIndex,
};
use iommud::topology::capabilities::{
    DomainTag, LevelSet, PageSizes, TableFormat, UnitCapabilities,
};
use iommud::topology::firmware::{Firmware, UnitDescription, UnitKind};
use iommud::topology::pci::{FunctionKind, PciFunction};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Physical address of the first byte of table memory.
pub const TABLES: u64 = 1 << 40;

/// Physical address of the first byte of buffers.
pub const BUFFERS: u64 = 1 << 41;

/// Registers and a clock that are never used: they name the type of a VT-d unit's page table entries.
pub enum Never {}

impl RegisterIo for Never {
    fn read32(&mut self, _: u32) -> u32 {
        match *self {}
    }
    fn read64(&mut self, _: u32) -> u64 {
        match *self {}
    }
    fn write32(&mut self, _: u32, _: u32) {
        match *self {}
    }
    fn write64(&mut self, _: u32, _: u64) {
        match *self {}
    }
}

impl Clock for Never {
    fn now(&mut self) -> Nanos {
        match *self {}
    }
    fn relax(&mut self) {
        match *self {}
    }
}

/// VT-d second-stage entries.
pub type Format = <VtdUnit<Never, Never, HugeTables> as Unit>::Format;

/// Maps a huge page's worth of memory in an anonymous file.
pub fn page() -> Mapping {
    let file: OwnedFd = memfd_create("tables", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, HUGE_PAGE).expect("memory");
    Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Populated).expect("mapping")
}

/// Page tables of 4 levels and 4 KiB leaves.
pub const fn small_pages(coherent: bool) -> TableFormat {
    TableFormat { levels: 4, page_sizes: PageSizes::SIZE_4K, coherent, forces_snoop: true }
}

/// Maps `count` huge pages' worth of table memory, like the daemon's.
pub fn tables(count: u64) -> HugeTables {
    HugeTables::new((0..count).map(|number| (PhysAddr(TABLES + number * HUGE_PAGE), page())))
}

/// The part of a server's unit that a measurement can see.
#[derive(Clone, Default)]
pub struct Shared {
    /// Faults that wait in the unit.
    pub faults: Rc<RefCell<Vec<HardwareFault>>>,
    /// Faults taken since the measurement last set this to 0.
    pub taken: Rc<Cell<u64>>,
    /// Faults taken when a source was silenced.
    pub silenced_after: Rc<Cell<u64>>,
    /// Whether a source was silenced.
    pub silenced: Rc<Cell<bool>>,
}

/// A unit without hardware. It counts invalidations.
#[derive(Default)]
pub struct Counting {
    /// Invalidations of pages.
    pub invalidations: u64,
    /// Whether only leaves of 4 KiB are supported.
    pub small_pages_only: bool,
    /// The part that a measurement can see.
    pub shared: Shared,
}

impl Unit for Counting {
    type Memory = HugeTables;
    type Format = Format;

    fn capabilities(&self) -> UnitCapabilities {
        let all = PageSizes::SIZE_4K | PageSizes::SIZE_2M | PageSizes::SIZE_1G;
        UnitCapabilities {
            levels: LevelSet::FOUR,
            page_sizes: if self.small_pages_only { PageSizes::SIZE_4K } else { all },
            coherent: true,
            forces_snoop: true,
            caches_absent: false,
            publishes: false,
            last_tag: u16::MAX,
            pass_through: true,
            physical_bits: 46,
            iova_bits: 48,
            deepens: true,
        }
    }
    fn write_entry(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        _: Entry,
    ) -> Result<(), UnitError> {
        Ok(())
    }
    fn suppress_faults(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        silent: bool,
    ) -> Result<(), UnitError> {
        self.shared.silenced.set(silent);
        if silent {
            self.shared.silenced_after.set(self.shared.taken.get());
        }
        Ok(())
    }
    fn invalidate_entry(
        &mut self,
        _: &mut HugeTables,
        _: RequesterId,
        _: Option<DomainTag>,
    ) -> Result<(), UnitError> {
        Ok(())
    }
    fn publish_pages(
        &mut self,
        _: &mut HugeTables,
        _: DomainTag,
        _: IovaRange,
    ) -> Result<(), UnitError> {
        Ok(())
    }
    fn invalidate_pages(
        &mut self,
        _: &mut HugeTables,
        _: DomainTag,
        _: IovaRange,
        _: bool,
    ) -> Result<(), UnitError> {
        self.invalidations += 1;
        Ok(())
    }
    fn enable(&mut self, _: &mut HugeTables) -> Result<(), UnitError> {
        Ok(())
    }
    fn take_faults(
        &mut self,
        _: &mut HugeTables,
        limit: usize,
        sink: &mut dyn FnMut(HardwareFault),
    ) -> Result<u32, UnitError> {
        let mut faults = self.shared.faults.borrow_mut();
        let count = limit.min(faults.len());
        self.shared.taken.set(self.shared.taken.get() + count as u64);
        faults.drain(..count).for_each(sink);
        Ok(0)
    }
    fn describe(&mut self, _: &mut dyn std::fmt::Write) -> std::fmt::Result {
        Ok(())
    }
}

/// Buffers at invented addresses. Their memory is never accessed.
#[derive(Default)]
pub struct Buffers {
    next: u64,
    /// Length of the separate pieces of a buffer, in bytes. 0: buffers are contiguous.
    pub piece: u64,
    taken: BTreeMap<u32, u64>,
}

impl BufferMemory for Buffers {
    type Share = ();

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        _: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        self.taken.insert(id, length);
        let piece = if self.piece == 0 { length } else { self.piece };
        let step = if self.piece == 0 { length.next_power_of_two() } else { 2 * piece };
        self.next = self.next.next_multiple_of(step.min(1 << 30));
        let ranges = (0..length / piece).map(|_| {
            let first = PhysAddr(BUFFERS + self.next);
            self.next += step;
            PhysRange::new(first, piece).ok_or(MemoryError::Constraints)
        });
        ranges.collect()
    }

    fn release(&mut self, id: u32) {
        self.taken.remove(&id);
    }

    fn pool(&self) -> BufferPool {
        BufferPool::UNLIMITED
    }

    fn share(&mut self, _: u32) -> Option<()> {
        Some(())
    }
}

/// Function `number` of bus 0, alone in its group.
pub fn function(number: u16) -> PciFunction {
    PciFunction {
        address: PciAddress { segment: 0, requester: RequesterId(number) },
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00ff_0000,
        kind: FunctionKind::RootComplexEndpoint,
        multifunction: false,
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    }
}

/// Describes one unit in front of all devices.
pub fn firmware() -> Firmware {
    let registers = PhysRange::new(PhysAddr(0xfed9_0000), 0x1000).expect("a range");
    let unit = UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(registers),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    };
    Firmware { units: vec![unit], ..Firmware::default() }
}

/// Quotas that no measurement reaches.
pub fn config() -> Config {
    let quotas = Quotas {
        memory: 1 << 40,
        mappings: 1 << 24,
        sessions: 1 << 12,
        domains: 1 << 12,
        handles: 1 << 12,
        regions: 1 << 20,
        ..Quotas::default()
    };
    Config { quotas, ..Config::default() }
}

/// Policy and engine, with one attached session and its first buffer.
pub struct Core {
    pub registry: Registry,
    pub engine: Engine<Counting>,
    pub buffers: Buffers,
    pub session: SessionId,
}

impl Core {
    pub fn new(unit: Counting, table_pages: u64) -> Self {
        let ram = PhysRange::new(PhysAddr(0), 1 << 32).expect("a range");
        let mut registry = Registry::new(config(), firmware(), &[ram], &[]);
        let mut engine = Engine::new(tables(table_pages));
        let mut buffers = Buffers::default();
        engine.install(UnitIndex(0), unit);
        let capabilities = engine.capabilities(UnitIndex(0)).expect("installed");
        let device = function(0x20);
        let client = ClientId(1);
        let claim = Claim { client, address: device.address, parent: None };
        for event in [Event::FunctionAdded(device), Event::UnitReady(UnitIndex(0), capabilities)] {
            carry(&mut registry, &mut engine, &mut buffers, &event, |_| ());
        }
        let session = carry(&mut registry, &mut engine, &mut buffers, &claim, |_| ());
        let mut core = Self { registry, engine, buffers, session };
        core.run(&Event::Attach(session));
        core
    }

    /// Runs one request.
    pub fn run<R: Request + Debug>(&mut self, request: &R) -> R::Outcome {
        carry(&mut self.registry, &mut self.engine, &mut self.buffers, request, |_| ())
    }

    /// Runs one change as a batch of one, like the server. Returns the address, 0 for an unmap or revoke.
    #[inline]
    pub fn change(&mut self, change: BatchRequest) -> Iova {
        let mut iova = Iova(0);
        let told = |orders: &Orders| iova = orders.addresses().first().copied().unwrap_or_default();
        let request = Batch(self.session, &[change]);
        carry(&mut self.registry, &mut self.engine, &mut self.buffers, &request, told);
        iova
    }

    /// Allocates a buffer, mapped unless `flags` prevent it. Returns the slot and its address.
    pub fn allocate(&mut self, length: u64, flags: AllocateFlags) -> (Slot, u64) {
        let buffer = self.registry.next_buffer();
        let segments = self.buffers.allocate(buffer.0, length, Constraints::default());
        let request = AllocateRequest {
            buffer,
            segments: segments.expect("memory"),
            length,
            alignment: 4096,
            boundary: 0,
            access: Access::READ | Access::WRITE,
            flags,
        };
        let Placed { slot, iova } = self.run(&Allocate(self.session, request));
        (slot, iova.0)
    }
}

fn carry<R: Request + Debug>(
    registry: &mut Registry,
    engine: &mut Engine<Counting>,
    buffers: &mut Buffers,
    request: &R,
    told: impl FnOnce(&Orders),
) -> R::Outcome {
    let plan = match registry.decide(request) {
        Ok(plan) => plan,
        Err(refused) => panic!("{request:?}: {refused:?}"),
    };
    match engine.run(plan.orders(), buffers) {
        Ok(()) => {
            told(plan.orders());
            engine.conclude(plan.orders(), buffers);
            registry.commit(plan)
        }
        Err(failure) => panic!("{request:?}: {failure:?}"),
    }
}
