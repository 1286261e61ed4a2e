//! DMA memory in small blocks, taken and given back without a request to the server.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use iommu_protocol::wire::Access;
use zerocopy::{FromBytes, IntoBytes};

use crate::buffer::{BufferOptions, DmaBuffer, PAGE};
use crate::device::Device;
use crate::error::Error;
use crate::platform::{Piece, split};
use crate::scatter::DeviceMemory;

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
    session: std::sync::Arc<crate::session::Session>,
    options: PoolOptions,
    taken: u64,
}

/// The free blocks of one size. Their list runs through the blocks themselves, so that neither taking nor giving back
/// allocates.
struct Class {
    size: u64,
    free: Cell<Option<Box<Node>>>,
}

/// A block of memory, in use or in the list of its class.
#[derive(Debug)]
struct Node {
    piece: Piece<DmaBuffer>,
    next: Option<Box<Node>>,
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
        let class = |bit| Rc::new(Class { size: 1_u64 << bit, free: Cell::default() });
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
    pub fn take(&self, length: u64) -> Result<DmaBlock, Error> {
        let class = self.class(length)?;
        // Only one place makes the block. Two places would pass it through memory, which costs more than all the
        // rest.
        loop {
            if let Some(block) = class.take(length) {
                return Ok(block);
            }
            self.grow(class)?;
        }
    }

    /// Takes a block like [`DmaPool::take`], but never sends a request; `None` if no block of its size is free.
    #[must_use]
    #[inline]
    pub fn take_ready(&self, length: u64) -> Option<DmaBlock> {
        self.class(length).ok()?.take(length)
    }

    /// Makes sure that at least `count` blocks of this length are free.
    ///
    /// # Errors
    /// The errors of [`DmaPool::take`].
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
        let buffer = crate::buffer::Allocation::new(&source.session, length, options)?.bytes()?;
        source.taken = after;
        let device = (buffer.iova(), buffer.length());
        for piece in split(buffer, DmaBuffer::memory, device, size).into_iter().rev() {
            class.put(Box::new(Node { piece, next: None }));
        }
        Ok(())
    }
}

impl Class {
    #[inline]
    fn take(self: &Rc<Self>, length: u64) -> Option<DmaBlock> {
        let mut node = self.free.take()?;
        put_into(&self.free, node.next.take());
        Some(DmaBlock { node: Some(node), length, home: self.clone() })
    }

    #[inline]
    fn put(&self, mut node: Box<Node>) {
        debug_assert!(node.next.is_none());
        std::mem::forget(std::mem::replace(&mut node.next, self.free.take()));
        put_into(&self.free, Some(node));
    }

    /// Number of free blocks.
    fn ready(&self) -> usize {
        let first = self.free.take();
        let count = std::iter::successors(first.as_deref(), |node| node.next.as_deref()).count();
        self.free.set(first);
        count
    }
}

/// Puts a list into a place that was just emptied. `forget` leaves out the drop of the old value. That value is
/// `None`, and a drop would check for it.
#[inline]
fn put_into(place: &Cell<Option<Box<Node>>>, list: Option<Box<Node>>) {
    std::mem::forget(place.replace(list));
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class").field("size", &self.size).field("ready", &self.ready()).finish()
    }
}

impl Drop for Class {
    /// One block after the other: a list that drops itself does so recursively.
    fn drop(&mut self) {
        let mut rest = self.free.take();
        while let Some(mut node) = rest {
            rest = node.next.take();
        }
    }
}

/// A block of a pool, given back when dropped. It may outlive its pool. The device reaches it all the time, so bytes
/// are copied in and out, like those of a [`DmaBuffer`].
#[derive(Debug)]
pub struct DmaBlock {
    /// Present until the drop.
    node: Option<Box<Node>>,
    length: u64,
    home: Rc<Class>,
}

impl DmaBlock {
    /// The I/O virtual address of the first byte, to be given to the device.
    #[must_use]
    #[inline]
    pub fn iova(&self) -> u64 {
        self.node.as_ref().map_or(0, |node| node.piece.address())
    }

    /// The requested length, in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Copies bytes into the block.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[inline]
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.node.as_mut().ok_or(Error::Outside)?.piece.write(offset, bytes)
    }

    /// Copies bytes out of the block.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[inline]
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.node.as_ref().ok_or(Error::Outside)?.piece.read(offset, bytes)
    }

    /// All of its bytes as they are now.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(0)];
        let copied = self.read(0, &mut bytes);
        debug_assert!(copied.is_ok());
        bytes
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) {
        let length = usize::try_from(self.length).unwrap_or(0);
        let filled = self.node.as_mut().map(|node| node.piece.fill(0, length, byte));
        debug_assert!(matches!(filled, Some(Ok(()))));
    }

    /// The value at `offset` as it is now.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    pub fn load_at<V: FromBytes + IntoBytes>(&self, offset: u64) -> Result<V, Error> {
        let mut value = V::new_zeroed();
        self.read(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Puts a value at `offset`.
    ///
    /// # Errors
    /// [`Error::Outside`].
    #[inline]
    pub fn store_at<V: FromBytes + IntoBytes>(
        &mut self,
        offset: u64,
        mut value: V,
    ) -> Result<(), Error> {
        self.write(offset, value.as_mut_bytes())
    }

    /// Checks against the requested length, since the block may be larger.
    #[inline]
    fn check(&self, offset: u64, length: usize) -> Result<(), Error> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        if end.is_some_and(|end| end <= self.length) { Ok(()) } else { Err(Error::Outside) }
    }
}

impl DeviceMemory for DmaBlock {
    fn iova(&self) -> u64 {
        Self::iova(self)
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for DmaBlock {
    #[inline]
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            self.home.put(node);
        }
    }
}
