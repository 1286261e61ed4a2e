//! An NVMe controller with only its admin queue. The suite needs just "Identify" as DMA (NVM Express Base
//! Specification 2.0c, sections 3.1.3, 5.17).

use iommu_protocol::ids::RequesterId;

use crate::cpu::{nanos, pause};
use crate::{pci, phys};

const CONTROLLER_CONFIGURATION: u64 = 0x14;
const CONTROLLER_STATUS: u64 = 0x1c;
const ADMIN_ATTRIBUTES: u64 = 0x24;
const ADMIN_SUBMISSION: u64 = 0x28;
const ADMIN_COMPLETION: u64 = 0x30;
const DOORBELL: u64 = 0x1000;
/// Entries of each queue.
const ENTRIES: u16 = 8;

/// A running controller.
pub struct Nvme {
    /// Its requester id.
    pub id: RequesterId,
    bar: u64,
    /// Address of the queues for this program. The completion queue is 4096 bytes after the submission queue.
    queues: u64,
    next: u16,
}

impl Nvme {
    /// Returns the first controller's requester id.
    pub fn find() -> Option<RequesterId> {
        pci::find(0x1b36, 0x0010).first().copied()
    }

    /// Starts the controller with admin queues at `queues` in memory. The controller reaches them at bus address
    /// `bus`.
    pub fn start(id: RequesterId, queues: u64, bus: u64) -> Option<Self> {
        pci::enable(id);
        let bar = pci::bar(id, 0);
        phys::fill(queues, 8192, 0);
        phys::write32(bar + CONTROLLER_CONFIGURATION, 0);
        wait(|| phys::read32(bar + CONTROLLER_STATUS) & 1 == 0)?;
        let size = u32::from(ENTRIES - 1);
        phys::write32(bar + ADMIN_ATTRIBUTES, size | size << 16);
        phys::write64(bar + ADMIN_SUBMISSION, bus);
        phys::write64(bar + ADMIN_COMPLETION, bus + 4096);
        // 64-byte submission entries, 16-byte completion entries, enable.
        phys::write32(bar + CONTROLLER_CONFIGURATION, 6 << 16 | 4 << 20 | 1);
        wait(|| phys::read32(bar + CONTROLLER_STATUS) & 1 == 1)?;
        Some(Self { id, bar, queues, next: 0 })
    }

    /// Makes the controller write its 4096 bytes of identification to bus address `to`. Returns its status code.
    pub fn identify(&mut self, to: u64) -> Option<u16> {
        let slot = self.next % ENTRIES;
        let entry = self.queues + u64::from(slot) * 64;
        phys::fill(entry, 64, 0);
        phys::write32(entry, 0x06 | u32::from(self.next) << 16);
        phys::write64(entry + 24, to);
        phys::write32(entry + 40, 1);
        let completion = self.queues + 4096 + u64::from(slot) * 16;
        // The phase bit is 1 in the first round through the queue.
        let phase = 1 - self.next / ENTRIES % 2;
        self.next += 1;
        phys::write32(self.bar + DOORBELL, u32::from(self.next % ENTRIES));
        wait(|| phys::read16(completion + 14) & 1 == phase)?;
        phys::write32(self.bar + DOORBELL + 4, u32::from(self.next % ENTRIES));
        Some(phys::read16(completion + 14) >> 1)
    }
}

/// Waits until `done`, for at most a second.
fn wait(mut done: impl FnMut() -> bool) -> Option<()> {
    let deadline = nanos() + 1_000_000_000;
    while !done() {
        if nanos() > deadline {
            return None;
        }
        pause();
    }
    Some(())
}
