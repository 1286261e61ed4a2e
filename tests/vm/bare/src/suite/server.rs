//! The whole server over the unit: policy, engine and backend, from the bytes of a request to the bytes of its reply.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use iommu_protocol::fault::{FaultAccess, FaultRecord, RECORD_SIZE};
use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::wire::{
    Allocate, AllocateResult, Batch, BatchItem, Empty, Map, MapFlags, MapList, MapResult,
    Operation, ReplyHeader, RequestHeader, Unmap, VERSION, Wire,
};
use iommud::acpi;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::facts::CellMemory;
use iommud::hw::vtd::VtdUnit;
use iommud::hw::{BufferMemory, BufferPool, Constraints, MemoryError};
use iommud::policy::{ClientId, Config};
use iommud::server::{Budget, Caller, Driven, Handle, Server, Startup, TableState, UnitStart};
use iommud::topology::pci::ConfigSpace;
use iommud::topology::walk::{Roots, walk};
use iommud::trace::{Recorder, Ring};

use super::lab::{ARENA, HOST_BITS, LENGTH, TheUnit, pattern, words};
use super::{Outcome, ensure};
use crate::edu::Edu;
use crate::firmware::{Dmar, StartInfo, table};
use crate::owner::Owner;
use crate::seams::{FRAMES, FRAMES_LENGTH, Frames, Registers, Time};
use crate::{cpu, pci, phys, println};

/// Memory for buffers.
const BUFFERS: u64 = 128 << 20;
const BUFFERS_LENGTH: u64 = 64 << 20;

/// An address of the server's own memory.
pub(super) const TABLES: u64 = FRAMES;

/// Pages of a large batch, each at an address of its own.
pub(super) const PAGES: u32 = 512;

/// Most instructions to map and unmap 4 KiB that are alone in their 2 MiB, with an existing table of pages. This is
/// the target for a single path that also serves batches.
const PAIR: u64 = 2600;

/// Most additional instructions when mapping needs an invalidation too.
const PUBLISHED: u64 = 200;

/// Most instructions to map and unmap a page as one of [`PAGES`] items of a batch. The target is 300.
const BATCHED: u64 = 1900;

/// Most instructions to map and unmap one page in a list of [`PAGES`]. This is the target.
const LISTED: u64 = 40;

/// Rounds before a measurement, in which tables are created and lists grow.
const WARM_UP: usize = 4;

/// Configuration space through the ports, without extended registers.
struct Ports;

impl ConfigSpace for Ports {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        match u8::try_from(offset) {
            Ok(offset) if address.segment == 0 => pci::read(address.requester, offset),
            _ => u32::MAX,
        }
    }
}

/// Buffers, one behind the other. Freed memory is reused for a buffer of the same length.
#[derive(Default)]
struct Pool {
    next: u64,
    free: Vec<PhysRange>,
    taken: BTreeMap<u32, PhysRange>,
}

impl BufferMemory for Pool {
    type Share = ();

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        _: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        let same = self.free.iter().position(|range| range.length() == length);
        let range = match same {
            Some(index) => self.free.remove(index),
            None => {
                let start = PhysAddr(BUFFERS + self.next);
                if self.next + length > BUFFERS_LENGTH {
                    return Err(MemoryError::Exhausted);
                }
                self.next += length;
                PhysRange::new(start, length).ok_or(MemoryError::Constraints)?
            }
        };
        phys::fill(range.first().0, length, 0);
        self.taken.insert(id, range);
        Ok(vec![range])
    }

    fn release(&mut self, id: u32) {
        self.free.extend(self.taken.remove(&id));
    }

    fn pool(&self) -> BufferPool {
        BufferPool { capacity: BUFFERS_LENGTH, granule: 4096 }
    }

    fn share(&mut self, _: u32) -> Option<()> {
        Some(())
    }
}

pub struct Served {
    server: Server<TheUnit, Pool>,
    pub(super) registers: Registers,
    edu: Vec<Edu>,
    payload: Vec<u8>,
    session: Option<Handle>,
    pub(super) slot: u32,
    iova: u64,
}

const CALLER: Caller = Caller { client: ClientId(1), uid: 0 };

impl Served {
    /// Starts a server with policy compat on a unit that is off.
    pub fn start(info: &StartInfo, base: u64) -> Result<Self, String> {
        Self::start_recorded(info, base, Recorder::default())
    }

