//! Ranges of a buffer that a device reaches for one transfer.

use std::ops::Range;
use std::panic::Location;

use iommu_protocol::wire::{self, Access, Empty, MapResult, Operation};

use crate::error::Error;
use crate::sanitizer::{Place, Tenure, Window};
use crate::scatter::DeviceMemory;
use crate::session::Session;

/// A range of a buffer that the device may reach, until this is dropped. It costs two requests to the server. A
/// [`TransferQueue`](crate::TransferQueue) shares them among transfers; memory of a [`DmaPool`](crate::DmaPool) costs
/// none.
///
/// ```
/// use iommu_client::{Access, BufferOptions, Device};
///
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// let device = Device::open(&connection, "0000--00--04.0")?;
/// let permission = device.attach()?;
/// let buffer = device.allocate(8192, BufferOptions { unmapped: true, ..Default::default() })?;
/// let grant = buffer.grant(4096..8192, Access::READ)?;
/// assert_eq!(grant.iova(), buffer.iova() + 4096);
/// assert!(model.device_read(device.address(), grant.iova(), 4).is_ok());
/// assert!(model.device_write(device.address(), grant.iova(), &[1]).is_err());
/// grant.revoke()?;
/// assert!(model.device_read(device.address(), buffer.iova() + 4096, 4).is_err());
/// # let _ = permission;
/// # Ok::<(), iommu_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Grant<'buffer> {
    session: &'buffer Session,
    slot: u32,
    offset: u64,
    length: u64,
    iova: u64,
}

impl<'buffer> Grant<'buffer> {
    #[track_caller]
    pub(crate) fn new(
        session: &'buffer Session,
        slot: u32,
        range: Range<u64>,
        access: Access,
    ) -> Result<Self, Error> {
        let (offset, length) = (range.start, range.end.saturating_sub(range.start));
        let request = wire::Grant { slot, access: access.bits(), offset, length };
        let MapResult { iova } = session.call(Operation::Grant, &request)?;
        if let Some(sanitizer) = session.sanitizer() {
            let (tenure, granted) = (Tenure::Driver, Location::caller());
            let window = Window { slot, iova, length, access, tenure, granted, home: None };
            sanitizer.granted(window, Some(offset));
        }
        Ok(Self { session, slot, offset, length, iova })
    }
}

impl Grant<'_> {
    /// The I/O virtual address of its first byte.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.iova
    }

    /// Revokes the grant. When this returns, the device no longer reaches the range.
    ///
    /// # Errors
    /// `UnitFailed`: the device may still reach it.
    #[track_caller]
    pub fn revoke(self) -> Result<(), Error> {
        let result = self.end(Some(Location::caller()));
        std::mem::forget(self);
        result
    }

    fn end(&self, place: Option<Place>) -> Result<(), Error> {
        let Self { slot, offset, length, .. } = *self;
        let request = wire::Grant { slot, access: 0, offset, length };
        let Empty { .. } = self.session.call(Operation::Revoke, &request)?;
        if let Some(sanitizer) = self.session.sanitizer() {
            sanitizer.ended(self.iova, length, place);
        }
        Ok(())
    }
}

impl DeviceMemory for Grant<'_> {
    fn iova(&self) -> u64 {
        self.iova
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        // A driver that needs the result calls `revoke`. The end of the buffer revokes the grant in any case.
        let _ = self.end(None);
    }
}
