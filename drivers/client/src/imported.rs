//! Buffers of one session in the domain of another.

use std::sync::Arc;

use iommu_protocol::status::Refusal;

use crate::buffer::DmaBuffer;
use crate::error::Error;
use crate::mapping::{BufferSlot, release};
use crate::session::Session;

/// A buffer that a second session was given. Its mappings there end when it is dropped.
#[derive(Debug)]
pub struct Imported<'buffer, T: ?Sized = [u8]> {
    session: Arc<Session>,
    slot: u32,
    buffer: &'buffer DmaBuffer<T>,
}

impl<'buffer, T: ?Sized> Imported<'buffer, T> {
    pub(crate) fn new(
        session: &Arc<Session>,
        buffer: &'buffer DmaBuffer<T>,
    ) -> Result<Self, Error> {
        // Each connection numbers its own handles, so the buffer's number would be another handle there.
        let same = Arc::ptr_eq(&session.transport, buffer.transport());
        if !same && !session.transport.process_wide() {
            return Err(Refusal::BadHandle.into());
        }
        let slot = session.transport.import(session.handle, buffer.handle())?;
        Ok(Self { session: session.clone(), slot, buffer })
    }

    /// The buffer.
    #[must_use]
    pub const fn buffer(&self) -> &'buffer DmaBuffer<T> {
        self.buffer
    }

    /// The buffer's slot in the session.
    #[must_use]
    pub fn slot(&self) -> BufferSlot<'_> {
        BufferSlot { session: &self.session, number: self.slot }
    }
}

impl<T: ?Sized> Drop for Imported<'_, T> {
    fn drop(&mut self) {
        release(&self.session, self.slot, self.buffer.length());
    }
}
