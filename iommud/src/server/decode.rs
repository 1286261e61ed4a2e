//! Decodes requests. Everything is copied out of the payload and checked before anything is done. So bytes that a
//! client changes later have no effect.

use alloc::vec::Vec;

use iommu_protocol::Refusal;
use iommu_protocol::ids::Slot;
use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, Batch, BatchItem, BufferRequest, Empty, Grant, MAX_BATCH,
    MAX_LIST, Map, MapFlags, MapList, Operation, Short, Unmap, Wire,
};

use crate::addr::{Iova, PAGE_SIZE};
use crate::policy::{BatchRequest, MapRequest, Refused};

/// A request with all its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Query,
    Attach,
    Detach,
    Regions,
    Allocate(AllocateArguments),
    Release(Slot),
    QueryBuffer(Slot),
    /// A single map, unmap, grant or revoke.
    One(BatchRequest),
    /// A batch of the items in [`Scratch`].
    Batch,
    /// A map of the pages in [`Scratch`].
    List(ListArguments),
}

/// Lists into which requests are read, kept for their capacity.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    /// Items of a batch.
    pub(super) items: Vec<BatchRequest>,
    /// Pages of a list.
    pub(super) pages: Vec<u32>,
}

/// Arguments of a list, without its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListArguments {
    pub(super) slot: Slot,
    pub(super) access: Access,
    pub(super) flags: MapFlags,
    pub(super) iova: Iova,
}

/// Arguments of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AllocateArguments {
    pub(super) length: u64,
    /// A power of two from 4096 on.
    pub(super) alignment: u64,
    pub(super) boundary: u64,
    pub(super) access: Access,
    pub(super) flags: AllocateFlags,
}

/// Reads the body of a request. Its list goes into `scratch`, in place of the one before.
///
/// # Errors
/// `BadLength`, `BadReserved`, `BadAccess`, `Range`, `Alignment`, and `BadOperation` for a batch item that is no map,
/// unmap, grant or revoke; with the index of the item, in a batch.
pub(super) fn decode(
    operation: Operation,
    body: &[u8],
    scratch: &mut Scratch,
) -> Result<Request, Refused> {
    let Scratch { items, pages } = scratch;
    items.clear();
    Ok(match operation {
        Operation::Query => empty(body, Request::Query)?,
        Operation::Attach => empty(body, Request::Attach)?,
        Operation::Detach => empty(body, Request::Detach)?,
        Operation::Regions => empty(body, Request::Regions)?,
        Operation::Allocate => Request::Allocate(allocate(&read(body)?)?),
        Operation::Release => Request::Release(slot(body)?),
        Operation::QueryBuffer => Request::QueryBuffer(slot(body)?),
        Operation::Map => Request::One(BatchRequest::Map(map_of(&read(body)?)?)),
        Operation::Grant => Request::One(BatchRequest::Grant(grant_of(&read(body)?)?)),
        Operation::Unmap => Request::One(unmap_of(&read(body)?)?),
        Operation::Revoke => Request::One(revoke_of(&read(body)?)?),
        Operation::Batch => {
            batch(body, items)?;
            Request::Batch
        }
        Operation::MapList => Request::List(list(body, pages)?),
    })
}

fn read<W: Wire>(body: &[u8]) -> Result<W, Refusal> {
    W::decode(body).map_err(|Short| Refusal::BadLength)
}

fn empty(body: &[u8], request: Request) -> Result<Request, Refusal> {
    zero(read::<Empty>(body)?.reserved)?;
    Ok(request)
}

fn slot(body: &[u8]) -> Result<Slot, Refusal> {
    let request: BufferRequest = read(body)?;
    zero(request.reserved)?;
    Ok(Slot(request.slot))
}

fn zero(reserved: impl Into<u64>) -> Result<(), Refusal> {
    if reserved.into() == 0 { Ok(()) } else { Err(Refusal::BadReserved) }
}

fn access(bits: u32) -> Result<Access, Refusal> {
    Access::from_bits(bits).filter(|access| !access.is_empty()).ok_or(Refusal::BadAccess)
}

/// Checks that an offset and a length are whole pages, not empty, and do not overflow.
fn pages(start: u64, length: u64) -> Result<(), Refusal> {
    if length == 0 || start.checked_add(length - 1).is_none() {
        return Err(Refusal::Range);
    }
    if (start | length).is_multiple_of(PAGE_SIZE) { Ok(()) } else { Err(Refusal::Alignment) }
}

