//! The memory of a request, as ranges of addresses.

use iommu_client::{DeviceMemory, ScatterList};

use crate::error::Error;

/// The memory of a request: one range of I/O virtual addresses, or several in the order of the data.
pub trait RequestMemory {
    /// The ranges of its first `length` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] when it is shorter.
    fn segments(&self, length: u64) -> Result<ScatterList<'_>, Error>;
}

impl<M: DeviceMemory> RequestMemory for M {
    fn segments(&self, length: u64) -> Result<ScatterList<'_>, Error> {
        let mut list = ScatterList::new();
        let too_short = Error::Memory { iova: self.iova(), length: self.length() };
        list.push(self, 0..length).map_err(|_| too_short)?;
        Ok(list)
    }
}

/// Memory of one request in several parts. A controller with scatter-gather lists takes parts of any length that is a
/// multiple of 4. Any other one takes parts that fill their pages, except at the start of the first and at the end of the
/// last.
#[derive(Debug, Default)]
pub struct Scattered<M>(pub Vec<M>);

impl<M: DeviceMemory> RequestMemory for Scattered<M> {
    fn segments(&self, length: u64) -> Result<ScatterList<'_>, Error> {
        let (mut list, mut left) = (ScatterList::new(), length);
        for part in &self.0 {
            let now = left.min(part.length());
            list.push(part, 0..now)?;
            left -= now;
        }
        if left == 0 { Ok(list) } else { Err(Error::Memory { iova: 0, length: length - left }) }
    }
}
