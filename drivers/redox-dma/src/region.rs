//! Memory of one value, from the session or plain, given back when dropped.

use std::ptr::NonNull;

use iommu_client::PAGE;

use crate::home::Home;
use crate::platform::{EINVAL, ENOMEM, Error, Mapping, Result};
use crate::session::{Access, access};

/// Whole pages that the device reaches under adjacent addresses. The device may write them at any time.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    length: usize,
    physical: usize,
    _home: Home,
}

/// Rounds a length up to whole pages, as the memory scheme counts them.
///
/// # Errors
/// `EINVAL` for no bytes; `ENOMEM` if no machine has as many.
pub(crate) fn whole_pages(bytes: usize) -> Result<usize> {
    let page = usize::try_from(PAGE).map_err(|_| Error::new(EINVAL))?;
    match bytes.checked_next_multiple_of(page).filter(|length| isize::try_from(*length).is_ok()) {
        None => Err(Error::new(ENOMEM)),
        Some(0) => Err(Error::new(EINVAL)),
        Some(length) => Ok(length),
    }
}

impl Region {
    /// Allocates at least `bytes` bytes, whole pages of zeros under adjacent addresses. They are aligned to the next
    /// power of two, as long as there is room.
    pub(crate) fn zeroed(bytes: usize) -> Result<Self> {
        let length = whole_pages(bytes)?;
        let region = match access()? {
            Access::Confined(session) => {
                let (home, physical) = session.allocate(length)?;
                Self::of(home, physical, length)
            }
            Access::Plain => {
                let (mapping, physical) = Mapping::contiguous(length)?;
                Self::of(Home::Plain(mapping), physical, length)
            }
        }?;
        Ok(region)
    }

    /// Allocates pieces of these lengths, whole pages, which are adjacent for this process. Returns the address that
    /// each piece has for the device.
    pub(crate) fn scattered(lengths: &[usize]) -> Result<(Self, Vec<usize>)> {
        let length = lengths.iter().try_fold(0_usize, |sum, length| sum.checked_add(*length));
        let length = length.ok_or(Error::new(ENOMEM))?;
        if let Access::Plain = access()? {
            let (mapping, addresses) = Mapping::scattered(lengths)?;
            let first = addresses.first().copied().ok_or(Error::new(EINVAL))?;
            return Ok((Self::of(Home::Plain(mapping), first, length)?, addresses));
        }
        let region = Self::zeroed(length)?;
        let mut next = region.physical;
        let addresses = lengths.iter().map(|length| {
            let at = next;
            next = next.wrapping_add(*length);
            at
        });
        let addresses = addresses.collect();
        Ok((region, addresses))
    }

    fn of(home: Home, physical: usize, length: usize) -> Result<Self> {
        let start = NonNull::new(home.start()).ok_or(Error::new(EINVAL))?;
        Ok(Self { start, length, physical, _home: home })
    }

    /// Address of the first byte in this process.
    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    /// Address of the first byte for the device.
    pub(crate) const fn physical(&self) -> usize {
        self.physical
    }
}
