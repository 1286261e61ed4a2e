//! A fact in 32 bytes.
//!
//! ```text
//! word 0    kind 7:0, flags 15:8, number of the cell 39:16, checksum 63:48; all zeros: the cell is free
//! session   session 31:0, client 63:32         segment 31:16, requester 15:0     0
//! slot      record 31:0, session 63:32         slot 31:0, buffer 63:32           bytes of the buffer
//! mapping   record 31:0, page of buffer 63:32  first address                     bytes
//! ```
//!
//! Flags: of a session, bit 8 that its device is attached; of a mapping, bits 9:8 the access of devices (1 read, 2
//! write), bit 10 a grant, bit 11 a list of pages. The checksum is the exclusive or of the 16-bit parts of: word 0
//! without it, word 1 rotated left by 13, word 2 by 29, word 3 by 47.

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::wire::Access;

use crate::addr::{Iova, IovaRange, PAGE_SIZE};
use crate::policy::{
    BufferId, ClientId, MappingFact, ObjectFact, SessionFact, SessionId, SlotFact,
};

/// The words of a cell.
pub type Cell = [u64; 4];

/// Bytes of a cell.
pub const CELL_BYTES: usize = size_of::<Cell>();

const SESSION: u64 = 1;
const SLOT: u64 = 2;
const MAPPING: u64 = 3;

/// Session: the device is attached.
const ATTACHED: u64 = 1 << 8;

/// Mapping: the access of devices, in two bits.
const ACCESS_SHIFT: u32 = 8;

/// Mapping: made by a grant.
const GRANT: u64 = 1 << 10;

/// Mapping: a list of pages.
const LIST: u64 = 1 << 11;

/// All flags.
const FLAGS: u64 = 0xff << 8;

/// Numbers of cells have 24 bits.
pub(super) const MOST_CELLS: u32 = 1 << 24;

const NUMBER_SHIFT: u32 = 16;
const CHECK_SHIFT: u32 = 48;

/// A cell whose words were not written together, or that is no fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// The content of a free cell.
pub(super) const FREE: Cell = [0; 4];

/// The 16-bit checksum of a cell, which does not cover bits 63:48 of its first word. That of zeros is 0.
#[inline]
const fn checksum([first, a, b, c]: &Cell) -> u64 {
    let first = *first & ((1 << CHECK_SHIFT) - 1);
    let all = first ^ a.rotate_left(13) ^ b.rotate_left(29) ^ c.rotate_left(47);
    let half = all ^ all >> 32;
    (half ^ half >> 16) & 0xffff
}

const fn sealed(mut cell: Cell, number: u32) -> Cell {
    cell[0] |= (number as u64) << NUMBER_SHIFT;
    cell[0] |= checksum(&cell) << CHECK_SHIFT;
    cell
}

/// The cell with this number, free; as a record names it.
pub(super) const fn freed(number: u32) -> Cell {
    sealed(FREE, number)
}

/// The fact as the content of the cell with this number.
#[inline(always)]
pub(super) fn encode(fact: &ObjectFact, number: u32) -> Cell {
    let cell = match fact {
        ObjectFact::Session(fact) => {
            let attached = if fact.attached { ATTACHED } else { 0 };
            let PciAddress { segment, requester } = fact.device;
            let device = u64::from(segment) << 16 | u64::from(requester.0);
            [SESSION | attached, pair(fact.session.0, fact.client.0), device, 0]
        }
        ObjectFact::Slot(fact) => {
            let of = pair(fact.record, fact.session.0);
            [SLOT, of, pair(fact.slot.0, fact.buffer.0), fact.length]
        }
        ObjectFact::Mapping(fact) => {
            let flags = u64::from(fact.access.bits() & 3) << ACCESS_SHIFT
                | if fact.grant { GRANT } else { 0 }
                | if fact.list { LIST } else { 0 };
            // An offset has at most 43 bits: see `Mappings`.
            let of = u64::from(fact.record) | (fact.offset / PAGE_SIZE) << 32;
            [MAPPING | flags, of, fact.range.first().0, fact.range.length()]
        }
    };
    sealed(cell, number)
}

/// The number that a cell has in its first word.
#[inline]
pub(super) fn place_of(cell: &Cell) -> u32 {
    let number = cell[0] >> NUMBER_SHIFT & u64::from(MOST_CELLS - 1);
    u32::try_from(number).unwrap_or(0)
}

/// The number of a cell, as a record names it.
///
/// # Errors
/// The checksum is wrong.
pub(super) fn number_of(cell: &Cell) -> Result<u32, Damaged> {
    if checksum(cell) == cell[0] >> CHECK_SHIFT { Ok(place_of(cell)) } else { Err(Damaged) }
}

/// The fact in the cell with this number; `None` when it is free.
///
/// # Errors
/// The checksum is wrong, the cell belongs elsewhere, or it is no fact.
pub(super) fn decode(cell: &Cell, number: u32) -> Result<Option<ObjectFact>, Damaged> {
    if *cell == FREE {
        return Ok(None);
    }
    if number_of(cell)? != number || cell[0] >> 40 & 0xff != 0 {
        return Err(Damaged);
    }
    let [first, of, second, third] = *cell;
    let flags = first & FLAGS;
    match first & 0xff {
        0 if flags == 0 && [of, second, third] == [0; 3] => Ok(None),
        SESSION if third == 0 && flags & !ATTACHED == 0 => {
            let segment = u16::try_from(second >> 16).map_err(|_| Damaged)?;
            let requester = RequesterId(u16::try_from(second & 0xffff).map_err(|_| Damaged)?);
            Ok(Some(ObjectFact::Session(SessionFact {
                session: SessionId(low(of)),
                client: ClientId(high(of)),
                device: PciAddress { segment, requester },
                attached: flags != 0,
            })))
        }
        SLOT if flags == 0 && is_pages(third) => Ok(Some(ObjectFact::Slot(SlotFact {
            record: low(of),
            session: SessionId(high(of)),
            slot: Slot(low(second)),
            buffer: BufferId(high(second)),
            length: third,
        }))),
        MAPPING if flags >> 12 == 0 && is_pages(third) && second % PAGE_SIZE == 0 => {
            let access = u32::try_from(flags >> ACCESS_SHIFT & 3).map_err(|_| Damaged)?;
            Ok(Some(ObjectFact::Mapping(MappingFact {
                record: low(of),
                range: IovaRange::new(Iova(second), third).ok_or(Damaged)?,
                offset: u64::from(high(of)) * PAGE_SIZE,
                access: Access::from_bits_truncate(access),
                grant: flags & GRANT != 0,
                list: flags & LIST != 0,
            })))
        }
        _ => Err(Damaged),
    }
}

/// Whether a length is that of at least one page, and of whole ones.
const fn is_pages(length: u64) -> bool {
    length > 0 && length.is_multiple_of(PAGE_SIZE)
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(0)
}

fn high(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap_or(0)
}
