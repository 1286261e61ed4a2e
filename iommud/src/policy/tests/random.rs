//! Random sequences of events from four clients, on a machine with devices of every kind. The executor checks each
//! step and each state.

use std::vec::Vec;

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::wire::AllocateFlags;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::world::*;
use crate::policy::{
    Allocate, BatchRequest, Binding, BufferId, Claim, ClientId, Config, Event, Hold, Import,
    ImportShared, ListRequest, MapList, Matcher, Mode, Rule, SessionId, Step, UnitIndex,
};
use crate::topology::firmware::{DeviceScope, Firmware, ReservedRegion, ScopeKind};
use crate::topology::pci::{Buses, FunctionKind, PciFunction};
use crate::topology::testing::{address, bridge, endpoint, function, multi, with_acs};

const PAGE: u64 = 4096;

/// Two units: a pair, two devices behind a bridge to PCI, a strict device with a reserved region, a device that
/// passes through, and one behind the other unit.
fn machine() -> (Config, Firmware, Vec<PciFunction>) {
    let scope =
        |device| DeviceScope { kind: ScopeKind::Endpoint, start_bus: 0, path: vec![(device, 0)] };
    let mut firmware =
        Firmware { units: vec![unit(0, false), unit(1, true)], ..Firmware::default() };
    firmware.units[0].scopes = vec![scope(3), scope(7)];
    firmware.reserved.push(ReservedRegion {
        segment: 0,
        range: phys(32 * MIB, 2 * PAGE),
        read: true,
        write: true,
        exclusion: false,
        scopes: vec![scope(5), scope(7)],
        entries: Vec::new(),
    });
    let rule = |device, mode| Rule { matcher: Matcher::Address(address(0, device, 0)), mode };
    let config =
        Config { rules: vec![rule(5, Mode::Strict), rule(6, Mode::Off)], ..Config::default() };
    let to_pci = FunctionKind::ExpressToConventional(Buses { secondary: 2, subordinate: 2 });
    let functions = vec![
        endpoint(0, 3, 0),
        multi(endpoint(0, 4, 0)),
        multi(endpoint(0, 4, 1)),
        endpoint(0, 5, 0),
        endpoint(0, 6, 0),
        endpoint(0, 7, 0),
        with_acs(bridge(0, 1, 0, 1, 2)),
        function(address(1, 0, 0), to_pci),
        function(address(2, 1, 0), FunctionKind::Conventional),
        function(address(2, 2, 0), FunctionKind::Conventional),
    ];
    (config, firmware, functions)
}

/// One random choice; the state in which it is made gives it a meaning.
type Choice = (u8, u16, u16, u16);

/// Any request or event.
#[derive(Debug)]
enum Try {
    Event(Event),
    Claim(Claim),
    Allocate(Allocate),
    Import(Import),
    ImportShared(ImportShared),
    Hold(Hold),
    Batch(SessionId, Vec<BatchRequest>),
    MapList(SessionId, ListRequest),
}

struct Sequence {
    bench: Bench,
    functions: Vec<PciFunction>,
    sessions: Vec<SessionId>,
    buffers: Vec<BufferId>,
    /// Addresses and lengths seen.
    mappings: Vec<(u64, u64)>,
    /// The next unused byte of the system's memory.
    system: u64,
    done: usize,
    refused: usize,
}

fn pick<T: Copy>(list: &[T], at: u16) -> Option<T> {
    if list.is_empty() { None } else { Some(list[usize::from(at) % list.len()]) }
}

impl Sequence {
    fn new() -> Self {
        let (config, firmware, functions) = machine();
        let mut bench = Bench::cold(config, firmware);
        bench.passes.insert(address(0, 6, 0).requester.0);
        Self {
            bench,
            functions,
            sessions: Vec::new(),
            buffers: Vec::new(),
            mappings: Vec::new(),
            system: MIB,
            done: 0,
            refused: 0,
        }
    }

    fn session(&self, at: u16) -> SessionId {
        pick(&self.sessions, at).unwrap_or(SessionId(u32::from(at)))
    }

    fn address(&self, at: u16) -> PciAddress {
        self.functions[usize::from(at) % self.functions.len()].address
    }

    fn batch_item(&self, (kind, a, b, c): Choice) -> BatchRequest {
        let slot = Slot(u32::from(a % 4));
        let (page, pages) = (u64::from(b % 6), u64::from(c % 5));
        match kind % 6 {
            0 | 1 => map(slot, page, pages),
            2 => fixed(
                slot,
                page,
                pages,
                24 * MIB + u64::from(b % 16) * PAGE + (32 * MIB - 24 * MIB) * u64::from(c & 1),
            ),
            3 => {
                let (iova, length) = pick(&self.mappings, b).unwrap_or((u64::from(b) * PAGE, PAGE));
                BatchRequest::Unmap { iova: crate::addr::Iova(iova), length }
            }
            4 => BatchRequest::Grant(request(slot, page, pages)),
            _ => BatchRequest::Revoke { slot, offset: page * PAGE, length: pages * PAGE },
        }
    }

