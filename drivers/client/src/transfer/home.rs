//! The memory of a queue: where slots go back to, whoever drops them and whenever.

use std::cell::RefCell;
use std::sync::Arc;

use iommu_protocol::wire::{BatchItem, MAX_BATCH};

use crate::batch::send;
use crate::buffer::DmaBuffer;
use crate::error::Error;
use crate::platform::{Piece, split};
use crate::sanitizer::Sanitizer;
use crate::session::Session;
use crate::transfer::reach::Reach;

/// The slots of a queue that nobody uses. It lives as long as the queue and every slot and transfer of it.
#[derive(Debug)]
pub(super) struct Home {
    session: Arc<Session>,
    free: RefCell<Vec<Piece<DmaBuffer>>>,
    /// Transfers that were dropped while the device reached them.
    dropped: RefCell<Vec<Reach>>,
}

impl Home {
    /// Cuts memory into slots.
    pub(super) fn new(memory: DmaBuffer, slot_bytes: u64) -> Result<Self, Error> {
        let size = usize::try_from(slot_bytes).map_err(|_| Error::Outside)?;
        let (session, device) = (memory.session().clone(), (memory.iova(), memory.length()));
        let free = split(memory, DmaBuffer::memory, device, size).into_iter().rev().collect();
        Ok(Self { session, free: RefCell::new(free), dropped: RefCell::default() })
    }

    pub(super) fn take(&self) -> Option<Piece<DmaBuffer>> {
        self.free.borrow_mut().pop()
    }

    pub(super) fn put(&self, piece: Piece<DmaBuffer>) {
        self.free.borrow_mut().push(piece);
    }

    /// Keeps a transfer that the device reaches until it is revoked.
    pub(super) fn drop_reach(&self, reach: Reach) {
        self.dropped.borrow_mut().push(reach);
    }

    pub(super) fn take_dropped(&self) -> Vec<Reach> {
        self.dropped.take()
    }

    pub(super) fn is_session_of(&self, buffer: &DmaBuffer) -> bool {
        Arc::ptr_eq(&self.session, buffer.session())
    }

    /// The sanitizer, if one watches the session.
    pub(super) fn sanitizer(&self) -> Option<&Sanitizer> {
        self.session.sanitizer().map(Arc::as_ref)
    }

    pub(super) fn send(&self, items: &[BatchItem]) -> Result<(), Error> {
        send(&self.session, items).map(drop)
    }
}

impl Drop for Home {
    /// The end of the queue's buffer revokes what the device reaches of it. Memory of the program goes on, so its pages
    /// are revoked here. If that is refused, their own buffer's end revokes them.
    fn drop(&mut self) {
        let dropped = self.dropped.take();
        let lent: Vec<_> = dropped.iter().filter(|reach| reach.is_lent()).collect();
        for lent in lent.chunks(MAX_BATCH) {
            let items: Vec<_> = lent.iter().map(|reach| reach.revoke()).collect();
            if let (Ok(()), Some(sanitizer)) = (self.send(&items), self.sanitizer()) {
                lent.iter().for_each(|reach| reach.unwatch(sanitizer, None));
            }
        }
    }
}