fn allocate(request: &Allocate) -> Result<AllocateArguments, Refusal> {
    pages(0, request.length)?;
    let alignment = request.alignment.max(PAGE_SIZE);
    let boundary_fits = request.boundary == 0
        || (request.boundary.is_power_of_two() && request.boundary >= request.length);
    if !alignment.is_power_of_two() || !boundary_fits {
        return Err(Refusal::Alignment);
    }
    Ok(AllocateArguments {
        length: request.length,
        alignment,
        boundary: request.boundary,
        access: access(request.access)?,
        flags: AllocateFlags::from_bits(request.flags).ok_or(Refusal::BadReserved)?,
    })
}

fn map_of(request: &Map) -> Result<MapRequest, Refusal> {
    zero(request.reserved)?;
    let flags = MapFlags::from_bits(request.flags).ok_or(Refusal::BadReserved)?;
    pages(request.offset, request.length)?;
    if flags.contains(MapFlags::FIXED) {
        pages(request.iova, request.length)?;
    } else {
        zero(request.iova)?;
    }
    Ok(MapRequest {
        slot: Slot(request.slot),
        offset: request.offset,
        length: request.length,
        iova: Iova(request.iova),
        access: access(request.access)?,
        flags,
    })
}

/// Reads a list's arguments, and its pages into `into`.
fn list(body: &[u8], into: &mut Vec<u32>) -> Result<ListArguments, Refusal> {
    let request: MapList = read(body)?;
    let flags = MapFlags::from_bits(request.flags).ok_or(Refusal::BadReserved)?;
    let count = usize::try_from(request.count).map_err(|_| Refusal::BadLength)?;
    if count == 0 || count > MAX_LIST {
        return Err(Refusal::Range);
    }
    let (numbers, rest) = body.get(MapList::SIZE..).unwrap_or_default().as_chunks();
    if numbers.len() != count || !rest.is_empty() {
        return Err(Refusal::BadLength);
    }
    if flags.contains(MapFlags::FIXED) {
        pages(request.iova, u64::from(request.count) * PAGE_SIZE)?;
    } else {
        zero(request.iova)?;
    }
    let access = access(request.access)?;
    into.clear();
    into.extend(numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)));
    Ok(ListArguments { slot: Slot(request.slot), access, flags, iova: Iova(request.iova) })
}

fn unmap_of(request: &Unmap) -> Result<BatchRequest, Refusal> {
    pages(request.iova, request.length)?;
    Ok(BatchRequest::Unmap { iova: Iova(request.iova), length: request.length })
}

fn grant_of(request: &Grant) -> Result<MapRequest, Refusal> {
    pages(request.offset, request.length)?;
    Ok(MapRequest {
        slot: Slot(request.slot),
        offset: request.offset,
        length: request.length,
        iova: Iova(0),
        access: access(request.access)?,
        flags: MapFlags::empty(),
    })
}

fn revoke_of(request: &Grant) -> Result<BatchRequest, Refusal> {
    pages(request.offset, request.length)?;
    zero(request.access)?;
    let Grant { slot, offset, length, .. } = *request;
    Ok(BatchRequest::Revoke { slot: Slot(slot), offset, length })
}

/// Reads the items of a batch.
///
/// # Errors
/// The first item that does not decode, by its index; index 0 when the batch as a whole is malformed.
fn batch(body: &[u8], into: &mut Vec<BatchRequest>) -> Result<(), Refused> {
    let header: Batch = read(body)?;
    zero(header.reserved)?;
    let count = usize::try_from(header.count).map_err(|_| Refusal::BadLength)?;
    if count == 0 || count > MAX_BATCH {
        return Err(Refusal::Range.into());
    }
    let items = body.get(Batch::SIZE..).unwrap_or_default();
    if items.len() != count * BatchItem::SIZE {
        return Err(Refusal::BadLength.into());
    }
    into.reserve(count);
    for (bytes, item) in items.chunks_exact(BatchItem::SIZE).zip(0..) {
        let request = read(bytes).and_then(|fields| batch_item(&fields));
        into.push(request.map_err(|refusal| Refused { item, refusal })?);
    }
    Ok(())
}

