//! DMA buffers.

use std::ops::Range;
use std::sync::Arc;

use iommu_protocol::ids::Slot;
use iommu_protocol::path::SessionPath;
use iommu_protocol::wire::{
    self, Access, Allocate, AllocateFlags, AllocateResult, BufferRequest, Empty, MapResult,
    Operation,
};

use crate::error::Error;
use crate::mapping::{BufferSlot, unmap};
use crate::platform::Memory;
use crate::session::Session;
use crate::transport::Handle;

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

/// Memory of this process and of its device. Reads and writes are volatile: the device may be at it too.
#[derive(Debug)]
pub struct DmaBuffer {
    session: Arc<Session>,
    slot: u32,
    iova: u64,
    length: u64,
    handle: Handle,
    /// Present until the drop.
    memory: Option<Memory>,
}

impl DmaBuffer {
    pub(crate) fn allocate(
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
        let memory = match session.transport.map(handle) {
            Ok(memory) => memory,
            Err(error) => {
                session.transport.close(handle);
                return Err(error);
            }
        };
        std::mem::forget(slot);
        Ok(Self {
            session: session.clone(),
            slot: result.slot,
            iova: result.iova,
            length: result.length,
            handle,
            memory: Some(memory),
        })
    }

    pub(crate) const fn handle(&self) -> Handle {
        self.handle
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

    /// Length in bytes.
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
        self.memory.as_mut().ok_or(Error::Outside)?.write(offset, bytes)
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.memory.as_ref().ok_or(Error::Outside)?.read(offset, bytes)
    }

    /// Reads 32 bits in one load, at a multiple of 4.
    ///
    /// # Errors
    /// [`Error::Outside`], also when not aligned.
    pub fn read_u32(&self, offset: u64) -> Result<u32, Error> {
        self.check(offset, 4)?;
        self.memory.as_ref().and_then(|memory| memory.read_u32(offset)).ok_or(Error::Outside)
    }

    /// Writes 32 bits in one store, at a multiple of 4.
    ///
    /// # Errors
    /// [`Error::Outside`], also when not aligned.
    pub fn write_u32(&mut self, offset: u64, value: u32) -> Result<(), Error> {
        self.check(offset, 4)?;
        let memory = self.memory.as_mut().ok_or(Error::Outside)?;
        memory.write_u32(offset, value).ok_or(Error::Outside)
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
        let length = range.end.saturating_sub(range.start);
        let request =
            wire::Grant { slot: self.slot, access: access.bits(), offset: range.start, length };
        let MapResult { iova } = self.session.call(Operation::Grant, &request)?;
        Ok(Grant { buffer: self, offset: range.start, length, iova })
    }
}

impl Drop for DmaBuffer {
    /// First the device loses the memory, then the process, then the server may use it again.
    fn drop(&mut self) {
        release(&self.session, self.slot);
        self.memory = None;
        self.session.transport.close(self.handle);
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

/// A range of a buffer that the device may reach.
#[derive(Debug)]
pub struct Grant<'buffer> {
    buffer: &'buffer DmaBuffer,
    offset: u64,
    length: u64,
    iova: u64,
}

impl Grant<'_> {
    /// The I/O virtual address of its first byte.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.iova
    }

    /// Takes the range back: when this returns, the device does not reach it any more.
    ///
    /// # Errors
    /// `UnitFailed`: it is not known whether the device still reaches it.
    pub fn revoke(self) -> Result<(), Error> {
        let result = self.end();
        std::mem::forget(self);
        result
    }

    fn end(&self) -> Result<(), Error> {
        let request = wire::Grant {
            slot: self.buffer.slot,
            access: 0,
            offset: self.offset,
            length: self.length,
        };
        let Empty { .. } = self.buffer.session.call(Operation::Revoke, &request)?;
        Ok(())
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        // A driver that wants to know calls `revoke`; the end of the buffer revokes all the same.
        let _ = self.end();
    }
}