    fn choose(&mut self, (kind, a, b, c): Choice) -> Try {
        let event = match kind % 32 {
            0..=4 => {
                return Try::Claim(Claim {
                    client: ClientId(u32::from(a % 4)),
                    address: self.address(b),
                    parent: if c.is_multiple_of(3) { Some(self.session(c)) } else { None },
                });
            }
            5..=8 => Event::Attach(self.session(a)),
            9 => Event::Detach(self.session(a)),
            10..=13 => return Try::Allocate(self.allocation(a, b, c)),
            14..=18 => {
                let items = (0..=c % 4).map(|n| {
                    self.batch_item((
                        kind.wrapping_add(a.to_le_bytes()[0]).wrapping_add(n.to_le_bytes()[0]),
                        a,
                        b.wrapping_mul(n + 3),
                        c.wrapping_add(n),
                    ))
                });
                let items = items.collect();
                return Try::Batch(self.session(a >> 2), items);
            }
            19 => {
                let pages: Vec<u32> =
                    (0..=c % 5).map(|n| u32::from(b.wrapping_mul(n) % 7)).collect();
                let at = 24 * MIB + u64::from(b % 16) * PAGE;
                let iova = if c.is_multiple_of(3) { at } else { 0 };
                let list = list(Slot(u32::from(a % 4)), &pages, iova);
                return Try::MapList(self.session(a >> 2), list);
            }
            20 => Event::Release(self.session(a), Slot(u32::from(b % 4))),
            21 if c & 1 == 0 => {
                let buffer = pick(&self.buffers, b).unwrap_or(BufferId(0));
                return Try::ImportShared(ImportShared(self.session(a), buffer));
            }
            21 => {
                let buffer = pick(&self.buffers, b).unwrap_or(BufferId(0));
                return Try::Import(Import(self.session(a), buffer));
            }
            22 => return Try::Hold(Hold(self.session(a), Slot(u32::from(b % 4)))),
            23 => Event::Drop(pick(&self.buffers, b).unwrap_or(BufferId(0))),
            24 | 25 => Event::Close(self.session(a)),
            26 => Event::FunctionRemoved(self.address(a)),
            27 | 28 => Event::FunctionAdded(self.functions[usize::from(a) % self.functions.len()]),
            29 if c & 1 == 0 => {
                Event::Storm(UnitIndex(u32::from(a % 2)), self.address(b).requester)
            }
            29 => ready(usize::from(a % 2)),
            // The server says so when no unit is failed.
            30 if a % 5 == 1 && !self.failed() => Event::Proved,
            30 if a.is_multiple_of(5) => Event::UnitFailed(UnitIndex(u32::from(b % 2))),
            30 | 31 => {
                let range = phys(u64::from(b % 40) * MIB, u64::from(c % 3 + 1) * MIB / 2);
                if a & 1 == 0 { Event::MemoryTaken(range) } else { Event::MemoryReturned(range) }
            }
            _ => Event::Shutdown,
        };
        Try::Event(event)
    }

    /// Memory of the server or of the system, in one piece or in two.
    fn allocation(&mut self, a: u16, b: u16, c: u16) -> Allocate {
        let length = u64::from(b % 5 + 1) * PAGE;
        let flags = match c % 4 {
            0 => AllocateFlags::UNMAPPED,
            1 => AllocateFlags::ABOVE_4G,
            _ => AllocateFlags::empty(),
        };
        let next = if c & 4 == 0 { &mut self.bench.next } else { &mut self.system };
        let first = *next;
        *next += 2 * length;
        let segments = if c & 8 == 0 {
            vec![phys(first, length)]
        } else {
            vec![phys(first + length, length), phys(first, length)]
        };
        self.bench.allocation(self.session(a), &segments, flags)
    }

    fn run(&mut self, choice: Choice) {
        let done = match self.choose(choice) {
            Try::Allocate(allocate) => {
                let length = allocate.1.length;
                self.bench.allocated(&allocate).map(|(_, iova, buffer)| {
                    self.buffers.push(buffer);
                    self.mappings.push((iova, length));
                })
            }
            Try::Batch(session, items) => {
                self.bench.batch(session, &items).map(|addresses| self.note(&items, &addresses))
            }
            Try::MapList(session, list) => {
                let length = list.pages.len() as u64 * PAGE;
                self.bench
                    .run(&MapList(session, &list))
                    .map(|iova| self.mappings.push((iova.0, length)))
            }
            Try::Claim(claim) => self.bench.run(&claim).map(|session| self.sessions.push(session)),
            Try::Import(import) => self.bench.run(&import).map(drop),
            Try::ImportShared(import) => {
                let ImportShared(session, BufferId(buffer)) = import;
                self.bench.run(&import).map(|_| {
                    let client = self.bench.registry.session(session).unwrap().client;
                    self.bench.brought.insert((client, buffer));
                })
            }
            Try::Hold(hold) => self.bench.run(&hold).map(drop),
            Try::Event(event) => {
                let done = self.bench.run(&event);
                // Sometimes a closed session is used again.
                if let Event::Close(session) = event
                    && choice.1 & 3 != 0
                {
                    self.sessions.retain(|known| *known != session);
                }
                done
            }
        };
        match done {
            Ok(()) => self.done += 1,
            Err(_) => self.refused += 1,
        }
    }