fn batch_item(item: &BatchItem) -> Result<BatchRequest, Refusal> {
    zero(item.reserved)?;
    match Operation::from_code(item.operation) {
        Some(Operation::Map) => map_of(&Map {
            slot: item.slot,
            access: item.access,
            offset: item.offset,
            length: item.length,
            iova: item.iova,
            flags: item.flags,
            reserved: 0,
        })
        .map(BatchRequest::Map),
        Some(Operation::Unmap) => {
            zero(item.flags | item.slot | item.access)?;
            zero(item.offset)?;
            unmap_of(&Unmap { iova: item.iova, length: item.length })
        }
        Some(Operation::Grant) => grant_of(&grant_fields(item)?).map(BatchRequest::Grant),
        Some(Operation::Revoke) => revoke_of(&grant_fields(item)?),
        _ => Err(Refusal::BadOperation),
    }
}

/// The arguments of a grant or revoke in a batch. They have no address: the buffer's own is reserved.
fn grant_fields(item: &BatchItem) -> Result<Grant, Refusal> {
    zero(item.flags)?;
    zero(item.iova)?;
    let BatchItem { slot, access, offset, length, .. } = *item;
    Ok(Grant { slot, access, offset, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<W: Wire>(structure: &W) -> Vec<u8> {
        let mut out = alloc::vec![0; W::SIZE];
        structure.encode(&mut out).unwrap();
        out
    }

    fn map_with(edit: impl FnOnce(&mut Map)) -> Result<MapRequest, Refusal> {
        let mut request = Map { slot: 1, access: 3, length: 0x1000, ..Map::default() };
        edit(&mut request);
        match decode(Operation::Map, &bytes(&request), &mut Scratch::default())? {
            Request::One(BatchRequest::Map(map)) => Ok(map),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_malformed_map_has_its_own_refusal() {
        assert!(map_with(|_| ()).is_ok());
        assert_eq!(map_with(|m| m.length = 0), Err(Refusal::Range));
        assert!(map_with(|m| m.offset = !0xfff).is_ok());
        assert_eq!(map_with(|m| (m.offset, m.length) = (!0xfff, 0x2000)), Err(Refusal::Range));
        assert_eq!(map_with(|m| m.length = 0x1001), Err(Refusal::Alignment));
        assert_eq!(map_with(|m| m.offset = 8), Err(Refusal::Alignment));
        assert_eq!(map_with(|m| m.access = 0), Err(Refusal::BadAccess));
        assert_eq!(map_with(|m| m.access = 4), Err(Refusal::BadAccess));
        assert_eq!(map_with(|m| m.flags = 8), Err(Refusal::BadReserved));
        assert_eq!(map_with(|m| m.reserved = 1), Err(Refusal::BadReserved));
        assert_eq!(map_with(|m| m.iova = 0x1000), Err(Refusal::BadReserved));
        assert_eq!(map_with(|m| (m.flags, m.iova) = (1, !0xfff)).map(|_| ()), Ok(()));
        assert_eq!(map_with(|m| (m.flags, m.iova) = (1, 0x10)), Err(Refusal::Alignment));
    }

    #[test]
    fn a_batch_is_refused_by_the_index_of_its_item() {
        let good =
            BatchItem { operation: 7, slot: 1, access: 1, length: 0x1000, ..BatchItem::default() };
        let bad = BatchItem { operation: 8, slot: 1, length: 0x1000, ..BatchItem::default() };
        let mut body = bytes(&Batch { count: 2, reserved: 0 });
        body.extend(bytes(&good));
        body.extend(bytes(&bad));
        assert_eq!(
            batch(&body, &mut Vec::new()),
            Err(Refused { item: 1, refusal: Refusal::BadReserved })
        );
        body.truncate(body.len() - 1);
        assert_eq!(
            batch(&body, &mut Vec::new()),
            Err(Refused { item: 0, refusal: Refusal::BadLength })
        );
        let none = bytes(&Batch::default());
        assert_eq!(
            batch(&none, &mut Vec::new()),
            Err(Refused { item: 0, refusal: Refusal::Range })
        );
    }

    #[test]
    fn each_malformed_list_has_its_own_refusal() {
        let list_of = |change: &dyn Fn(&mut MapList, &mut Vec<u8>)| {
            let mut request = MapList { slot: 1, access: 1, count: 2, ..MapList::default() };
            let mut pages = vec![7, 0, 0, 0, 2, 1, 0, 0];
            change(&mut request, &mut pages);
            let mut scratch = Scratch { items: Vec::new(), pages: vec![99; 9] };
            let body = [bytes(&request), pages].concat();
            decode(Operation::MapList, &body, &mut scratch)
                .map(|_| scratch.pages)
                .map_err(Refusal::from)
        };
        assert_eq!(list_of(&|_, _| ()), Ok(vec![7, 0x102]));
        assert_eq!(list_of(&|m, _| m.count = 0), Err(Refusal::Range));
        assert_eq!(list_of(&|m, _| m.count = 8193), Err(Refusal::Range));
        assert_eq!(list_of(&|m, _| m.count = 3), Err(Refusal::BadLength));
        assert_eq!(list_of(&|_, pages| pages.truncate(7)), Err(Refusal::BadLength));
        assert_eq!(list_of(&|_, pages| pages.push(0)), Err(Refusal::BadLength));
        assert_eq!(list_of(&|m, _| m.access = 0), Err(Refusal::BadAccess));
        assert_eq!(list_of(&|m, _| m.flags = 4), Err(Refusal::BadReserved));
        assert_eq!(list_of(&|m, _| m.iova = 4096), Err(Refusal::BadReserved));
        assert_eq!(list_of(&|m, _| (m.flags, m.iova) = (1, 8)), Err(Refusal::Alignment));
        assert_eq!(list_of(&|m, _| (m.flags, m.iova) = (1, !0xfff)), Err(Refusal::Range));
    }

    /// Bits that offset and length have in common do not cancel out.
    #[test]
    fn offset_and_length_are_whole_pages_each() {
        assert_eq!(pages(0x2000, 0x3000), Ok(()));
        let parts = [(0x2800, 0x3000), (0x2000, 0x3800), (0x2800, 0x3800), (1, 1), (0xfff, 0xfff)];
        for (start, length) in parts {
            assert_eq!(pages(start, length), Err(Refusal::Alignment), "{start:#x} {length:#x}");
        }
    }

    #[test]
    fn lists_and_batches_are_as_long_as_the_protocol_says() {
        let list_of = |count: u32| {
            let request = MapList { slot: 1, access: 1, count, ..MapList::default() };
            let body = [bytes(&request), vec![0; count as usize * 4]].concat();
            let mut pages = Vec::new();
            list(&body, &mut pages).map(|_| pages.len())
        };
        assert_eq!([1, 8192].map(list_of), [Ok(1), Ok(8192)]);
        assert_eq!([0, 8193].map(list_of), [Err(Refusal::Range); 2]);
        let batch_of = |count: u32| {
            let item = BatchItem { operation: 8, length: 0x1000, ..BatchItem::default() };
            let mut body = bytes(&Batch { count, reserved: 0 });
            body.extend(bytes(&item).repeat(count as usize));
            let mut items = Vec::new();
            batch(&body, &mut items).map(|()| items.len()).map_err(Refusal::from)
        };
        assert_eq!([1, 1024].map(batch_of), [Ok(1), Ok(1024)]);
        assert_eq!([0, 1025].map(batch_of), [Err(Refusal::Range); 2]);
    }

    /// The fields of a map are zero in an unmap, each by itself: equal bits do not cancel out.
    #[test]
    fn an_unmap_in_a_batch_has_no_fields_of_a_map() {
        let unmap = BatchItem { operation: 8, length: 0x1000, ..BatchItem::default() };
        assert_eq!(batch_item(&unmap), Ok(BatchRequest::Unmap { iova: Iova(0), length: 0x1000 }));
        for (flags, slot, access) in
            [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
        {
            let item = BatchItem { flags, slot, access, ..unmap };
            assert_eq!(batch_item(&item), Err(Refusal::BadReserved), "{item:?}");
        }
        let item = BatchItem { offset: 0x1000, ..unmap };
        assert_eq!(batch_item(&item), Err(Refusal::BadReserved));
    }

    #[test]
    fn alignment_and_boundary_are_powers_of_two() {
        let with = |alignment, boundary| {
            let request = Allocate { length: 0x2000, alignment, boundary, access: 1, flags: 0 };
            decode(Operation::Allocate, &bytes(&request), &mut Scratch::default())
                .map(|_| ())
                .map_err(Refusal::from)
        };
        assert_eq!(with(0, 0), Ok(()));
        assert_eq!(with(0x10000, 0x10000), Ok(()));
        assert_eq!(with(0x3000, 0), Err(Refusal::Alignment));
        assert_eq!(with(0, 0x1000), Err(Refusal::Alignment));
        assert_eq!(with(0, 0x3000), Err(Refusal::Alignment));
    }
}
