//! Requests and events as records.

use iommu_protocol::ids::{PciAddress, Slot};

use super::record::{FRUGAL, ITEM_OUTCOME, Kind, Record, first, pair};
use super::ring::Ring;
use crate::addr::{Iova, PhysRange};
use crate::policy::{
    Allocate, Batch, BatchRequest, BufferId, Claim, Event, Hold, Import, ImportShared, MapList,
    MapRequest, Orders, Owed, Placed, Request, SessionId, UnitIndex,
};
use crate::topology::capabilities::UnitCapabilities;
use crate::topology::pci::{FunctionKind, PciFunction};

/// A request that a record can hold.
pub trait Traced: Request {
    /// The first record, without number and outcome.
    fn head(&self) -> Record;

    /// Records the request, and the elements of its list behind it.
    #[inline]
    fn begin(&self, ring: &mut Ring) {
        ring.begin(self.head());
    }

    /// The outcome that the plan has: an address for each element. The first one is returned.
    fn addresses(&self, _orders: &Orders, _ring: &mut Ring) -> u64 {
        0
    }

    /// The outcome as words 6 and bits 63:32 of word 7; `None` when the plan has it.
    fn value(outcome: &Self::Outcome) -> Option<(u64, u32)>;
}

const fn record(first: u64, [a, b, c, d]: [u64; 4]) -> Record {
    [first, 0, a, b, c, d, 0, 0]
}

impl Traced for Batch<'_> {
    fn head(&self) -> Record {
        record(first(Kind::Batch, self.0.0), [count(self.1), 0, 0, 0])
    }

    #[inline]
    fn begin(&self, ring: &mut Ring) {
        match self.1 {
            [one] => ring.begin(record(first(Kind::One, self.0.0), item(one))),
            _ => begin_batch(self, ring),
        }
    }

    #[inline]
    fn addresses(&self, orders: &Orders, ring: &mut Ring) -> u64 {
        let addresses = orders.addresses();
        if self.1.len() != 1 {
            set_addresses(ring, addresses);
        }
        addresses.first().map_or(0, |first| first.0)
    }

    #[inline]
    fn value((): &()) -> Option<(u64, u32)> {
        None
    }
}

// Functions of their own, so that a request with one item saves no registers for lists.

#[inline(never)]
fn begin_batch(batch: &Batch, ring: &mut Ring) {
    ring.begin(batch.head());
    for element in batch.1 {
        let [a, b, c, d] = item(element);
        ring.append([a, b, c, d, 0, 0, 0, 0]);
    }
}

#[inline(never)]
fn set_addresses(ring: &mut Ring, addresses: &[Iova]) {
    for (index, address) in addresses.iter().enumerate() {
        ring.set_item(index, ITEM_OUTCOME, address.0);
    }
}

/// An element of a batch: operation (1 map, 2 unmap, 3 grant, 4 revoke), access, flags and slot; offset, length,
/// address.
#[inline]
fn item(item: &BatchRequest) -> [u64; 4] {
    let of = |code: u64, map: &MapRequest| {
        let Slot(slot) = map.slot;
        let bits = u64::from(map.access.bits()) << 8 | u64::from(map.flags.bits()) << 16;
        [code | bits | u64::from(slot) << 32, map.offset, map.length, map.iova.0]
    };
    match item {
        BatchRequest::Map(map) => of(1, map),
        BatchRequest::Grant(map) => of(3, map),
        BatchRequest::Unmap { iova, length } => [2, 0, *length, iova.0],
        BatchRequest::Revoke { slot, offset, length } => {
            [4 | u64::from(slot.0) << 32, *offset, *length, 0]
        }
    }
}

fn count<T>(list: &[T]) -> u64 {
    u64::from(u32::try_from(list.len()).unwrap_or(u32::MAX))
}

impl Traced for MapList<'_> {
    fn head(&self) -> Record {
        let Self(SessionId(session), list) = self;
        let bits = u64::from(list.access.bits()) << 8 | u64::from(list.flags.bits()) << 16;
        let words = [count(&list.pages), bits | u64::from(list.slot.0) << 32, list.iova.0, 0];
        record(first(Kind::MapList, *session), words)
    }

    fn begin(&self, ring: &mut Ring) {
        ring.begin(self.head());
        append_halves(ring, &self.1.pages);
    }

    fn value(outcome: &Iova) -> Option<(u64, u32)> {
        Some((outcome.0, 0))
    }
}