    /// Starts a server that records, if `recorder` does.
    pub(super) fn start_recorded(
        info: &StartInfo,
        base: u64,
        recorder: Recorder,
    ) -> Result<Self, String> {
        // Turns off everything that an earlier owner left running.
        Owner::new(base);
        let edu: Vec<Edu> = Edu::all().collect();
        for (index, edu) in edu.iter().enumerate() {
            edu.load(ARENA, pattern(index));
        }
        let start = cpu::instructions();
        let bytes = table::<Dmar>(info.rsdp).ok_or("no DMAR")?;
        let firmware = acpi::parse_dmar(&bytes).map_err(words)?;
        let (mut memory, registers) = (Frames::new(), Registers::new(base));
        let unit = VtdUnit::bring_up(registers.clone(), Time, &mut memory, HOST_BITS);
        let range = |start, length| PhysRange::new(PhysAddr(start), length).ok_or("bad range");
        let startup = Startup {
            config: Config::default(),
            table: TableState::Parsed("DMAR"),
            firmware,
            units: vec![UnitStart::Ready(unit.map_err(words)?)],
            functions: walk(&mut Ports, Roots::Known(&[(0, 0)])),
            ram: vec![range(0, 256 << 20)?],
            own: vec![range(FRAMES, FRAMES_LENGTH)?, range(BUFFERS, BUFFERS_LENGTH)?],
            left: Vec::new(),
            memory,
            buffers: Pool::default(),
            budget: Budget::default(),
        };
        let server = Server::start_recorded(startup, Driven::default(), recorder);
        let spent = cpu::instructions() - start;
        println!("@@count {spent} instructions to start the server");
        let payload = vec![0; 64 * 1024];
        Ok(Self { server, registers, edu, payload, session: None, slot: 0, iova: 0 })
    }

    /// Makes the server keep facts there from now on.
    pub(super) fn keep_facts(&mut self, memory: Box<dyn CellMemory>) {
        self.server.keep_facts(memory);
    }

    /// Opens the first edu device.
    pub(super) fn claim(&mut self) -> Result<(), String> {
        let path = format!("devices/{}", self.device(0));
        self.session = Some(self.server.open(CALLER, None, &path, true).map_err(words)?);
        Ok(())
    }

    /// The records of the server.
    pub(super) fn ring(&mut self) -> Option<&mut Ring> {
        self.server.trace()
    }

    /// Makes one call on the session, from the bytes of the request to the bytes of the reply. Returns the server's
    /// instructions.
    pub(super) fn call(&mut self, operation: Operation, request: &[u8]) -> Result<u64, String> {
        let handle = self.session.ok_or("no session")?;
        let length = RequestHeader::SIZE + request.len();
        let header = RequestHeader {
            version: VERSION,
            operation: operation.code(),
            length: u32::try_from(length).map_err(words)?,
            cookie: 7,
        };
        header.encode(&mut self.payload).map_err(words)?;
        self.payload[RequestHeader::SIZE..length].copy_from_slice(request);
        let start = cpu::instructions();
        let answered = self.server.call(handle, &mut self.payload, length);
        let spent = cpu::instructions() - start;
        answered.map_err(words)?;
        let reply = ReplyHeader::decode(&self.payload).map_err(words)?;
        ensure!(reply.refusal == 0 && reply.cookie == 7, "{operation:?}: {reply:?}");
        Ok(spent)
    }

    pub(super) fn result<T: Wire>(&self) -> Result<T, String> {
        T::decode(&self.payload[ReplyHeader::SIZE..]).map_err(words)
    }

    pub(super) fn text(&mut self, path: &str) -> Result<String, String> {
        let handle = self.server.open(CALLER, None, path, false).map_err(words)?;
        let mut bytes = vec![0; 4096];
        let length = self.server.read(handle, 0, &mut bytes).map_err(words)?;
        self.server.close(handle);
        bytes.truncate(length);
        String::from_utf8(bytes).map_err(words)
    }

    /// As [`Served::text`], of any length; with the instructions that the server took to open, read and close it.
    pub(super) fn timed_text(&mut self, path: &str) -> Result<(String, u64), String> {
        let mut bytes = vec![0; 64 * 1024];
        let start = cpu::instructions();
        let handle = self.server.open(CALLER, None, path, false).map_err(words)?;
        let length = self.server.read(handle, 0, &mut bytes).map_err(words)?;
        self.server.close(handle);
        let spent = cpu::instructions() - start;
        bytes.truncate(length);
        Ok((String::from_utf8(bytes).map_err(words)?, spent))
    }

    /// Returns the address of an edu device.
    pub(super) fn device(&self, index: usize) -> PciAddress {
        PciAddress { segment: 0, requester: self.edu[index].id }
    }

    /// Makes an edu device write to `address`.
    pub(super) fn attempt(&self, index: usize, address: u64) {
        self.edu[index].write_memory(address, LENGTH);
    }

