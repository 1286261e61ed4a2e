//! Copies of memory that a device may write.

use std::ops::Deref;

/// A copy of memory that a device may write at any time. The driver copies once and looks at the copy, so the value
/// that it checked is the value that it uses.
///
/// Two reads of the memory itself can differ. A driver that checks a length and reads it again uses a length that it
/// never checked. [`Device::sanitize`](crate::Device::sanitize) reports such reads.
///
/// ```
/// use iommu_client::{Device, DmaBuffer};
///
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// let device = Device::open(&connection, "0000--00--04.0")?;
/// let permission = device.attach()?;
/// let ring = DmaBuffer::<[[u32; 4]]>::zeroed_slice(&device, 64)?;
/// # model.device_write(device.address(), ring.iova() + 16, &[9, 0, 0, 0, 1, 0, 0, 0]).unwrap();
/// let entry = ring.snapshot_at::<[u32; 4]>(16)?; // one copy of the second entry
/// let [length, flags, ..] = *entry;
/// if flags & 1 != 0 && length <= 4096 {
///     assert_eq!(length, 9); // whatever the device writes meanwhile
/// }
/// # let _ = permission;
/// # Ok::<(), iommu_client::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot<T>(T);

impl<T> Snapshot<T> {
    /// Wraps a copy that was just made.
    pub(crate) const fn new(copy: T) -> Self {
        Self(copy)
    }

    /// The copy itself.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Snapshot<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