/// Appends 32-bit numbers, 16 to a record, the first in the low half of the first word.
fn append_halves(ring: &mut Ring, numbers: &[u32]) {
    for numbers in numbers.chunks(16) {
        let mut words = [0; 8];
        for (word, halves) in words.iter_mut().zip(numbers.chunks(2)) {
            let [low, high] = [0, 1].map(|half| halves.get(half).copied().unwrap_or(0));
            *word = pair(low, high);
        }
        ring.append(words);
    }
}

/// Appends ranges, four to a record: first byte and last byte.
pub(super) fn append_ranges(ring: &mut Ring, ranges: &[PhysRange]) {
    for ranges in ranges.chunks(4) {
        let mut words = [0; 8];
        for (place, range) in words.chunks_mut(2).zip(ranges) {
            place.copy_from_slice(&[range.first().0, range.last().0]);
        }
        ring.append(words);
    }
}

impl Traced for Allocate {
    fn head(&self) -> Record {
        let Self(SessionId(session), request) = self;
        let BufferId(buffer) = request.buffer;
        let log = |value: u64| u64::from(value.checked_ilog2().map_or(0xff, |bits| bits));
        let bits = u64::from(request.access.bits()) << 8
            | u64::from(request.flags.bits()) << 16
            | log(request.alignment) << 32
            | log(request.boundary) << 40;
        let words = [count(&request.segments) | u64::from(buffer) << 32, request.length, bits, 0];
        record(first(Kind::Allocate, *session), words)
    }

    fn begin(&self, ring: &mut Ring) {
        ring.begin(self.head());
        append_ranges(ring, &self.1.segments);
    }

    fn value(outcome: &Placed) -> Option<(u64, u32)> {
        Some((outcome.iova.0, outcome.slot.0))
    }
}

impl Traced for Claim {
    fn head(&self) -> Record {
        let parent = self.parent.map_or(0, |SessionId(parent)| 1 << 32 | u64::from(parent));
        record(first(Kind::Claim, self.client.0), [address(self.address), parent, 0, 0])
    }

    fn value(SessionId(session): &SessionId) -> Option<(u64, u32)> {
        Some((u64::from(*session), 0))
    }
}

/// Segment in bits 31:16, requester id in 15:0.
pub(super) fn address(address: PciAddress) -> u64 {
    u64::from(address.segment) << 16 | u64::from(address.requester.0)
}

macro_rules! slots {
    ($($request:ident;)*) => {$(
        impl Traced for $request {
            fn head(&self) -> Record {
                let Self(SessionId(session), BufferId(buffer)) = *self;
                record(first(Kind::$request, session), [u64::from(buffer), 0, 0, 0])
            }

            fn value(Slot(slot): &Slot) -> Option<(u64, u32)> {
                Some((u64::from(*slot), 0))
            }
        }
    )*};
}

slots! {
    Import;
    ImportShared;
}

impl Traced for Hold {
    fn head(&self) -> Record {
        let Self(SessionId(session), Slot(slot)) = *self;
        record(first(Kind::Hold, session), [u64::from(slot), 0, 0, 0])
    }

    fn value(BufferId(buffer): &BufferId) -> Option<(u64, u32)> {
        Some((u64::from(*buffer), 0))
    }
}

impl Traced for Event {
    fn head(&self) -> Record {
        match self {
            Self::Frugally(event) => {
                let mut record = event.head();
                record[0] |= FRUGAL;
                record
            }
            _ => plain(self),
        }
    }

    #[inline]
    fn begin(&self, ring: &mut Ring) {
        ring.begin(self.head());
        append_functions(self, ring);
    }

    fn value((): &()) -> Option<(u64, u32)> {
        Some((0, 0))
    }
}

/// Appends the functions that came or went.
fn append_functions(event: &Event, ring: &mut Ring) {
    match event {
        Event::Frugally(event) => append_functions(event, ring),
        Event::FunctionsAdded(functions) => {
            for function in functions {
                let [a, b, c] = self::function(function);
                ring.append([a, b, c, 0, 0, 0, 0, 0]);
            }
        }
        Event::FunctionsRemoved(addresses) => {
            for function in addresses {
                ring.append([address(*function), 0, 0, 0, 0, 0, 0, 0]);
            }
        }
        _ => {}
    }
}

