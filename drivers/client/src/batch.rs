//! Several maps and unmaps in one call.

use std::ops::Range;

use iommu_protocol::wire::{self, Access, BatchItem, Empty, MapFlags, MapResult, Operation, Wire};

use crate::device::Device;
use crate::error::{Error, ProtocolError};
use crate::mapping::{BufferSlot, Placement};

/// Maps and unmaps that take effect together or not at all, with one invalidation.
///
/// Mappings that a batch makes last until a batch unmaps them, or until their buffer's slot ends.
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

    /// Runs the batch on a device's session. Returns one I/O virtual address for each item, 0 for an unmap.
    ///
    /// # Errors
    /// [`Error::RefusedItem`] names the item and the reason; then nothing has changed.
    pub fn run(&self, device: &Device) -> Result<Vec<u64>, Error> {
        let count = u32::try_from(self.items.len()).map_err(|_| crate::Refusal::BadLength)?;
        let mut items = vec![0; self.items.len() * BatchItem::SIZE];
        for (item, out) in self.items.iter().zip(items.chunks_exact_mut(BatchItem::SIZE)) {
            item.encode(out)?;
        }
        let request = wire::Batch { count, reserved: 0 };
        let extra = self.items.len() * MapResult::SIZE;
        device.session.call_with(Operation::Batch, &request, &items, extra, |body| {
            let results = body.get(Empty::SIZE..).ok_or(ProtocolError::Length)?;
            if results.len() != extra {
                return Err(ProtocolError::Length.into());
            }
            results.chunks_exact(MapResult::SIZE).map(|r| Ok(MapResult::decode(r)?.iova)).collect()
        })
    }
}
