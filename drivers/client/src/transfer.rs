//! Memory that a device reaches for one transfer and no longer: grants and revokes of many transfers in one call.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::Location;
use std::rc::Rc;

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::MAX_BATCH;

use crate::buffer::{Allocation, BufferOptions, DmaBuffer, PAGE};
use crate::device::Device;
use crate::error::Error;
use crate::pool::LARGE;
use crate::sanitizer::Place;
use crate::transfer::home::Home;
use crate::transfer::reach::{Part, Reach};

mod home;
mod options;
mod reach;
mod slot;

pub use options::{Direction, Exposure, TransferOptions};
pub use reach::Lendable;
pub use slot::{Granted, Slot};

/// Strict confinement of every transfer, with one call to the server for many of them. A device reaches the memory of
/// a transfer from the flush that grants it to the flush that revokes it, in one direction, and nothing else of the
/// queue.
///
/// Memory changes hands by value:
///
/// ```text
/// take --> Slot --grant--> (queued) --flush--> Granted --finished--> (queued) --flush--> Slot, by `returned`
///          the program's                       the device's                              the program's
/// ```
///
/// A flush sends everything that is queued, revokes before grants, in one call (for each 1024 of them). The call costs
/// one invalidation and one wait, whatever it holds, and none if it revokes nothing. While a device works, one flush
/// revokes the transfers that have ended and grants the next ones.
///
/// A slot that is dropped is free again. A [`Granted`] that is dropped is revoked by the next flush, and its slot is
/// free after that. If a queue is dropped, its memory stays until the last [`Slot`] and [`Granted`] are dropped; then
/// the device loses it before the server may use it for anybody else.
///
/// A queue belongs to one thread; a driver with several threads has a queue for each.
///
/// ```
/// use iommu_client::{Device, Direction, TransferOptions, TransferQueue};
///
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// let device = Device::open(&connection, "0000--00--04.0")?;
/// let permission = device.attach()?;
/// let mut queue = TransferQueue::new(&device, TransferOptions::default())?;
///
/// let mut request = queue.take(512)?;
/// request.write(0, b"hello")?;
/// queue.grant(request, Direction::ToDevice)?;
/// queue.grant(queue.take(4096)?, Direction::FromDevice)?;
/// queue.flush()?; // one call for both; then the doorbell
/// let (request, answer) = (queue.granted().unwrap(), queue.granted().unwrap());
/// # let at = device.address();
/// assert_eq!(model.device_read(at, request.iova(), 5), Ok(b"hello".to_vec()));
/// assert!(model.device_write(at, request.iova(), &[1]).is_err()); // not in this direction
/// model.device_write(at, answer.iova(), b"world").unwrap();
///
/// let (first, second) = (request.iova(), answer.iova());
/// queue.finished(request)?; // the device says so
/// queue.finished(answer)?;
/// queue.flush()?; // one call, one invalidation, one wait
/// assert!(model.device_read(at, first, 1).is_err() && model.device_write(at, second, &[1]).is_err());
/// let (_, answer) = (queue.returned().unwrap(), queue.returned().unwrap());
/// assert_eq!(answer.to_vec()[..5], *b"world");
/// # let _ = permission;
/// # Ok::<(), iommu_client::Error>(())
/// ```
///
/// A transfer that is granted offers no access to its memory:
///
/// ```compile_fail
/// # let model = iommud_tests::model::Model::new();
/// # let connection = model.connection();
/// # let device = iommu_client::Device::open(&connection, "0000--00--04.0").unwrap();
/// let mut queue = iommu_client::TransferQueue::new(&device, Default::default()).unwrap();
/// let slot = queue.take(512).unwrap();
/// queue.grant(slot, iommu_client::Direction::ToDevice).unwrap();
/// slot.to_vec();
/// ```
#[derive(Debug)]
pub struct TransferQueue {
    home: Rc<Home>,
    /// Number of the buffer's slot in the session, and the device's address of its first byte.
    buffer: (u32, u64),
    slots: usize,
    slot_bytes: u64,
    exposure: Exposure,
    /// Grants that the next flush sends.
    queued: VecDeque<Reach>,
    /// What the device reaches and the driver has not taken out yet.
    granted: VecDeque<Reach>,
    /// Revokes that the next flush sends, each with whether its slot is handed back.
    ended: VecDeque<(Reach, bool)>,
    returned: VecDeque<Slot>,
}