    pub(super) fn tick(&mut self) {
        self.server.tick();
    }

    /// Whether the first edu device reaches the first buffer.
    pub(super) fn reaches_buffer(&self) -> bool {
        self.arrives(self.iova, BUFFERS)
    }

    /// Runs `act` with a session on another device, then closes the session.
    pub(super) fn with_session<T>(
        &mut self,
        device: PciAddress,
        act: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let caller = Caller { client: ClientId(2), uid: 0 };
        let path = format!("devices/{device}");
        let handle = self.server.open(caller, None, &path, true).map_err(words)?;
        let own = self.session.replace(handle);
        let result = act(self);
        self.session = own;
        self.server.close(handle);
        result
    }

    /// Whether the first edu device's pattern arrives at `place` when it writes to `address`.
    fn arrives(&self, address: u64, place: u64) -> bool {
        phys::fill(place, LENGTH, 0x6d6d);
        self.edu[0].write_memory(address, LENGTH);
        phys::is_filled(place, LENGTH, pattern(0))
    }
}

pub(super) fn encoded<T: Wire>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; T::SIZE];
    value.encode(&mut bytes).map_err(words)?;
    Ok(bytes)
}

pub fn confines(served: &mut Served) -> Outcome {
    let status = served.text("status")?;
    ensure!(
        status.contains("unit 0: vt-d enabled") && status.contains("confinement: on"),
        "{status}"
    );
    ensure!(served.arrives(ARENA, ARENA), "an unclaimed device does not reach memory");
    ensure!(!served.arrives(FRAMES, FRAMES + FRAMES_LENGTH - 4096), "tables are within reach");
    let device = PciAddress { segment: 0, requester: served.edu[0].id };
    served.server.tick();
    let faults = served.text("faults")?;
    let wanted = format!("{device} write at iova {FRAMES:#x}");
    ensure!(faults.contains(&wanted), "no \"{wanted}\" in: {faults}");

    served.claim()?;
    let empty = encoded(&Empty::default())?;
    served.call(Operation::Attach, &empty)?;
    ensure!(!served.arrives(ARENA, ARENA), "a claimed device still reaches memory");
    let length = u64::from(PAGES) * 4096;
    let request = Allocate { length, access: 3, ..Allocate::default() };
    served.call(Operation::Allocate, &encoded(&request)?)?;
    let buffer: AllocateResult = served.result()?;
    (served.slot, served.iova) = (buffer.slot, buffer.iova);
    ensure!(served.arrives(buffer.iova, BUFFERS), "the buffer is not reached");
    served.server.tick();
    let fault = told(served)?;
    ensure!(
        (fault.source, fault.address, fault.access) == (device, Some(ARENA), FaultAccess::Write),
        "the session was told {fault}"
    );
    let path = format!("devices/{device}");
    let second = served.server.open(Caller { client: ClientId(2), uid: 0 }, None, &path, true);
    ensure!(second.is_err(), "the device was claimed twice");
    Ok(format!("{device}: buffer at iova {:#x}; told: {fault}", buffer.iova))
}

fn told(served: &mut Served) -> Result<FaultRecord, String> {
    let handle = served.session.ok_or("no session")?;
    let mut bytes = [0; RECORD_SIZE];
    served.server.read(handle, 0, &mut bytes).map_err(words)?;
    FaultRecord::decode(&bytes).map_err(words)
}

/// Counts instructions from the first byte of a request to the last byte of its reply, and register accesses.
pub fn costs(served: &mut Served) -> Outcome {
    let map = Map { slot: served.slot, access: 3, length: 4096, ..Map::default() };
    let (mut mapping, mut unmapping) = (0, 0);
    let mut writes = 0;
    for _ in 0..=WARM_UP {
        let request = encoded(&map)?;
        served.registers.take_counts();
        mapping = served.call(Operation::Map, &request)?;
        let MapResult { iova } = served.result()?;
        let request = encoded(&Unmap { iova, length: 4096 })?;
        unmapping = served.call(Operation::Unmap, &request)?;
        writes = served.registers.take_counts().writes;
    }
    println!("@@count {mapping} instructions of the server to map 4 KiB");
    println!("@@count {unmapping} instructions of the server to unmap 4 KiB");
    println!("@@count {writes} register writes of the server to map and unmap 4 KiB");
    let most = PAIR + PUBLISHED * u64::from(writes.saturating_sub(1));
    ensure!(mapping + unmapping <= most, "{mapping} and {unmapping} instructions for 4 KiB");
    let (mapping, unmapping, writes) = batch(served)?;
    println!("@@count {writes} register writes of the server to unmap {PAGES} scattered pages");
    println!("@@count {mapping} instructions of the server to map {PAGES} scattered pages");
    println!("@@count {unmapping} instructions of the server to unmap {PAGES} scattered pages");
    let each = (mapping + unmapping) / u64::from(PAGES);
    ensure!(each <= BATCHED, "{each} instructions an item of a batch");
    let (mapping, unmapping) = listed(served)?;
    println!("@@count {mapping} instructions of the server to map {PAGES} pages as a list");
    println!("@@count {unmapping} instructions of the server to unmap {PAGES} pages of a list");
    let each = (mapping + unmapping) / u64::from(PAGES);
    ensure!(each <= LISTED, "{each} instructions a page of a list, more than {LISTED}");
    Ok(format!("{PAGES} scattered pages in one call: {each} a page for the pair"))
}