fn plain(event: &Event) -> Record {
    let of = |kind, object, words| record(first(kind, object), words);
    let one = |kind, object| of(kind, object, [0; 4]);
    match event {
        Event::Attach(SessionId(session)) => one(Kind::Attach, *session),
        Event::Detach(SessionId(session)) => one(Kind::Detach, *session),
        Event::Close(SessionId(session)) => one(Kind::Close, *session),
        Event::Drop(BufferId(buffer)) => one(Kind::Drop, *buffer),
        Event::Release(SessionId(session), Slot(slot)) => {
            of(Kind::Release, *session, [u64::from(*slot), 0, 0, 0])
        }
        Event::Shutdown => one(Kind::Shutdown, 0),
        Event::Proved => one(Kind::Proved, 0),
        Event::UnitFailed(UnitIndex(unit)) => one(Kind::UnitFailed, *unit),
        Event::UnitReady(UnitIndex(unit), ready) => {
            let [a, b] = capabilities(ready);
            of(Kind::UnitReady, *unit, [a, b, 0, 0])
        }
        Event::Storm(UnitIndex(unit), source) => {
            of(Kind::Storm, *unit, [u64::from(source.0), 0, 0, 0])
        }
        Event::FunctionAdded(function) => {
            let [a, b, c] = self::function(function);
            of(Kind::FunctionAdded, 0, [a, b, c, 0])
        }
        Event::FunctionRemoved(function) => {
            of(Kind::FunctionRemoved, 0, [address(*function), 0, 0, 0])
        }
        Event::FunctionsAdded(list) => of(Kind::FunctionsAdded, 0, [count(list), 0, 0, 0]),
        Event::FunctionsRemoved(list) => of(Kind::FunctionsRemoved, 0, [count(list), 0, 0, 0]),
        Event::MemoryTaken(range) => of(Kind::MemoryTaken, 0, ends(*range)),
        Event::MemoryReturned(range) => of(Kind::MemoryReturned, 0, ends(*range)),
        Event::Settle(Owed::Entry(UnitIndex(unit), source)) => {
            of(Kind::SettleEntry, *unit, [u64::from(source.0), 0, 0, 0])
        }
        Event::Settle(Owed::Buffer(BufferId(buffer))) => one(Kind::SettleBuffer, *buffer),
        Event::Settle(Owed::Regions(domain)) => one(Kind::SettleRegions, domain.0),
        Event::Frugally(event) => event.head(),
    }
}

fn ends(range: PhysRange) -> [u64; 4] {
    [range.first().0, range.last().0, 0, 0]
}

/// Address and ids; class, kind, buses; isolation.
pub(super) fn function(function: &PciFunction) -> [u64; 3] {
    let ids = u64::from(function.vendor) << 32 | u64::from(function.device) << 48;
    let (secondary, subordinate) =
        function.kind.buses().map_or((0, 0), |buses| (buses.secondary, buses.subordinate));
    let kind = u64::from(kind_code(function.kind)) << 32
        | u64::from(secondary) << 40
        | u64::from(subordinate) << 48
        | u64::from(function.multifunction) << 56
        | u64::from(function.hot_plug) << 57;
    let acs = function.acs.map_or(0, |acs| 1 << 32 | u64::from(acs));
    [
        address(function.address) | ids,
        u64::from(function.class) | kind,
        acs | u64::from(function.acs_capability) << 16,
    ]
}

const fn kind_code(kind: FunctionKind) -> u8 {
    match kind {
        FunctionKind::Endpoint => 1,
        FunctionKind::RootComplexEndpoint => 2,
        FunctionKind::Conventional => 3,
        FunctionKind::RootPort(_) => 4,
        FunctionKind::UpstreamPort(_) => 5,
        FunctionKind::DownstreamPort(_) => 6,
        FunctionKind::ExpressToConventional(_) => 7,
        FunctionKind::ConventionalToExpress(_) => 8,
        FunctionKind::ConventionalBridge(_) => 9,
        FunctionKind::EventCollector => 10,
    }
}

/// Page sizes; tag, widths, levels and flags.
pub(super) fn capabilities(of: &UnitCapabilities) -> [u64; 2] {
    let flags =
        [of.coherent, of.forces_snoop, of.caches_absent, of.publishes, of.pass_through, of.deepens];
    let flags = (0..).zip(flags).fold(0, |bits, (at, set)| bits | u64::from(set) << at);
    let sizes = u64::from(of.last_tag)
        | u64::from(of.physical_bits) << 16
        | u64::from(of.iova_bits) << 24
        | u64::from(of.levels.bits()) << 32
        | flags << 40;
    [of.page_sizes.bits(), sizes]
}
