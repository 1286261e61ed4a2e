//! DMA buffers.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use iommu_protocol::ids::Slot;
use iommu_protocol::path::SessionPath;
use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, AllocateResult, BufferRequest, Empty, Operation,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::Device;
use crate::error::Error;
use crate::grant::Grant;
use crate::mapping::{BufferSlot, unmap};
use crate::platform::{Memory, View};
use crate::scatter::DeviceMemory;
use crate::session::Session;
use crate::transport::{Handle, Transport};

/// Buffers are whole pages of this many bytes.
pub const PAGE: u64 = 4096;

/// How a buffer is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferOptions {
    /// What the device may do.
    pub access: Access,
    /// Alignment of the I/O virtual address: 0, or a power of two from 4096 on.
    pub alignment: u64,
    /// The I/O virtual addresses may not cross a multiple of this: 0, or a power of two not below the
    /// length.
    pub boundary: u64,
    /// The device takes addresses of 4 GiB and more.
    pub above_4g: bool,
    /// Nothing is mapped: ranges are granted one by one.
    pub unmapped: bool,
}

impl Default for BufferOptions {
    /// Readable and writable for the device, at any page below 4 GiB, mapped as a whole.
    fn default() -> Self {
        Self {
            access: Access::READ | Access::WRITE,
            alignment: 0,
            boundary: 0,
            above_4g: false,
            unmapped: false,
        }
    }
}

/// Memory of this process and of its device, with a `T` or some `T`s at its start. Its I/O virtual addresses
/// are contiguous, whatever its length.
///
/// The value is reached by dereferencing. A field that the device writes while the driver looks at it is to
/// be an atomic; everything else may be plain numbers and arrays of them. [`DmaBuffer::read`] and
/// [`DmaBuffer::write`] copy bytes with volatile accesses instead.
///
/// ```
/// use std::sync::atomic::{AtomicU16, Ordering};
/// use iommu_client::{Device, DmaBuffer};
/// use zerocopy::{FromBytes, IntoBytes};
///
/// #[derive(FromBytes, IntoBytes)]
/// #[repr(C)]
/// struct Ring {
///     descriptors: [[u64; 2]; 64],
///     used: AtomicU16,
///     reserved: [u16; 3],
/// }
///
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// let device = Device::open(&connection, "0000--00--04.0")?;
/// let permission = device.attach()?;
/// let mut ring = DmaBuffer::<Ring>::zeroed(&device)?;
/// let mut data = DmaBuffer::<[u32]>::zeroed_slice(&device, 1024)?;
///
/// data[3] = 7;
/// ring.descriptors[0] = [data.iova_at(12).unwrap(), 4];
/// assert_eq!(ring.used.load(Ordering::Acquire), 0);
/// // What the device finds where the descriptor points:
/// assert_eq!(model.device_read(device.address(), ring.descriptors[0][0], 4), Ok(vec![7, 0, 0, 0]));
/// # let _ = permission;
/// # Ok::<(), iommu_client::Error>(())
/// ```
#[derive(Debug)]
pub struct DmaBuffer<T: ?Sized = [u8]> {
    session: Arc<Session>,
    slot: u32,
    iova: u64,
    length: u64,
    // The order of the last two is the order in which they go, after `drop`.
    view: View<T>,
    handle: BufferHandle,
}

/// Memory as the server gave it.
pub(crate) struct Allocation {
    session: Arc<Session>,
    slot: u32,
    iova: u64,
    length: u64,
    memory: Memory,
    handle: BufferHandle,
}

/// The descriptor of a buffer. The server does not give its memory to anyone else before it is closed.
#[derive(Debug)]
struct BufferHandle {
    session: Arc<Session>,
    handle: Handle,
}

impl Drop for BufferHandle {
    fn drop(&mut self) {
        self.session.transport.close(self.handle);
    }
}

impl Allocation {
    pub(crate) fn new(
        session: &Arc<Session>,
        length: u64,
        options: BufferOptions,
    ) -> Result<Self, Error> {
        let mut flags = AllocateFlags::empty();
        flags.set(AllocateFlags::ABOVE_4G, options.above_4g);
        flags.set(AllocateFlags::UNMAPPED, options.unmapped);
        let request = Allocate {
            length,
            alignment: options.alignment,
            boundary: options.boundary,
            access: options.access.bits(),
            flags: flags.bits(),
        };
        let result: AllocateResult = session.call(Operation::Allocate, &request)?;
        let slot = SlotGuard { session, slot: result.slot };
        let path = SessionPath::Buffer(Slot(result.slot)).to_string();
        let handle = session.transport.open(Some(session.handle), &path, true)?;
        let handle = BufferHandle { session: session.clone(), handle };
        let memory = session.transport.map(handle.handle)?;
        std::mem::forget(slot);
        let AllocateResult { slot, iova, length, .. } = result;
        Ok(Self { session: session.clone(), slot, iova, length, memory, handle })
    }

    fn view<T: ?Sized>(
        self,
        view: impl FnOnce(Memory) -> Result<View<T>, Error>,
    ) -> Result<DmaBuffer<T>, Error> {
        let Self { session, slot, iova, length, memory, handle } = self;
        match view(memory) {
            Ok(view) => Ok(DmaBuffer { session, slot, iova, length, view, handle }),
            Err(error) => {
                release(&session, slot);
                Err(error)
            }
        }
    }

    pub(crate) fn bytes(self) -> Result<DmaBuffer, Error> {
        let count = usize::try_from(self.length).map_err(|_| Error::Outside)?;
        self.view(|memory| View::slice(memory, count))
    }
}

