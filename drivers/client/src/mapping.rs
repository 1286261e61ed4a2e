//! Ranges of a session's buffers in its domain.

use std::ops::Range;
use std::panic::Location;

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{
    Access, BufferRequest, Empty, Map, MapFlags, MapList, MapResult, Operation, Unmap, Wire,
};

use crate::error::Error;
use crate::sanitizer::{Place, Tenure, Window};
use crate::scatter::DeviceMemory;
use crate::session::Session;

/// The address at which a range is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Placement {
    /// Anywhere below 4 GiB.
    #[default]
    Below4G,
    /// Anywhere in the device's reach.
    Anywhere,
    /// At exactly this I/O virtual address.
    At(u64),
}

impl Placement {
    pub(crate) const fn encode(self) -> (MapFlags, u64) {
        match self {
            Self::Below4G => (MapFlags::empty(), 0),
            Self::Anywhere => (MapFlags::ABOVE_4G, 0),
            Self::At(iova) => (MapFlags::FIXED, iova),
        }
    }
}

/// A buffer's slot in a session, from which mappings are made.
#[derive(Clone, Copy, Debug)]
pub struct BufferSlot<'owner> {
    pub(crate) session: &'owner Session,
    pub(crate) number: u32,
}

impl<'owner> BufferSlot<'owner> {
    /// Maps a range of the buffer into the session's domain. Both ends are multiples of 4096.
    ///
    /// # Errors
    /// `Range`, `Alignment`, `Reserved`, `Mapped`, `NoSpace`, `Quota`.
    #[track_caller]
    pub fn map(
        self,
        range: Range<u64>,
        access: Access,
        placement: Placement,
    ) -> Result<Mapping<'owner>, Error> {
        let (flags, iova) = placement.encode();
        let length = range.end.saturating_sub(range.start);
        let request = Map {
            slot: self.number,
            access: access.bits(),
            offset: range.start,
            length,
            iova,
            flags: flags.bits(),
            reserved: 0,
        };
        let MapResult { iova } = self.session.call(Operation::Map, &request)?;
        self.watch((iova, length), access, Some(range.start), Location::caller());
        Ok(Mapping { session: self.session, iova, length })
    }

    /// Has the sanitizer watch a mapping of the buffer, from this offset on.
    fn watch(
        self,
        (iova, length): (u64, u64),
        access: Access,
        offset: Option<u64>,
        granted: Place,
    ) {
        if let Some(sanitizer) = self.session.sanitizer() {
            let (slot, tenure) = (self.number, Tenure::Driver);
            let window = Window { slot, iova, length, access, tenure, granted, home: None };
            sanitizer.granted(window, offset);
        }
    }

    /// Maps pages of the buffer, of 4096 bytes each, in any order, to consecutive addresses. Memory that is scattered
    /// for the driver is then one range for the device, and one segment of a [`ScatterList`](crate::ScatterList). One
    /// call maps the pages and one ends the mapping, whatever their number, 1 to 8192. Each page counts as one
    /// mapping of the client.
    ///
    /// ```
    /// use iommu_client::{Access, BufferOptions, Device, Placement, ScatterList, SegmentLimits};
    ///
    /// # let model = iommud_tests::model::Model::new();
    /// # let connection = model.connection();
    /// let device = Device::open(&connection, "0000--00--04.0")?;
    /// let permission = device.attach()?;
    /// let options = BufferOptions { unmapped: true, ..BufferOptions::default() };
    /// let cache = device.allocate(64 * 4096, options)?;
    ///
    /// let blocks = cache.slot().map_pages(&[9, 2, 40], Access::READ, Placement::Below4G)?;
    /// let mut list = ScatterList::new();
    /// list.push(&blocks, 0..3 * 4096)?;
    /// assert_eq!(list.segments(SegmentLimits { longest: 0, boundary: 0 }).count(), 1);
    /// # device.detach(permission)?;
    /// # Ok::<(), iommu_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::RefusedItem`] names a page that is not in the buffer; else `Range`, `Reserved`, `Mapped`, `NoSpace`,
    /// `Quota`, and, if no unit confines the device and the pages do not follow each other, `Unsupported`.
    #[track_caller]
    pub fn map_pages(
        self,
        pages: &[u32],
        access: Access,
        placement: Placement,
    ) -> Result<Mapping<'owner>, Error> {
        let (flags, iova) = placement.encode();
        let count = u32::try_from(pages.len()).map_err(|_| Refusal::Range)?;
        let request =
            MapList { slot: self.number, access: access.bits(), flags: flags.bits(), count, iova };
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        let MapResult { iova } =
            self.session.call_with(Operation::MapList, &request, &bytes, 0, |body| {
                Ok(MapResult::decode(body)?)
            })?;
        let length = u64::from(count) * 4096;
        self.watch((iova, length), access, None, Location::caller());
        Ok(Mapping { session: self.session, iova, length })
    }
}

/// A range that the device reaches, until this is dropped.
#[derive(Debug)]
pub struct Mapping<'owner> {
    session: &'owner Session,
    iova: u64,
    length: u64,
}

impl Mapping<'_> {
    /// First I/O virtual address.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Ends the mapping. When this returns, the device no longer reaches the range.
    ///
    /// # Errors
    /// `UnitFailed`: the device may still reach it.
    #[track_caller]
    pub fn unmap(self) -> Result<(), Error> {
        let result = self.end(Some(Location::caller()));
        std::mem::forget(self);
        result
    }

    fn end(&self, place: Option<Place>) -> Result<(), Error> {
        unmap(self.session, self.iova, self.length, place)
    }
}

impl DeviceMemory for Mapping<'_> {
    fn iova(&self) -> u64 {
        self.iova
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        // A driver that needs the result calls `unmap`. The end of the import ends the mapping in any case.
        let _ = self.end(None);
    }
}

pub(crate) fn unmap(
    session: &Session,
    iova: u64,
    length: u64,
    place: Option<Place>,
) -> Result<(), Error> {
    let Empty { .. } = session.call(Operation::Unmap, &Unmap { iova, length })?;
    if let Some(sanitizer) = session.sanitizer() {
        sanitizer.ended(iova, length, place);
    }
    Ok(())
}

/// Releases the slot of a buffer of this length. The server refuses only if the session is gone, and the slot with it.
pub(crate) fn release(session: &Session, slot: u32, length: u64) {
    if let Some(sanitizer) = session.sanitizer() {
        sanitizer.released(slot, length);
    }
    let request = BufferRequest { slot, reserved: 0 };
    let _: Result<Empty, Error> = session.call(Operation::Release, &request);
}
