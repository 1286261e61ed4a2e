//! Memory as segments of addresses, the form in which a device gets it.

use std::iter;
use std::ops::Range;
use std::rc::Rc;

use crate::error::Error;

/// Memory that a device reaches at contiguous I/O virtual addresses.
pub trait DeviceMemory {
    /// The address of its first byte.
    fn iova(&self) -> u64;

    /// Its length in bytes.
    fn length(&self) -> u64;
}

impl<M: DeviceMemory + ?Sized> DeviceMemory for Rc<M> {
    fn iova(&self) -> u64 {
        (**self).iova()
    }

    fn length(&self) -> u64 {
        (**self).length()
    }
}

/// Contiguous I/O virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first address.
    pub iova: u64,
    /// Bytes, at least 1.
    pub length: u64,
}

/// Limits of a device for one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    /// No segment is longer, in bytes; 0 for no limit.
    pub longest: u64,
    /// No segment crosses a multiple of this power of two; 0 for no limit.
    pub boundary: u64,
}

/// Memory in the order in which a device transfers it. The list borrows the memory, so that none of it can be dropped
/// while the list is used.
///
/// ```
/// use iommu_client::{BufferOptions, Device, ScatterList, Segment, SegmentLimits};
///
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// let device = Device::open(&connection, "0000--00--04.0")?;
/// let header = device.allocate(4096, BufferOptions::default())?;
/// let data = device.allocate(16384, BufferOptions::default())?;
///
/// let mut list = ScatterList::new();
/// list.push(&header, 0..64)?.push(&data, 1000..9000)?;
/// assert_eq!(list.length(), 8064);
///
/// // A device that takes one page a descriptor:
/// let pages = SegmentLimits { longest: 0, boundary: 4096 };
/// let lengths: Vec<u64> = list.segments(pages).map(|segment| segment.length).collect();
/// assert_eq!(lengths, [64, 3096, 4096, 808]);
/// # Ok::<(), iommu_client::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct ScatterList<'memory> {
    segments: Vec<Segment>,
    memory: std::marker::PhantomData<&'memory ()>,
}

impl<'memory> ScatterList<'memory> {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes of some memory; an empty range adds nothing.
    ///
    /// # Errors
    /// [`Error::Outside`] when the range is not part of the memory.
    pub fn push<M: DeviceMemory + ?Sized>(
        &mut self,
        memory: &'memory M,
        range: Range<u64>,
    ) -> Result<&mut Self, Error> {
        let length = range.end.checked_sub(range.start).ok_or(Error::Outside)?;
        let iova = memory.iova().checked_add(range.start).ok_or(Error::Outside)?;
        if range.end > memory.length() {
            return Err(Error::Outside);
        }
        match self.segments.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.iova.checked_add(last.length) == Some(iova) => last.length += length,
            _ => self.segments.push(Segment { iova, length }),
        }
        Ok(self)
    }

    /// Bytes of all segments together.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// The segments, cut to the limits of the device.
    pub fn segments(&self, limits: SegmentLimits) -> impl Iterator<Item = Segment> + '_ {
        self.segments.iter().flat_map(move |whole| {
            let mut rest = *whole;
            iter::from_fn(move || {
                let mut length = rest.length;
                if limits.longest > 0 {
                    length = length.min(limits.longest);
                }
                if limits.boundary > 0 {
                    length = length.min(limits.boundary - rest.iova % limits.boundary);
                }
                let piece = Segment { iova: rest.iova, length };
                rest = Segment {
                    iova: rest.iova.wrapping_add(length),
                    length: rest.length.saturating_sub(length),
                };
                (length > 0).then_some(piece)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(u64, u64);

    impl DeviceMemory for Fake {
        fn iova(&self) -> u64 {
            self.0
        }

        fn length(&self) -> u64 {
            self.1
        }
    }

    #[test]
    fn neighbours_join_and_limits_cut() {
        let (a, b, c) = (Fake(0x1000, 0x1000), Fake(0x2000, 0x1000), Fake(0x8000, 10));
        let mut list = ScatterList::new();
        list.push(&a, 0xff0..0x1000).unwrap().push(&b, 0..0x20).unwrap().push(&b, 5..5).unwrap();
        list.push(&c, 0..10).unwrap();
        let cut = |longest, boundary| {
            let limits = SegmentLimits { longest, boundary };
            list.segments(limits).map(|s| (s.iova, s.length)).collect::<Vec<_>>()
        };
        assert_eq!(cut(0, 0), [(0x1ff0, 0x30), (0x8000, 10)]);
        assert_eq!(cut(0, 0x1000), [(0x1ff0, 0x10), (0x2000, 0x20), (0x8000, 10)]);
        assert_eq!(cut(0x18, 0), [(0x1ff0, 0x18), (0x2008, 0x18), (0x8000, 10)]);
        assert_eq!(list.length(), 58);
    }

    #[test]
    fn nothing_outside_of_the_memory_gets_in() {
        let memory = Fake(u64::MAX - 4, 100);
        let mut list = ScatterList::new();
        for range in [0..101, 50..101, Range { start: 2, end: 1 }, 50..60] {
            assert!(matches!(list.push(&memory, range), Err(Error::Outside)));
        }
        assert_eq!(list.length(), 0);
    }
}