/// The length of a buffer that holds this many bytes.
fn pages(bytes: usize) -> Result<u64, Error> {
    let bytes = u64::try_from(bytes).map_err(|_| Error::Outside)?;
    bytes.max(1).checked_next_multiple_of(PAGE).ok_or(Error::Outside)
}

impl<T: FromBytes + IntoBytes> DmaBuffer<T> {
    /// A value, filled with zeros, at any page below 4 GiB.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn zeroed(device: &Device) -> Result<Self, Error> {
        Self::zeroed_with(device, BufferOptions::default())
    }

    /// A value, filled with zeros.
    ///
    /// # Errors
    /// As [`Device::allocate`]; [`Error::Outside`] when its type is aligned to more than a page.
    pub fn zeroed_with(device: &Device, options: BufferOptions) -> Result<Self, Error> {
        Allocation::new(&device.session, pages(size_of::<T>())?, options)?.view(View::value)
    }

    /// This value, at any page below 4 GiB.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn new(device: &Device, value: T) -> Result<Self, Error> {
        let mut buffer = Self::zeroed(device)?;
        *buffer = value;
        Ok(buffer)
    }
}

impl<T: FromBytes + IntoBytes> DmaBuffer<[T]> {
    /// `count` values, filled with zeros, at any page below 4 GiB.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn zeroed_slice(device: &Device, count: usize) -> Result<Self, Error> {
        Self::zeroed_slice_with(device, count, BufferOptions::default())
    }

    /// `count` values, filled with zeros.
    ///
    /// # Errors
    /// As [`DmaBuffer::zeroed_with`].
    pub fn zeroed_slice_with(
        device: &Device,
        count: usize,
        options: BufferOptions,
    ) -> Result<Self, Error> {
        let bytes = size_of::<T>().checked_mul(count).ok_or(Error::Outside)?;
        Allocation::new(&device.session, pages(bytes)?, options)?
            .view(|memory| View::slice(memory, count))
    }
}

impl<T: ?Sized> DmaBuffer<T> {
    pub(crate) const fn handle(&self) -> Handle {
        self.handle.handle
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.session.transport
    }

    pub(crate) const fn memory(&self) -> &Memory {
        self.view.memory()
    }

    /// The I/O virtual address of the first byte: what the device is told.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.iova
    }

    /// The I/O virtual address of the byte at `offset`; `None` outside.
    #[must_use]
    pub fn iova_at(&self, offset: u64) -> Option<u64> {
        if offset < self.length { self.iova.checked_add(offset) } else { None }
    }

    /// Length in bytes, a multiple of 4096.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Copies bytes into the buffer.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.view.memory_mut().write(offset, bytes)
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.memory().read(offset, bytes)
    }

    /// Reads 32 bits in one load, at a multiple of 4.
    ///
    /// # Errors
    /// [`Error::Outside`], also when not aligned.
    pub fn read_u32(&self, offset: u64) -> Result<u32, Error> {
        self.check(offset, 4)?;
        self.memory().read_u32(offset).ok_or(Error::Outside)
    }

    /// Writes 32 bits in one store, at a multiple of 4.
    ///
    /// # Errors
    /// [`Error::Outside`], also when not aligned.
    pub fn write_u32(&mut self, offset: u64, value: u32) -> Result<(), Error> {
        self.check(offset, 4)?;
        self.view.memory_mut().write_u32(offset, value).ok_or(Error::Outside)
    }

    fn check(&self, offset: u64, length: usize) -> Result<(), Error> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        if end.is_some_and(|end| end <= self.length) { Ok(()) } else { Err(Error::Outside) }
    }

    /// Where the session knows the buffer, to map ranges of it at further addresses.
    #[must_use]
    pub fn slot(&self) -> BufferSlot<'_> {
        BufferSlot { session: &self.session, number: self.slot }
    }

    /// Ends the mapping that the buffer was allocated with: when this returns, the device does not reach it
    /// at [`DmaBuffer::iova`] any more. The memory stays.
    ///
    /// # Errors
    /// `NotMapped`; `UnitFailed`: it is not known whether the device still reaches it.
    pub fn unmap(&self) -> Result<(), Error> {
        unmap(&self.session, self.iova, self.length)
    }

    /// Lets the device reach a range of a buffer that was allocated unmapped, at the buffer's own address,
    /// until the grant is dropped. Both ends are multiples of 4096.
    ///
    /// # Errors
    /// `Mapped`, `Range`, `Alignment`, `Quota`.
    pub fn grant(&self, range: Range<u64>, access: Access) -> Result<Grant<'_>, Error> {
        Grant::new(&self.session, self.slot, range, access)
    }
}

impl<T: ?Sized> Deref for DmaBuffer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.view
    }
}

impl<T: ?Sized> DerefMut for DmaBuffer<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.view
    }
}

impl<T: ?Sized> DeviceMemory for DmaBuffer<T> {
    fn iova(&self) -> u64 {
        self.iova
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl<T: ?Sized> Drop for DmaBuffer<T> {
    /// First the device loses the memory, then the process, then the server may use it again: the fields go
    /// after this, in their order.
    fn drop(&mut self) {
        release(&self.session, self.slot);
    }
}

/// Gives a slot up. The server says no only when the session is gone, and the slot with it.
pub(crate) fn release(session: &Session, slot: u32) {
    let request = BufferRequest { slot, reserved: 0 };
    let _: Result<Empty, Error> = session.call(Operation::Release, &request);
}

/// Gives a slot up if what follows its allocation fails.
struct SlotGuard<'a> {
    session: &'a Session,
    slot: u32,
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        release(self.session, self.slot);
    }
}
