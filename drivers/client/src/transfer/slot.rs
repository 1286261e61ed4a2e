//! The memory of a transfer, in the hands of the program or of the device.

use std::rc::Rc;

use zerocopy::{FromBytes, IntoBytes};

use crate::buffer::DmaBuffer;
use crate::error::Error;
use crate::platform::Piece;
use crate::scatter::DeviceMemory;
use crate::transfer::home::Home;
use crate::transfer::reach::Reach;

/// Memory of a transfer that is the program's: the device does not reach it. Free again when dropped.
#[derive(Debug)]
pub struct Slot {
    /// Present until the drop.
    piece: Option<Piece<DmaBuffer>>,
    length: u64,
    home: Rc<Home>,
}

impl Slot {
    pub(super) fn new(home: &Rc<Home>, piece: Piece<DmaBuffer>, length: u64) -> Self {
        Self { piece: Some(piece), length, home: home.clone() }
    }

    pub(super) fn take(home: &Rc<Home>, length: u64) -> Option<Self> {
        home.take().map(|piece| Self::new(home, piece, length))
    }

    /// Gives up the memory, if it is of this queue.
    pub(super) fn into_piece(mut self, home: &Rc<Home>) -> Result<(Piece<DmaBuffer>, u64), Error> {
        if !Rc::ptr_eq(&self.home, home) {
            return Err(Error::OtherQueue);
        }
        self.piece.take().map(|piece| (piece, self.length)).ok_or(Error::Outside)
    }

    /// Bytes of the transfer.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Copies bytes into the slot.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.piece.as_mut().ok_or(Error::Outside)?.write(offset, bytes)
    }

    /// Copies bytes out of the slot.
    ///
    /// # Errors
    /// [`Error::Outside`]; nothing is copied then.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        self.piece.as_ref().ok_or(Error::Outside)?.read(offset, bytes)
    }

    /// All of its bytes.
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
        let filled = self.piece.as_mut().map(|piece| piece.fill(0, length, byte));
        debug_assert!(matches!(filled, Some(Ok(()))));
    }

    /// The value at `offset`.
    ///
    /// # Errors
    /// [`Error::Outside`].
    pub fn load_at<V: FromBytes + IntoBytes>(&self, offset: u64) -> Result<V, Error> {
        let mut value = V::new_zeroed();
        self.read(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Puts a value at `offset`.
    ///
    /// # Errors
    /// [`Error::Outside`].
    pub fn store_at<V: FromBytes + IntoBytes>(
        &mut self,
        offset: u64,
        mut value: V,
    ) -> Result<(), Error> {
        self.write(offset, value.as_mut_bytes())
    }

    /// Checks against the transfer's bytes, since the slot may be longer.
    fn check(&self, offset: u64, length: usize) -> Result<(), Error> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        if end.is_some_and(|end| end <= self.length) { Ok(()) } else { Err(Error::Outside) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            self.home.put(piece);
        }
    }
}

/// Memory of a transfer that the device reaches. The program gets it back by
/// [`TransferQueue::finished`](crate::TransferQueue::finished) and a flush. When dropped it is revoked by the next
/// flush; what the device wrote is lost then.
#[derive(Debug)]
pub struct Granted {
    /// Present until the drop.
    reach: Option<Reach>,
    home: Rc<Home>,
}

impl Granted {
    pub(super) fn new(home: &Rc<Home>, reach: Reach) -> Self {
        Self { reach: Some(reach), home: home.clone() }
    }

    /// Gives up the transfer, if it is of this queue.
    pub(super) fn into_reach(mut self, home: &Rc<Home>) -> Result<Reach, Error> {
        if !Rc::ptr_eq(&self.home, home) {
            return Err(Error::OtherQueue);
        }
        self.reach.take().ok_or(Error::Outside)
    }

    /// The I/O virtual address of the first byte, to be given to the device.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.reach.as_ref().map_or(0, Reach::iova)
    }

    /// Bytes of the transfer.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.reach.as_ref().map_or(0, Reach::length)
    }
}

impl DeviceMemory for Granted {
    fn iova(&self) -> u64 {
        Self::iova(self)
    }

    fn length(&self) -> u64 {
        Self::length(self)
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(reach) = self.reach.take() {
            self.home.drop_reach(reach);
        }
    }
}
