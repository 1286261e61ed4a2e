//! DMA buffers.

use std::marker::PhantomData;
use std::ops::Range;
use std::panic::Location;
use std::sync::Arc;

use iommu_protocol::ids::Slot;
use iommu_protocol::path::SessionPath;
use iommu_protocol::wire::{
    Access, Allocate, AllocateFlags, AllocateResult, BufferRequest, BufferResult, Operation,
};

use crate::error::Error;
use crate::grant::Grant;
use crate::mapping::{BufferSlot, release, unmap};
use crate::platform::Memory;
use crate::sanitizer::{Sanitizer, Tenure, Window};
use crate::scatter::DeviceMemory;
use crate::session::Session;
use crate::transport::{Handle, Transport};

mod create;
mod values;
mod watch;

/// Buffers are whole pages of this many bytes.
pub const PAGE: u64 = 4096;

/// How a buffer is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferOptions {
    /// Accesses that the device may make.
    pub access: Access,
    /// Alignment of the I/O virtual address: 0, or a power of two from 4096 on.
    pub alignment: u64,
    /// The I/O virtual addresses may not cross a multiple of this: 0, or a power of two not below the
    /// length.
    pub boundary: u64,
    /// The device takes addresses of 4 GiB and more.
    pub above_4g: bool,
    /// Nothing is mapped at first: the driver grants ranges one by one.
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

/// Memory that this process shares with its device. At its start is a `T`, or several `T`s. Its I/O virtual addresses
/// are contiguous, whatever its length.
///
/// Values are copied in and out, never referenced. A device may write at any time, and a reference would promise that
/// nothing else does. Copies are volatile. Each aligned word of 8, 4 or 2 bytes is one access, so that a word which a
/// device writes at once is never read in halves. See also [`DmaBuffer::read`] and [`DmaBuffer::write`].
///
/// ```
/// use std::mem::offset_of;
/// use iommu_client::{Device, DmaBuffer};
/// use zerocopy::{FromBytes, IntoBytes};
///
/// #[derive(FromBytes, IntoBytes)]
/// #[repr(C)]
/// struct Ring {
///     descriptors: [[u64; 2]; 64],
///     used: u16,
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
/// data.set(3, 7)?;
/// let first = offset_of!(Ring, descriptors) as u64;
/// ring.store_at(first, [data.iova_at(12).unwrap(), 4])?;
/// assert_eq!(ring.load_at::<u16>(offset_of!(Ring, used) as u64)?, 0);
/// // The device finds the value at the address in the descriptor:
/// let [address, _] = ring.load().descriptors[0];
/// assert_eq!(model.device_read(device.address(), address, 4), Ok(vec![7, 0, 0, 0]));
/// # let _ = permission;
/// # Ok::<(), iommu_client::Error>(())
/// ```
///
/// Memory that a device may write cannot be referenced:
///
/// ```compile_fail
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// # let device = iommu_client::Device::open(&connection, "0000--00--04.0").unwrap();
/// let buffer = device.allocate(4096, iommu_client::BufferOptions::default()).unwrap();
/// let bytes: &[u8] = &buffer;
/// ```
#[derive(Debug)]
pub struct DmaBuffer<T: ?Sized = [u8]> {
    session: Arc<Session>,
    slot: u32,
    iova: u64,
    length: u64,
    /// It was allocated unmapped: ranges of it are granted.
    unmapped: bool,
    /// Number of values.
    count: usize,
    /// Watches the accesses, if the driver wants it.
    sanitizer: Option<Arc<Sanitizer>>,
    // The next two are dropped in this order, after `drop` has run.
    memory: Memory,
    handle: BufferHandle,
    value: PhantomData<fn() -> T>,
}

/// Memory as the server allocated it.
pub(crate) struct Allocation {
    session: Arc<Session>,
    slot: u32,
    iova: u64,
    length: u64,
    unmapped: bool,
    memory: Memory,
    handle: BufferHandle,
}

/// The descriptor of a buffer. The server does not reuse the buffer's memory before it is closed.
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
    #[track_caller]
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
        let slot = SlotGuard { session, slot: result.slot, length: result.length };
        let path = SessionPath::Buffer(Slot(result.slot)).to_string();
        let handle = session.transport.open(Some(session.handle), &path, true)?;
        let handle = BufferHandle { session: session.clone(), handle };
        let memory = session.transport.map(handle.handle)?;
        std::mem::forget(slot);
        let AllocateResult { slot, iova, length, .. } = result;
        if let Some(sanitizer) = session.sanitizer() {
            sanitizer.allocated(slot, iova);
            let (access, tenure, granted) = (options.access, Tenure::Buffer, Location::caller());
            let window = Window { slot, iova, length, access, tenure, granted, home: None };
            if !options.unmapped {
                sanitizer.granted(window, Some(0));
            }
        }
        let (session, unmapped) = (session.clone(), options.unmapped);
        Ok(Self { session, slot, iova, length, unmapped, memory, handle })
    }

    /// Makes a buffer of `count` values that take `size` bytes.
    fn values<T: ?Sized>(self, size: usize, count: usize) -> Result<DmaBuffer<T>, Error> {
        let Self { session, slot, iova, length, unmapped, memory, handle } = self;
        // A transport that maps less than it states is detected here, not at a later access.
        let fits = u64::try_from(size).is_ok_and(|size| size <= length) && size <= memory.length();
        let (sanitizer, value) = (session.sanitizer().cloned(), PhantomData);
        let buffer = DmaBuffer {
            session,
            slot,
            iova,
            length,
            unmapped,
            count,
            sanitizer,
            memory,
            handle,
            value,
        };
        if fits { Ok(buffer) } else { Err(Error::Outside) }
    }

    pub(crate) fn bytes(self) -> Result<DmaBuffer, Error> {
        let count = usize::try_from(self.length).map_err(|_| Error::Outside)?;
        self.values(count, count)
    }
}

