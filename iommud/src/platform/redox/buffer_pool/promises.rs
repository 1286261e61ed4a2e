//! What clients were promised of the pool they have, in one piece, whatever others do. On Redox each session is a client
//! of its own.

use std::collections::BTreeSet;

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;

use super::*;
use crate::hw::{BufferMemory, BufferPool};
use crate::platform::fake_unit::FakeUnit;
use crate::platform::linux::memory::testing::FakePages;
use crate::platform::{HUGE_PAGE, HugeTables};
use crate::policy::{ClientId, Config, Mode};
use crate::server::{Budget, Caller, Handle, Server, Startup, TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::{FunctionKind, PciFunction};

/// The pool without the memory.
struct Pooled(Pool);

impl BufferMemory for Pooled {
    type Share = ();

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        self.0.allocate(id, length, constraints)
    }

    fn has_room(&self, length: u64, constraints: Constraints) -> bool {
        self.0.has_room(length, constraints)
    }

    fn release(&mut self, id: u32) {
        self.0.release(id);
    }

    fn pool(&self) -> BufferPool {
        BufferPool { capacity: POOL, granule: LOT }
    }

    fn share(&mut self, _: u32) -> Option<()> {
        Some(())
    }
}

const POOL: u64 = 8 << 20;
const DEVICES: u8 = 8;
const KIB: u64 = 1 << 10;

/// What each group is promised.
const PROMISE: u64 = 64 * KIB;

/// A quarter of what is common, and the promise on top.
const SHARE: u64 = (POOL - 8 * PROMISE) / 4 + PROMISE;

/// A server of eight devices, each a group of its own.
struct Bed {
    server: Server<FakeUnit, Pooled>,
    clients: u32,
}

fn range(first: u64, length: u64) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