    fn note(&mut self, items: &[BatchRequest], addresses: &[u64]) {
        for (item, iova) in items.iter().zip(addresses) {
            if let BatchRequest::Map(request) | BatchRequest::Grant(request) = item {
                self.mappings.push((*iova, request.length));
            }
        }
    }

    fn failed(&self) -> bool {
        let failed = |unit| {
            let view = self.bench.registry.unit(UnitIndex(unit)).unwrap();
            view.state == crate::policy::UnitState::Failed
        };
        (0..2).any(failed)
    }

    /// Ends all sessions and closes all handles: only the quarantine is left, and nothing when no unit is failed.
    fn finish(mut self) -> (usize, usize) {
        self.bench.run(&Event::Shutdown).unwrap();
        for buffer in self.buffers.clone() {
            while self.bench.run(&Event::Drop(buffer)).is_ok() {}
        }
        let counts = self.bench.registry.counts();
        let left = (counts.sessions, counts.buffers, counts.mappings, counts.groups_claimed);
        assert_eq!(left, (0, 0, 0, 0));
        if !self.failed() {
            self.bench.run(&Event::Proved).unwrap();
            let counts = self.bench.registry.counts();
            assert_eq!((counts.quarantined, self.bench.registry.domains_kept()), (0, 0));
            assert_eq!(counts.clients, 0);
        }
        // The domain of `compat`, one for each set of reserved regions, and those that are kept.
        let counts = self.bench.registry.counts();
        assert!(counts.domains <= 4 + self.bench.registry.domains_kept());
        (self.done, self.refused)
    }
}

fn sequences() -> ProptestConfig {
    let fixed = |name: &str| std::env::var_os(name).is_none();
    let mut config = ProptestConfig::default();
    if fixed("PROPTEST_RNG_SEED") {
        config.rng_seed = RngSeed::Fixed(0x10_44);
    }
    if fixed("PROPTEST_CASES") {
        config.cases = 48;
    }
    config
}

proptest! {
    // The sequences are the same every time, so that only changes of the code change the result. PROPTEST_RNG_SEED
    // and PROPTEST_CASES select other and more sequences.
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..sequences() })]
    #[test]
    fn no_sequence_breaks_what_must_hold(
        late in any::<bool>(),
        choices in proptest::collection::vec(any::<Choice>(), 50..220),
    ) {
        let mut sequence = Sequence::new();
        if !late {
            for at in 0..sequence.functions.len() {
                sequence.bench.run(&Event::FunctionAdded(sequence.functions[at])).unwrap();
            }
            sequence.bench.run(&ready(0)).unwrap();
            sequence.bench.run(&ready(1)).unwrap();
        }
        for choice in choices {
            sequence.run(choice);
        }
        sequence.finish();
    }
}

#[test]
fn the_sequences_reach_what_they_should() {
    // Without this, the test above could pass although every event is refused.
    let mut sequence = Sequence::new();
    for at in 0..sequence.functions.len() {
        sequence.bench.run(&Event::FunctionAdded(sequence.functions[at])).unwrap();
    }
    sequence.bench.run(&ready(0)).unwrap();
    sequence.bench.run(&ready(1)).unwrap();
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::from_le_bytes([seed.to_le_bytes()[5], seed.to_le_bytes()[6]])
    };
    for _ in 0..600 {
        let choice = (next().to_le_bytes()[0], next(), next(), next());
        if choice.0 % 32 != 30 {
            sequence.run(choice);
        }
    }
    let kinds: std::collections::BTreeSet<_> = sequence
        .bench
        .world
        .steps
        .iter()
        .map(|step| format!("{step:?}").split(' ').next().unwrap().to_string())
        .collect();
    for kind in [
        "CreateTable",
        "DestroyTable",
        "Map",
        "MapList",
        "SuppressFaults",
        "Unmap",
        "Publish",
        "Invalidate",
        "ReleaseTables",
        "SetEntry",
        "InvalidateEntry",
        "Enable",
        "ReleaseBuffer",
    ] {
        assert!(kinds.contains(kind), "{kind} never happened");
    }
    let to = |wanted: fn(&Binding) -> bool| {
        let mut steps = sequence.bench.world.steps.iter();
        steps
            .any(|step| matches!(step, Step::SetEntry { from, to, .. } if from != to && wanted(to)))
    };
    assert!(to(|to| *to == Binding::Blocked), "nothing was ever blocked");
    assert!(to(|to| *to == Binding::PassThrough), "nothing ever passed through");
    assert!(to(|to| matches!(to, Binding::Domain(_))), "nothing ever entered a domain");
    let (done, refused) = sequence.finish();
    assert!(done > 150 && refused > 50, "{done} done, {refused} refused");
}