impl TransferQueue {
    /// Allocates the memory of a queue. The device reaches none of it.
    ///
    /// # Errors
    /// [`Error::Outside`] without slots; the errors of [`Device::allocate`].
    #[track_caller]
    pub fn new(device: &Device, options: TransferOptions) -> Result<Self, Error> {
        let TransferOptions { slots, slot_bytes, exposure, above_4g } = options;
        let slot_bytes = slot_bytes.max(1).checked_next_multiple_of(PAGE).ok_or(Error::Outside)?;
        let count = u64::try_from(slots).map_err(|_| Error::Outside)?;
        let length = count.checked_mul(slot_bytes).filter(|all| *all > 0).ok_or(Error::Outside)?;
        // The leaves of 2 MiB of slots are in one table then.
        let alignment = if length >= LARGE { LARGE } else { 0 };
        let options = BufferOptions { alignment, above_4g, unmapped: true, ..Default::default() };
        let memory = Allocation::new(&device.session, length, options)?.bytes()?;
        let buffer = (memory.slot().number, memory.iova());
        let home = Rc::new(Home::new(memory, slot_bytes)?);
        Ok(Self {
            home,
            buffer,
            slots,
            slot_bytes,
            exposure,
            queued: VecDeque::new(),
            granted: VecDeque::new(),
            ended: VecDeque::new(),
            returned: VecDeque::new(),
        })
    }

    /// Takes a free slot for a transfer of `length` bytes. Sends no request.
    ///
    /// # Errors
    /// [`Error::TooLong`]; [`Error::Outside`] without bytes; [`Error::NoSlot`]: some are free after the next flush, if
    /// transfers have ended.
    pub fn take(&self, length: u64) -> Result<Slot, Error> {
        match length {
            0 => Err(Error::Outside),
            _ if length > self.slot_bytes => Err(Error::TooLong { length, most: self.slot_bytes }),
            _ => Slot::take(&self.home, length).ok_or(Error::NoSlot { slots: self.slots }),
        }
    }

    /// Queues the grant of a slot's pages. After the next flush it is in [`TransferQueue::granted`].
    ///
    /// # Errors
    /// [`Error::OtherQueue`]; the slot is free in its own queue then.
    #[track_caller]
    pub fn grant(&mut self, slot: Slot, direction: Direction) -> Result<(), Error> {
        let (mut piece, length) = slot.into_piece(&self.home)?;
        if self.exposure == Exposure::Bytes && direction == Direction::ToDevice {
            reach::clear_tail(&mut piece, length)?;
        }
        let pages = self.pages_of(piece.address(), length);
        self.queued.push_back(Reach::new(self.buffer, pages, direction, Part::Slot(piece)));
        Ok(())
    }