fn endpoint(device: u8) -> PciFunction {
    PciFunction {
        address: PciAddress::new(0, 0, device, 0).unwrap(),
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

impl Bed {
    /// The pool is two chunks of 4 MiB that are no neighbours.
    fn new() -> Self {
        const TABLES: u64 = 0x2000_0000;
        let unit = UnitDescription {
            kind: UnitKind::Vtd,
            segment: 0,
            registers: Ok(range(0xfed9_0000, 4096)),
            include_all: true,
            scopes: Vec::new(),
            entries: Vec::new(),
        };
        let chunks = [range(0x1000_0000, POOL / 2), range(0x1080_0000, POOL / 2)];
        let mut tables = FakePages::default();
        let mut page = |at| (PhysAddr(at), tables.page(at).into_mapping());
        let mut own = vec![range(TABLES, 4 * HUGE_PAGE)];
        own.extend(chunks);
        let server = Server::start(Startup {
            config: Config { default: Mode::Strict, ..Config::default() },
            table: TableState::Parsed("DMAR"),
            firmware: Firmware { units: vec![unit], ..Firmware::default() },
            units: vec![UnitStart::Ready(FakeUnit::new())],
            functions: (1..=DEVICES).map(endpoint).collect(),
            ram: vec![range(0, 1 << 30)],
            own,
            left: Vec::new(),
            memory: HugeTables::new((0..4).map(|at| page(TABLES + at * HUGE_PAGE))),
            buffers: Pooled(Pool::new(&chunks)),
            budget: Budget::default(),
        });
        Self { server, clients: 0 }
    }

    /// Claims a device, as a client that was never seen before.
    fn claim(&mut self, device: u8) -> Handle {
        self.clients += 1;
        let who = Caller { client: ClientId(self.clients), uid: 0 };
        let path = format!("devices/0000--00--{device:02x}.0");
        self.server.open(who, None, &path, true).unwrap()
    }

    /// One call: version 1, the operation, the length, a cookie, the structure.
    fn call(&mut self, session: Handle, operation: u8, body: &[u64]) -> Result<Vec<u8>, Refusal> {
        let length = 16 + 8 * body.len();
        let mut bytes = vec![1, 0, operation, 0, u8::try_from(length).unwrap(), 0, 0, 0];
        bytes.extend([0].iter().chain(body).flat_map(|word| word.to_le_bytes()));
        bytes.resize(64, 0);
        self.server.call(session, &mut bytes, length).unwrap();
        match u16::from_le_bytes([bytes[16], bytes[17]]) {
            0 => Ok(bytes),
            code => Err(Refusal::from_code(code).unwrap()),
        }
    }

    /// Allocates (4: length, alignment, boundary, access and flags); returns the slot.
    fn allocate(&mut self, session: Handle, length: u64) -> Result<u32, Refusal> {
        let reply = self.call(session, 4, &[length, 4096, 0, 3])?;
        Ok(u32::from_le_bytes(reply[40..44].try_into().unwrap()))
    }

    /// Allocates buffers of a length until it is refused; their slots.
    fn allocate_all(&mut self, session: Handle, length: u64) -> Vec<u32> {
        std::iter::from_fn(|| self.allocate(session, length).ok()).collect()
    }

    /// Gives a buffer up (5: slot).
    fn release(&mut self, session: Handle, slot: u32) {
        self.call(session, 5, &[slot.into()]).unwrap();
    }

    /// A handle on a buffer, which outlives the session.
    fn hold(&mut self, session: Handle, slot: u32) -> Handle {
        let who = Caller { client: ClientId(self.clients), uid: 0 };
        self.server.open(who, Some(session), &format!("buffers/{slot}"), true).unwrap()
    }

    /// Closes a session when all its buffers are held.
    fn leave(&mut self, session: Handle, slots: &[u32]) -> Vec<Handle> {
        let held = slots.iter().map(|slot| self.hold(session, *slot)).collect();
        self.server.close(session);
        held
    }
}

/// One client has single pages between spacers of two pages, which the two others give up. Then these fill what is behind,
/// and nobody finds three pages in a row.
#[test]
fn three_clients_within_their_shares_leave_the_promise_of_others_whole() {
    let mut bed = Bed::new();
    let [first, second, third] = [1, 2, 3].map(|device| bed.claim(device));
    let mut spacers = Vec::new();
    while bed.allocate(first, 4 * KIB).is_ok() {
        let by = |bed: &mut Bed, session| Some((session, bed.allocate(session, 8 * KIB).ok()?));
        spacers.extend(by(&mut bed, second).or_else(|| by(&mut bed, third)));
    }
    for (session, slot) in spacers {
        bed.release(session, slot);
    }
    for session in [second, third] {
        bed.allocate_all(session, 12 * KIB);
    }
    for device in 4..=DEVICES {
        let victim = bed.claim(device);
        assert_eq!(bed.allocate(victim, 12 * KIB).err(), None, "device {device}");
        let victim = bed.claim_again(victim, device);
        assert_eq!(bed.allocate(victim, PROMISE).err(), None, "device {device}");
    }
}

/// A fourth client finds all of its share, too, in buffers of up to 64 KiB.
#[test]
fn a_share_is_there_in_pieces_of_64_kib_when_three_others_have_theirs() {
    for length in [4 * KIB, 20 * KIB, 64 * KIB] {
        let mut bed = Bed::new();
        let greedy = [1, 2, 3].map(|device| bed.claim(device));
        while greedy.iter().filter(|session| bed.allocate(**session, length).is_ok()).count() > 0 {}
        let last = bed.claim(4);
        let count = bed.allocate_all(last, PROMISE).len() as u64;
        assert_eq!(count, SHARE / PROMISE, "beside buffers of {length}");
    }
}

/// One process claims a device again and again, and keeps handles on all that it was given: it has one share.
#[test]
fn a_session_that_ends_and_leaves_buffers_behind_gets_no_share_anew() {
    let mut bed = Bed::new();
    let mut held = Vec::new();
    for _ in 0..8 {
        let session = bed.claim(1);
        let slots = bed.allocate_all(session, 16 * KIB);
        held.extend(bed.leave(session, &slots));
    }
    let bytes = held.len() as u64 * 16 * KIB;
    assert!(bytes > SHARE - PROMISE && bytes <= SHARE, "{bytes} of {SHARE}");
    // Who lets go has its share again.
    for handle in held {
        bed.server.close(handle);
    }
    let session = bed.claim(1);
    assert_eq!(bed.allocate_all(session, PROMISE).len() as u64, SHARE / PROMISE);
}

/// A claim never fails for what the last owner left; and what it left is all that the next one has less.
#[test]
fn the_next_owner_has_what_the_last_one_left_of_the_share() {
    let mut bed = Bed::new();
    let session = bed.claim(1);
    let slot = bed.allocate(session, 4 * KIB).unwrap();
    let held = bed.leave(session, &[slot]);
    let session = bed.claim(1);
    assert_eq!(bed.allocate_all(session, PROMISE).len() as u64, SHARE / PROMISE - 1);
    // Of another group nobody pays for it.
    let other = bed.claim(2);
    assert_eq!(bed.allocate_all(other, PROMISE).len() as u64, SHARE / PROMISE);
    held.into_iter().for_each(|handle| bed.server.close(handle));
    assert!(bed.allocate(session, PROMISE).is_ok());
}

/// Memory of one client's buffers lies in no lot of another one's.
#[test]
fn a_lot_is_one_clients() {
    let mut bed = Bed::new();
    let sessions: Vec<_> = (1..=DEVICES).map(|device| bed.claim(device)).collect();
    let mut lots = BTreeSet::new();
    for round in 0..40 {
        for (at, session) in sessions.iter().enumerate() {
            let before: BTreeSet<u32> = bed.ids();
            if bed.allocate(*session, (1 + round % 7) * 4 * KIB).is_ok() {
                let id = *bed.ids().difference(&before).next().unwrap();
                let pages = bed.server.buffer_memory().0.pages(id).unwrap();
                lots.extend((pages.start / 16..=(pages.end - 1) / 16).map(|lot| (lot, at)));
            }
        }
    }
    let mut numbers: Vec<_> = lots.iter().map(|(lot, _)| *lot).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), lots.len());
    assert!(numbers.len() > 60, "{}", numbers.len());
}

impl Bed {
    /// Ends a session, and claims the device anew.
    fn claim_again(&mut self, session: Handle, device: u8) -> Handle {
        self.server.close(session);
        self.claim(device)
    }

    /// Numbers of the buffers that there are.
    fn ids(&mut self) -> BTreeSet<u32> {
        self.server.buffer_memory().0.buffers.keys().copied().collect()
    }
}
