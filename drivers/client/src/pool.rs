//! DMA memory in small blocks, taken and given back without a request to the server.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use iommu_protocol::wire::Access;

use crate::buffer::{Allocation, BufferOptions, DmaBuffer, PAGE};
use crate::device::Device;
use crate::error::Error;
use crate::platform::split;
use crate::pool::class::Class;
use crate::session::Session;

mod block;
mod class;

pub use block::DmaBlock;

/// Bytes of a large page.
pub(crate) const LARGE: u64 = 2 << 20;

/// The sizes of a pool's blocks, and how it grows. All sizes are powers of two, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// The smallest block.
    pub smallest: u64,
    /// The largest block.
    pub largest: u64,
    /// Memory taken from the server at a time. A block that is larger gets its own.
    pub chunk: u64,
    /// The most memory that the pool takes altogether.
    pub limit: u64,
    /// Accesses that the device may make.
    pub access: Access,
    /// The device takes addresses of 4 GiB and more.
    pub above_4g: bool,
}

impl Default for PoolOptions {
    /// Blocks of 64 bytes to 128 KiB below 4 GiB, 256 KiB at a time, 64 MiB at most. (A driver with large transfers
    /// sets 2 MiB at a time, which its device finds with one entry of the page table.)
    fn default() -> Self {
        Self {
            smallest: 64,
            largest: 128 << 10,
            chunk: 256 << 10,
            limit: 64 << 20,
            access: Access::READ | Access::WRITE,
            above_4g: false,
        }
    }
}

/// Memory that stays mapped for the device, handed out in blocks whose sizes are powers of two.
///
/// Taking a block and giving it back are a few instructions: no request to the server, no atomic operation, no lock.
/// A pool belongs to one thread; a driver with several threads has a pool for each. The pool sends a request only
/// when a size has run out, one for many blocks, or ahead of time in [`DmaPool::reserve`].
///
/// The device reaches the whole pool all the time. If that is too much, see
/// [`TransferQueue`](crate::TransferQueue).
///
/// ```
/// use iommu_client::{Device, DmaPool, PoolOptions};
///
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// let device = Device::open(&connection, "0000--00--04.0")?;
/// let permission = device.attach()?;
/// let pool = DmaPool::new(&device, PoolOptions::default())?;
/// pool.reserve(1500, 1)?; // one request, for many blocks of this size
///
/// let requests = model.counts().requests();
/// let mut block = pool.take(1500)?;
/// block.write(0, b"hello")?;
/// assert_eq!(model.device_read(device.address(), block.iova(), 5), Ok(b"hello".to_vec()));
/// drop(block);
/// assert_eq!(model.counts().requests(), requests);
/// # let _ = permission;
/// # Ok::<(), iommu_client::Error>(())
/// ```
#[derive(Debug)]
pub struct DmaPool {
    /// Blocks of `smallest << index` bytes.
    classes: Box<[Rc<Class>]>,
    source: RefCell<Source>,
    /// Logarithm of the smallest size.
    shift: u32,
}

/// The source of new memory.
#[derive(Debug)]
struct Source {
    session: Arc<Session>,
    options: PoolOptions,
    taken: u64,
}

impl DmaPool {
    /// A pool without memory.
    ///
    /// # Errors
    /// [`Error::PoolOptions`] when a size is not a power of two, or the smallest is larger than the largest.
    pub fn new(device: &Device, options: PoolOptions) -> Result<Self, Error> {
        let PoolOptions { smallest, largest, chunk, .. } = options;
        let sizes = [smallest, largest, chunk];
        if smallest > largest || !sizes.iter().all(|size| size.is_power_of_two()) {
            return Err(Error::PoolOptions { smallest, largest, chunk });
        }
        let shift = smallest.trailing_zeros();
        let sanitizer = device.session.sanitizer();
        let class = |bit| Rc::new(Class::new(1_u64 << bit, sanitizer.cloned()));
        Ok(Self {
            classes: (shift..=largest.trailing_zeros()).map(class).collect(),
            source: RefCell::new(Source { session: device.session.clone(), options, taken: 0 }),
            shift,
        })
    }

    /// A block of at least `length` bytes, aligned to its size. It holds the bytes of its last use.
    ///
    /// # Errors
    /// [`Error::TooLong`]; if its size has run out, [`Error::PoolLimit`] and the errors of [`Device::allocate`].
    #[inline]
    #[track_caller]
    pub fn take(&self, length: u64) -> Result<DmaBlock, Error> {
        let class = self.class(length)?;
        // Only one place makes the block. Two places would pass it through memory, which costs more than all the
        // rest.
        loop {
            if let Some(block) = DmaBlock::take(class, length) {
                return Ok(block);
            }
            self.grow(class)?;
        }
    }

    /// Takes a block like [`DmaPool::take`], but never sends a request; `None` if no block of its size is free.
    #[must_use]
    #[inline]
    #[track_caller]
    pub fn take_ready(&self, length: u64) -> Option<DmaBlock> {
        DmaBlock::take(self.class(length).ok()?, length)
    }

    /// Makes sure that at least `count` blocks of this length are free.
    ///
    /// # Errors
    /// The errors of [`DmaPool::take`].
    #[track_caller]
    pub fn reserve(&self, length: u64, count: usize) -> Result<(), Error> {
        let class = self.class(length)?;
        while class.ready() < count {
            self.grow(class)?;
        }
        Ok(())
    }

    /// Memory taken from the server, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.source.borrow().taken
    }

    /// The class of the smallest size that holds `length` bytes.
    #[inline]
    fn class(&self, length: u64) -> Result<&Rc<Class>, Error> {
        let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
        let index = usize::try_from(bits.saturating_sub(self.shift)).unwrap_or(usize::MAX);
        self.classes.get(index).ok_or_else(|| {
            let most = self.classes.last().map_or(0, |class| class.size);
            Error::TooLong { length, most }
        })
    }

    /// Adds blocks to a class, at least one.
    #[cold]
    #[track_caller]
    fn grow(&self, class: &Class) -> Result<(), Error> {
        let mut source = self.source.borrow_mut();
        let Source { options, taken, .. } = *source;
        let length = options.chunk.max(class.size).max(PAGE);
        let after = taken.saturating_add(length);
        if after > options.limit {
            return Err(Error::PoolLimit { taken, limit: options.limit });
        }
        let size = usize::try_from(class.size).map_err(|_| Error::Outside)?;
        let options = BufferOptions {
            access: options.access,
            above_4g: options.above_4g,
            // Memory of 2 MiB or more is aligned so that large pages can map it.
            alignment: if length >= LARGE { LARGE.max(class.size) } else { class.size.max(PAGE) },
            ..BufferOptions::default()
        };
        let buffer = Allocation::new(&source.session, length, options)?.bytes()?;
        source.taken = after;
        let device = (buffer.iova(), buffer.length());
        for piece in split(buffer, DmaBuffer::memory, device, size).into_iter().rev() {
            class.add(piece);
        }
        Ok(())
    }
}