    /// Queues the grant of a range of the program's own memory, which was allocated unmapped from the same session.
    ///
    /// A range that fills its pages is granted in place. Any other is copied: into a slot now, and, if the device writes
    /// it, back by the flush that revokes it. Only its own bytes are copied, and a device that reads finds zeros behind
    /// them. So it reaches no other byte of the program's pages, and bytes that it does not write stay as they were. The
    /// memory is the program's again after the flush that follows [`TransferQueue::finished`]; the program leaves the
    /// range alone until then.
    ///
    /// ```
    /// use std::{cell::RefCell, rc::Rc};
    /// use iommu_client::{BufferOptions, Device, Direction, TransferQueue};
    ///
    /// # let model = iommud_tests::model::Model::new();
    /// # let connection = model.connection();
    /// let device = Device::open(&connection, "0000--00--04.0")?;
    /// let permission = device.attach()?;
    /// let mut queue = TransferQueue::new(&device, Default::default())?;
    /// let unmapped = BufferOptions { unmapped: true, ..Default::default() };
    /// let cache = Rc::new(RefCell::new(device.allocate(65536, unmapped)?));
    ///
    /// cache.borrow_mut().write(5000, b"a record")?;
    /// queue.lend(&cache, 8192..16384, Direction::FromDevice)?; // two pages, in place
    /// queue.lend(&cache, 5000..5008, Direction::ToDevice)?; // a copy
    /// queue.flush()?; // one call
    /// let (pages, record) = (queue.granted().unwrap(), queue.granted().unwrap());
    /// assert_eq!(pages.iova(), cache.borrow().iova() + 8192);
    /// let seen = model.device_read(device.address(), record.iova(), 10);
    /// assert_eq!(seen, Ok(b"a record\0\0".to_vec()));
    /// # let _ = permission;
    /// # Ok::<(), iommu_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Outside`] for an empty range, or one outside of the memory; `BadHandle` for memory of another session,
    /// `BadOperation` for memory that is mapped as a whole; [`Error::Borrowed`]; for a copy the errors of
    /// [`TransferQueue::take`].
    #[track_caller]
    pub fn lend(
        &mut self,
        memory: &Lendable,
        range: Range<u64>,
        direction: Direction,
    ) -> Result<(), Error> {
        let buffer = memory.try_borrow().map_err(|_| Error::Borrowed)?;
        self.check_lent(&buffer, &range)?;
        if range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE) {
            let of = (buffer.slot().number, buffer.iova());
            let part = Part::Lent { _memory: memory.clone() };
            self.queued.push_back(Reach::new(of, range, direction, part));
            return Ok(());
        }
        let length = range.end - range.start;
        let (mut piece, _) = self.take(length)?.into_piece(&self.home)?;
        reach::copy_in(&buffer, range.start, &mut piece, length)?;
        if direction == Direction::ToDevice {
            reach::clear_tail(&mut piece, length)?;
        }
        let pages = self.pages_of(piece.address(), length);
        let part = Part::Copy { piece, program: memory.clone(), offset: range.start };
        self.queued.push_back(Reach::new(self.buffer, pages, direction, part));
        Ok(())
    }

    fn check_lent(&self, buffer: &DmaBuffer, range: &Range<u64>) -> Result<(), Error> {
        if range.is_empty() || range.end > buffer.length() {
            return Err(Error::Outside);
        }
        if !self.home.is_session_of(buffer) {
            return Err(Refusal::BadHandle.into());
        }
        if buffer.is_unmapped() { Ok(()) } else { Err(Refusal::BadOperation.into()) }
    }

    /// Sends everything that is queued, revokes before grants, in one call for each 1024. When this returns, the device
    /// no longer reaches what was revoked, and reaches what was granted. Without anything queued it sends nothing.
    ///
    /// # Errors
    /// The refusal of a call, such as `Quota` for a grant ([`Error::RefusedItem`]: see [`TransferQueue::withdraw`]), or
    /// `UnitFailed`. Nothing has changed then: what is granted stays granted, what is queued stays queued, and nothing
    /// is handed back. (Of more than 1024, calls before the refused one have taken effect.) [`Error::Borrowed`]:
    /// nothing was sent.
    #[track_caller]
    pub fn flush(&mut self) -> Result<(), Error> {
        let dropped = self.home.take_dropped();
        self.ended.extend(dropped.into_iter().map(|reach| (reach, false)));
        if self.ended.iter().any(|(reach, wanted)| *wanted && reach.is_borrowed()) {
            return Err(Error::Borrowed);
        }
        while self.waiting() > 0 {
            self.call(Location::caller())?;
        }
        Ok(())
    }

    /// Number of grants and revokes that wait for the next flush, dropped ones not counted.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queued.len() + self.ended.len()
    }

    fn call(&mut self, place: Place) -> Result<(), Error> {
        let revokes = self.ended.len().min(MAX_BATCH);
        let grants = self.queued.len().min(MAX_BATCH - revokes);
        let ended = self.ended.iter().take(revokes).map(|(reach, _)| reach.revoke());
        let items: Vec<_> =
            ended.chain(self.queued.iter().take(grants).map(Reach::grant)).collect();
        self.home.send(&items)?;
        if let Some(sanitizer) = self.home.sanitizer() {
            let ended = self.ended.iter().take(revokes);
            ended.for_each(|(reach, _)| reach.unwatch(sanitizer, Some(place)));
            self.queued.iter().take(grants).for_each(|reach| reach.watch(sanitizer));
        }
        let ended: Vec<_> = self.ended.drain(..revokes).collect();
        self.granted.extend(self.queued.drain(..grants));
        // Every transfer is settled, also when a copy fails.
        let settled: Vec<_> = ended.into_iter().map(|(reach, to)| self.settle(reach, to)).collect();
        settled.into_iter().collect()
    }

    /// Hands back the memory of a transfer that was revoked.
    fn settle(&mut self, reach: Reach, wanted: bool) -> Result<(), Error> {
        let copied = if wanted { reach.copy_out() } else { Ok(()) };
        let length = reach.length();
        match reach.into_part() {
            Part::Slot(piece) if wanted => {
                self.returned.push_back(Slot::new(&self.home, piece, length));
            }
            Part::Slot(piece) | Part::Copy { piece, .. } => self.home.put(piece),
            Part::Lent { .. } => {}
        }
        copied
    }

    /// The next transfer that a flush has granted, in the order in which they were queued.
    pub fn granted(&mut self) -> Option<Granted> {
        self.granted.pop_front().map(|reach| Granted::new(&self.home, reach))
    }

    /// Queues the revoke of a transfer that the device has finished. After the next flush its slot is in
    /// [`TransferQueue::returned`], or the memory that was lent is the program's again.
    ///
    /// # Errors
    /// [`Error::OtherQueue`]; that queue revokes it then, as if it had been dropped.
    pub fn finished(&mut self, granted: Granted) -> Result<(), Error> {
        let reach = granted.into_reach(&self.home)?;
        self.ended.push_back((reach, true));
        Ok(())
    }

    /// The next slot that the device has lost, in the order in which they were finished. Its bytes are those of its
    /// transfer: what the device wrote behind them is out of the program's reach.
    pub fn returned(&mut self) -> Option<Slot> {
        self.returned.pop_front()
    }

    /// Takes back every grant that was queued and not sent, after a refusal. Returns the slots; memory that was to be
    /// lent is the program's.
    pub fn withdraw(&mut self) -> Vec<Slot> {
        let mut slots = Vec::new();
        for reach in std::mem::take(&mut self.queued) {
            let length = reach.length();
            match reach.into_part() {
                Part::Slot(piece) => slots.push(Slot::new(&self.home, piece, length)),
                Part::Copy { piece, .. } => self.home.put(piece),
                Part::Lent { .. } => {}
            }
        }
        slots
    }

    /// Bytes of the queue's buffer that begin at a device's address.
    const fn pages_of(&self, address: u64, length: u64) -> Range<u64> {
        let offset = address - self.buffer.1;
        offset..offset + length
    }
}

impl Drop for TransferQueue {
    /// Whatever the device still reaches stays with the memory, which ends with the last of its users.
    fn drop(&mut self) {
        let ended = self.ended.drain(..).map(|(reach, _)| reach);
        self.granted.drain(..).chain(ended).for_each(|reach| self.home.drop_reach(reach));
    }
}