impl<T: ?Sized> DmaBuffer<T> {
    pub(crate) const fn handle(&self) -> Handle {
        self.handle.handle
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.session.transport
    }

    pub(crate) const fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(crate) const fn is_unmapped(&self) -> bool {
        self.unmapped
    }

    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Address of the memory in this process, for drivers with accesses of their own. The device, or another process
    /// that has the buffer, may write there at the same time.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// The I/O virtual address of the first byte, to be given to the device.
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
    #[track_caller]
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.watch_write(offset, bytes.len());
        self.memory.write(offset, bytes)
    }

    /// Sets `length` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is set then.
    #[track_caller]
    pub fn fill(&mut self, offset: u64, length: usize, byte: u8) -> Result<(), Error> {
        self.check(offset, length)?;
        self.watch_write(offset, length);
        self.memory.fill(offset, length, byte)
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    #[track_caller]
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.watch_read(offset, bytes.len());
        self.memory().read(offset, bytes)
    }

    /// Reads 32 bits in one load, at a multiple of 4.
    ///
    /// # Errors
    /// [`Error::Outside`], also when not aligned.
    #[track_caller]
    pub fn read_u32(&self, offset: u64) -> Result<u32, Error> {
        self.check(offset, 4)?;
        self.watch_read(offset, 4);
        self.memory().read_u32(offset).ok_or(Error::Outside)
    }

    /// Writes 32 bits in one store, at a multiple of 4.
    ///
    /// # Errors
    /// [`Error::Outside`], also when not aligned.
    #[track_caller]
    pub fn write_u32(&mut self, offset: u64, value: u32) -> Result<(), Error> {
        self.check(offset, 4)?;
        self.watch_write(offset, 4);
        self.memory.write_u32(offset, value).ok_or(Error::Outside)
    }

    fn check(&self, offset: u64, length: usize) -> Result<(), Error> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        if end.is_some_and(|end| end <= self.length) { Ok(()) } else { Err(Error::Outside) }
    }

    /// The buffer's slot in the session, to map ranges of it at further addresses.
    #[must_use]
    pub fn slot(&self) -> BufferSlot<'_> {
        BufferSlot { session: &self.session, number: self.slot }
    }

    /// Entries that the unit's IOTLB needs for all mappings of this buffer in its session: 1 for each 2 MiB of a buffer
    /// that large leaves map, 1 for each 4 KiB of the rest. A unit that maps other sizes needs fewer. 0 where no unit
    /// confines the device.
    ///
    /// # Errors
    /// The server is gone.
    pub fn iotlb_entries(&self) -> Result<u32, Error> {
        let request = BufferRequest { slot: self.slot, reserved: 0 };
        let result: BufferResult = self.session.call(Operation::QueryBuffer, &request)?;
        Ok(result.iotlb_entries)
    }

    /// Ends the mapping that the buffer was allocated with. When this returns, the device no longer reaches it at
    /// [`DmaBuffer::iova`]. The memory stays.
    ///
    /// # Errors
    /// `NotMapped`; `UnitFailed`: the device may still reach it.
    #[track_caller]
    pub fn unmap(&self) -> Result<(), Error> {
        unmap(&self.session, self.iova, self.length, Some(Location::caller()))
    }

    /// Lets the device reach a range of a buffer that was allocated unmapped, at the buffer's own address,
    /// until the grant is dropped. Both ends are multiples of 4096.
    ///
    /// # Errors
    /// `Mapped`, `Range`, `Alignment`, `Quota`.
    #[track_caller]
    pub fn grant(&self, range: Range<u64>, access: Access) -> Result<Grant<'_>, Error> {
        Grant::new(&self.session, self.slot, range, access)
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
    /// The device loses the memory first, then the process. Then the server may reuse it: the fields are dropped
    /// after this, in their order.
    fn drop(&mut self) {
        release(&self.session, self.slot, self.length);
    }
}

/// Releases a slot if a step after its allocation fails.
struct SlotGuard<'a> {
    session: &'a Session,
    slot: u32,
    length: u64,
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        release(self.session, self.slot, self.length);
    }
}
