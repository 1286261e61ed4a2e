//! Fault records: a log of the machine's latest, and a bounded queue for each session.

mod delivery;
mod storm;
pub(super) mod storms;

use alloc::collections::{BTreeMap, VecDeque};

use iommu_protocol::fault::{FaultRecord, RECORD_SIZE};
use iommu_protocol::ids::PciAddress;

use crate::hw::HardwareFault;
use crate::policy::SessionId;

/// Number of records that the log keeps.
const LOG_LENGTH: usize = 256;

#[derive(Clone, Default)]
struct Queue {
    records: VecDeque<FaultRecord>,
    /// Lost since the last record that was queued.
    lost: u32,
    /// Lost since the session was opened.
    lost_total: u32,
}

/// Faults seen so far.
#[derive(Clone)]
pub(super) struct Faults {
    sequence: u64,
    log: VecDeque<FaultRecord>,
    queues: BTreeMap<SessionId, Queue>,
    queue_limit: u32,
    of_devices: BTreeMap<PciAddress, u64>,
    of_nobody: u64,
}

impl Faults {
    /// Creates an empty log; each session may have `queue_limit` unread records.
    pub(super) const fn new(queue_limit: u32) -> Self {
        Self {
            sequence: 0,
            log: VecDeque::new(),
            queues: BTreeMap::new(),
            queue_limit,
            of_devices: BTreeMap::new(),
            of_nobody: 0,
        }
    }

    /// Records a fault, and queues it for the session that owns its source, if any.
    pub(super) fn record(&mut self, segment: u16, fault: &HardwareFault, owner: Option<SessionId>) {
        self.sequence += 1;
        let record = FaultRecord::new(
            self.sequence,
            PciAddress { segment, requester: fault.source },
            fault.address.map(|address| address.0),
            fault.access,
            fault.reason,
            fault.words,
        );
        self.keep(record);
        if let Some(session) = owner {
            self.enqueue(session, record);
        }
    }

    /// Counts a fault of a device; `None` when no function has the requester id. Ids alone are not counted one by one:
    /// a device could make up all of them.
    pub(super) fn count(&mut self, device: Option<PciAddress>) {
        let count = match device {
            Some(device) => self.of_devices.entry(device).or_insert(0),
            None => &mut self.of_nobody,
        };
        *count = count.wrapping_add(1);
    }

    /// The number of faults of each device that had any, by address.
    pub(super) fn by_device(&self) -> impl Iterator<Item = (PciAddress, u64)> + '_ {
        self.of_devices.iter().map(|(device, count)| (*device, *count))
    }

    /// Number of faults of requester ids of no known function.
    pub(super) const fn of_nobody(&self) -> u64 {
        self.of_nobody
    }

    /// Records a message of the server about faults. It has the sequence number of the last fault.
    pub(super) fn note(&mut self, mut record: FaultRecord, owner: Option<SessionId>) {
        record.sequence = self.sequence;
        self.keep(record);
        if let Some(session) = owner {
            self.enqueue(session, record);
        }
    }

    fn keep(&mut self, record: FaultRecord) {
        if self.log.len() == LOG_LENGTH {
            self.log.pop_front();
        }
        self.log.push_back(record);
    }

    fn enqueue(&mut self, session: SessionId, mut record: FaultRecord) {
        let queue = self.queues.entry(session).or_default();
        if u32::try_from(queue.records.len()).is_ok_and(|unread| unread >= self.queue_limit) {
            queue.lost = queue.lost.saturating_add(1);
            queue.lost_total = queue.lost_total.saturating_add(1);
            return;
        }
        record.lost = core::mem::take(&mut queue.lost);
        queue.records.push_back(record);
    }

    /// Moves unread records of a session into `out`, as many whole ones as fit; returns the bytes written.
    pub(super) fn read(&mut self, session: SessionId, out: &mut [u8]) -> usize {
        let Some(queue) = self.queues.get_mut(&session) else { return 0 };
        let mut written = 0;
        for place in out.chunks_exact_mut(RECORD_SIZE) {
            let Some(record) = queue.records.pop_front() else { break };
            place.copy_from_slice(&record.encode());
            written += RECORD_SIZE;
        }
        written
    }

    /// Whether a session has unread records.
    pub(super) fn pending(&self, session: SessionId) -> bool {
        self.queues.get(&session).is_some_and(|queue| !queue.records.is_empty())
    }

    /// Number of records that a session lost because it did not read in time.
    pub(super) fn lost(&self, session: SessionId) -> u32 {
        self.queues.get(&session).map_or(0, |queue| queue.lost_total)
    }

    /// Removes the queue of a session.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.queues.remove(&session);
    }

    /// Faults seen since start.
    pub(super) const fn total(&self) -> u64 {
        self.sequence
    }

    /// The latest records, oldest first.
    pub(super) fn log(&self) -> impl Iterator<Item = &FaultRecord> {
        self.log.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;
    use iommu_protocol::fault::FaultAccess;
    use iommu_protocol::ids::RequesterId;

    fn fault(address: u64) -> HardwareFault {
        HardwareFault {
            source: RequesterId(0x20),
            address: Some(Iova(address)),
            access: FaultAccess::Write,
            reason: 5,
            words: "write without permission",
        }
    }

    #[test]
    fn a_full_queue_loses_the_newest_and_says_how_many() {
        let mut faults = Faults::new(2);
        let session = SessionId(1);
        for address in 0..5 {
            faults.record(0, &fault(address << 12), Some(session));
        }
        let mut out = [0; 3 * RECORD_SIZE];
        assert_eq!(faults.read(session, &mut out), 2 * RECORD_SIZE);
        assert_eq!(faults.lost(session), 3);
        faults.record(0, &fault(0x9000), Some(session));
        assert_eq!(faults.read(session, &mut out), RECORD_SIZE);
        let record = FaultRecord::decode(&out[..RECORD_SIZE]).unwrap();
        assert_eq!((record.sequence, record.lost, record.address), (6, 3, Some(0x9000)));
        assert_eq!(faults.total(), 6);
        assert_eq!(faults.log().count(), 6);
    }

    #[test]
    fn a_read_takes_whole_records_only() {
        let mut faults = Faults::new(4);
        let session = SessionId(1);
        faults.record(0, &fault(0x1000), Some(session));
        assert_eq!(faults.read(session, &mut [0; RECORD_SIZE - 1]), 0);
        assert!(faults.pending(session));
        assert_eq!(faults.read(session, &mut [0; RECORD_SIZE]), RECORD_SIZE);
        assert!(!faults.pending(session));
    }
}