/// Encodes the request for a list of every page of the buffer, no two neighbours adjacent.
pub(super) fn list(slot: u32) -> Result<Vec<u8>, String> {
    let mut bytes = encoded(&MapList { slot, access: 3, count: PAGES, ..MapList::default() })?;
    bytes.extend((0..PAGES).flat_map(|page| (page * 77 % PAGES).to_le_bytes()));
    Ok(bytes)
}

/// Maps scattered pages as one list, then unmaps it. Returns the instructions of each.
fn listed(served: &mut Served) -> Result<(u64, u64), String> {
    let request = list(served.slot)?;
    let mut costs = (0, 0);
    for _ in 0..=WARM_UP {
        costs.0 = served.call(Operation::MapList, &request)?;
        let MapResult { iova } = served.result()?;
        for page in [0, 1, 500] {
            let place = BUFFERS + page * 77 % u64::from(PAGES) * 4096;
            ensure!(served.arrives(iova + page * 4096, place), "page {page} is not reached");
        }
        let length = u64::from(PAGES) * 4096;
        costs.1 = served.call(Operation::Unmap, &encoded(&Unmap { iova, length })?)?;
        ensure!(!served.arrives(iova + 4096, BUFFERS + 77 * 4096), "a page is still reached");
    }
    Ok(costs)
}

/// Encodes the request for a batch of maps or unmaps: pages of a buffer in reverse order, at every second page from
/// address `at` on.
pub(super) fn scattered(operation: Operation, slot: u32, at: u64) -> Result<Vec<u8>, String> {
    let mut bytes = encoded(&Batch { count: PAGES, reserved: 0 })?;
    for page in 0..u64::from(PAGES) {
        let iova = at + page * 8192;
        let mut item =
            BatchItem { operation: operation.code(), length: 4096, iova, ..Default::default() };
        if operation == Operation::Map {
            let offset = (u64::from(PAGES) - 1 - page) * 4096;
            item = BatchItem { flags: MapFlags::FIXED.bits(), slot, access: 3, offset, ..item };
        }
        bytes.extend(encoded(&item)?);
    }
    Ok(bytes)
}

/// Maps scattered pages in one call, then unmaps them in another.
fn batch(served: &mut Served) -> Result<(u64, u64, u32), String> {
    const AT: u64 = 0x0600_0000;
    let map = scattered(Operation::Map, served.slot, AT)?;
    let unmap = scattered(Operation::Unmap, 0, AT)?;
    let mut costs = (0, 0, 0);
    for _ in 0..=WARM_UP {
        costs.0 = served.call(Operation::Batch, &map)?;
        served.registers.take_counts();
        costs.1 = served.call(Operation::Batch, &unmap)?;
        costs.2 = served.registers.take_counts().writes;
        ensure!(costs.2 == 1, "{} register writes to unmap {PAGES} pages in one call", costs.2);
    }
    Ok(costs)
}

pub fn ends(served: &mut Served) -> Outcome {
    let handle = served.session.take().ok_or("no session")?;
    ensure!(served.arrives(served.iova, BUFFERS), "the buffer is not reached");
    served.server.close(handle);
    ensure!(!served.arrives(served.iova, BUFFERS), "the buffer is still reached");
    let metrics = served.text("metrics")?;
    for line in ["sessions 0", "buffers 0", "mappings 0", "quarantined_bytes 0"] {
        ensure!(metrics.lines().any(|found| found == line), "no \"{line}\" in: {metrics}");
    }
    served.server.shutdown();
    let other: RequesterId = served.edu[1].id;
    phys::fill(ARENA, LENGTH, 0);
    served.edu[1].write_memory(ARENA, LENGTH);
    ensure!(phys::is_filled(ARENA, LENGTH, pattern(1)), "{other:?}, unclaimed, lost its memory");
    Ok("cut off; counted back; the unclaimed device goes on".into())
}
