//! Several maps, unmaps, grants and revokes in one call.

use std::ops::Range;
use std::panic::Location;

use iommu_protocol::wire::{self, Access, BatchItem, Empty, MapFlags, MapResult, Operation, Wire};

use crate::device::Device;
use crate::error::{Error, ProtocolError};
use crate::mapping::{BufferSlot, Placement};
use crate::sanitizer::{Place, Sanitizer, Tenure, Window};
use crate::session::Session;

/// Maps, unmaps, grants and revokes that take effect together or not at all, with one invalidation.
///
/// Mappings that a batch makes last until a batch unmaps them, or until their buffer's slot ends. So do grants, until a
/// batch revokes them. [`TransferQueue`](crate::TransferQueue) keeps account of the grants of transfers.
///
/// ```
/// use iommu_client::{Access, Batch, BufferOptions, Device, Placement};
///
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// let device = Device::open(&connection, "0000--00--04.0")?;
/// let permission = device.attach()?;
/// let buffer = device.allocate(65536, BufferOptions::default())?;
/// let mut batch = Batch::new();
/// for page in [0_u64, 3, 7] {
///     let range = page * 4096..(page + 1) * 4096;
///     batch = batch.map(buffer.slot(), range, Access::READ, Placement::Below4G);
/// }
/// let iovas = batch.run(&device)?; // one request for all three
/// assert!(model.device_read(device.address(), iovas[2], 4096).is_ok());
/// # let _ = permission;
/// # Ok::<(), iommu_client::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    items: Vec<BatchItem>,
}

impl Batch {
    /// No items.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a mapping of a range of a buffer, with the arguments of [`BufferSlot::map`].
    #[must_use]
    pub fn map(
        mut self,
        buffer: BufferSlot<'_>,
        range: Range<u64>,
        access: Access,
        placement: Placement,
    ) -> Self {
        let (flags, iova) = placement.encode();
        self.items.push(BatchItem {
            operation: Operation::Map.code(),
            flags: flags.bits(),
            slot: buffer.number,
            access: access.bits(),
            offset: range.start,
            length: range.end.saturating_sub(range.start),
            iova,
            ..BatchItem::default()
        });
        self
    }

    /// Adds the end of one mapping, given exactly as it was made.
    #[must_use]
    pub fn unmap(mut self, iova: u64, length: u64) -> Self {
        let operation = Operation::Unmap.code();
        let flags = MapFlags::empty().bits();
        self.items.push(BatchItem { operation, flags, iova, length, ..BatchItem::default() });
        self
    }

    /// Adds a grant of a range of a buffer that was allocated unmapped, as [`DmaBuffer::grant`] makes one.
    ///
    /// [`DmaBuffer::grant`]: crate::DmaBuffer::grant
    #[must_use]
    pub fn grant(mut self, buffer: BufferSlot<'_>, range: Range<u64>, access: Access) -> Self {
        self.items.push(grant_item(buffer.number, range, access));
        self
    }

    /// Adds the end of one grant, given exactly as it was made. A batch cannot grant what it revokes.
    #[must_use]
    pub fn revoke(mut self, buffer: BufferSlot<'_>, range: Range<u64>) -> Self {
        self.items.push(revoke_item(buffer.number, range));
        self
    }

    /// Runs the batch on a device's session. Returns one I/O virtual address for each item, 0 for an unmap or revoke.
    ///
    /// # Errors
    /// [`Error::RefusedItem`] names the item and the reason; then nothing has changed.
    #[track_caller]
    pub fn run(&self, device: &Device) -> Result<Vec<u64>, Error> {
        let iovas = send(&device.session, &self.items)?;
        if let Some(sanitizer) = device.session.sanitizer() {
            // A closure would be its own caller.
            let (items, place) = (self.items.iter().zip(&iovas), Location::caller());
            items.for_each(|(item, iova)| watch(sanitizer, item, *iova, place));
        }
        Ok(iovas)
    }
}

/// Has the sanitizer note an item of a batch that took effect.
fn watch(sanitizer: &Sanitizer, item: &BatchItem, iova: u64, place: Place) {
    let BatchItem { slot, offset, length, .. } = *item;
    let map = [Operation::Map, Operation::Grant].map(Operation::code);
    if map.contains(&item.operation) {
        let access = Access::from_bits_truncate(item.access);
        let (tenure, granted, home) = (Tenure::Driver, place, None);
        let window = Window { slot, iova, length, access, tenure, granted, home };
        sanitizer.granted(window, Some(offset));
    } else if item.operation == Operation::Revoke.code() {
        sanitizer.revoked(slot, offset, length, Some(place));
    } else {
        sanitizer.ended(item.iova, length, Some(place));
    }
}

pub(crate) fn grant_item(slot: u32, range: Range<u64>, access: Access) -> BatchItem {
    BatchItem {
        operation: Operation::Grant.code(),
        slot,
        access: access.bits(),
        offset: range.start,
        length: range.end.saturating_sub(range.start),
        ..BatchItem::default()
    }
}

pub(crate) fn revoke_item(slot: u32, range: Range<u64>) -> BatchItem {
    let operation = Operation::Revoke.code();
    BatchItem { operation, ..grant_item(slot, range, Access::empty()) }
}

/// Sends items in one call. Returns one I/O virtual address for each.
pub(crate) fn send(session: &Session, items: &[BatchItem]) -> Result<Vec<u64>, Error> {
    let count = u32::try_from(items.len()).map_err(|_| crate::Refusal::BadLength)?;
    let mut bytes = vec![0; items.len() * BatchItem::SIZE];
    for (item, out) in items.iter().zip(bytes.chunks_exact_mut(BatchItem::SIZE)) {
        item.encode(out)?;
    }
    let request = wire::Batch { count, reserved: 0 };
    let extra = items.len() * MapResult::SIZE;
    session.call_with(Operation::Batch, &request, &bytes, extra, |body| {
        let results = body.get(Empty::SIZE..).ok_or(ProtocolError::Length)?;
        if results.len() != extra {
            return Err(ProtocolError::Length.into());
        }
        results.chunks_exact(MapResult::SIZE).map(|r| Ok(MapResult::decode(r)?.iova)).collect()
    })
}
