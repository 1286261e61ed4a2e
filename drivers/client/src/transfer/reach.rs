//! What a device reaches for a transfer, and whose memory it is.

use std::cell::RefCell;
use std::ops::Range;
use std::panic::Location;
use std::rc::Rc;

use iommu_protocol::wire::BatchItem;

use crate::batch::{grant_item, revoke_item};
use crate::buffer::{DmaBuffer, PAGE};
use crate::error::Error;
use crate::platform::Piece;
use crate::sanitizer::{Place, Sanitizer, Tenure, Window};
use crate::transfer::options::Direction;

/// Memory of the program that a queue may lend to the device, allocated unmapped. The queue keeps it until the device
/// has lost it.
pub type Lendable = Rc<RefCell<DmaBuffer>>;

/// The memory of a transfer.
#[derive(Debug)]
pub(super) enum Part {
    /// A slot, which is handed back.
    Slot(Piece<DmaBuffer>),
    /// Whole pages of the program's.
    Lent { _memory: Lendable },
    /// A slot with a copy of bytes of the program's, from `offset` on.
    Copy { piece: Piece<DmaBuffer>, program: Lendable, offset: u64 },
}

/// Pages that are granted for a transfer, or about to be.
#[derive(Debug)]
pub(super) struct Reach {
    /// Number of the buffer's slot in the session.
    slot: u32,
    /// Whole pages of that buffer.
    pages: Range<u64>,
    /// The device's address of the transfer, and its bytes.
    iova: u64,
    length: u64,
    direction: Direction,
    /// The place that granted it.
    place: Place,
    part: Part,
}

impl Reach {
    /// A transfer of bytes from a page on. The buffer is given by its number and the device's address of its first
    /// byte.
    #[track_caller]
    pub(super) const fn new(
        (slot, iova): (u32, u64),
        bytes: Range<u64>,
        direction: Direction,
        part: Part,
    ) -> Self {
        let (length, end) = (bytes.end - bytes.start, bytes.end.next_multiple_of(PAGE));
        let (pages, iova) = (bytes.start..end, iova + bytes.start);
        Self { slot, pages, iova, length, direction, place: Location::caller(), part }
    }

    pub(super) const fn iova(&self) -> u64 {
        self.iova
    }

    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn into_part(self) -> Part {
        self.part
    }

    pub(super) const fn is_lent(&self) -> bool {
        matches!(self.part, Part::Lent { .. })
    }

    pub(super) fn grant(&self) -> BatchItem {
        grant_item(self.slot, self.pages.clone(), self.direction.access())
    }

    pub(super) fn revoke(&self) -> BatchItem {
        revoke_item(self.slot, self.pages.clone())
    }

    /// Has the sanitizer watch what the device now reaches.
    pub(super) fn watch(&self, sanitizer: &Sanitizer) {
        let tenure = if self.is_lent() { Tenure::Driver } else { Tenure::Queue };
        let window = Window {
            slot: self.slot,
            iova: self.iova,
            length: self.pages.end - self.pages.start,
            access: self.direction.access(),
            tenure,
            granted: self.place,
            home: None,
        };
        sanitizer.granted(window, Some(self.pages.start));
    }

    /// Has the sanitizer note that the device has lost it.
    pub(super) fn unwatch(&self, sanitizer: &Sanitizer, place: Option<Place>) {
        sanitizer.ended(self.iova, self.pages.end - self.pages.start, place);
    }

    /// Whether bytes are to be copied to memory that is in use now.
    pub(super) fn is_borrowed(&self) -> bool {
        match (&self.part, self.direction) {
            (Part::Copy { program, .. }, Direction::FromDevice) => {
                program.try_borrow_mut().is_err()
            }
            _ => false,
        }
    }

    /// Copies what the device wrote to the program's memory: only the bytes of the transfer.
    pub(super) fn copy_out(&self) -> Result<(), Error> {
        let (Part::Copy { piece, program, offset }, Direction::FromDevice) =
            (&self.part, self.direction)
        else {
            return Ok(());
        };
        let mut program = program.try_borrow_mut().map_err(|_| Error::Borrowed)?;
        by_pages(self.length, |at, bytes| {
            piece.read(at, bytes)?;
            program.write(offset + at, bytes)
        })
    }
}

/// Copies bytes of the program's memory to the start of a slot.
pub(super) fn copy_in(
    program: &DmaBuffer,
    offset: u64,
    piece: &mut Piece<DmaBuffer>,
    length: u64,
) -> Result<(), Error> {
    by_pages(length, |at, bytes| {
        program.read(offset + at, bytes)?;
        piece.write(at, bytes)
    })
}

/// Clears the rest of the last page of a transfer at the start of a slot.
pub(super) fn clear_tail(piece: &mut Piece<DmaBuffer>, length: u64) -> Result<(), Error> {
    let rest = length.next_multiple_of(PAGE) - length;
    piece.fill(length, usize::try_from(rest).map_err(|_| Error::Outside)?, 0)
}

/// Passes at most a page of bytes at a time to `copy`, each with its offset.
fn by_pages(
    length: u64,
    mut copy: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut bytes = [0; 4096];
    let mut at = 0;
    while at < length {
        let count = usize::try_from(length - at).unwrap_or(usize::MAX).min(bytes.len());
        let part = bytes.get_mut(..count).ok_or(Error::Outside)?;
        copy(at, part)?;
        at += PAGE;
    }
    Ok(())
}
