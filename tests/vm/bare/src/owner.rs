//! A previous owner of the unit, with no code in common with iommud. It has its own constants for the registers (VT-d
//! 4.1 chapter 11) and translates one device through one page of its own.

use iommu_protocol::ids::RequesterId;

use crate::{cpu, phys};

/// Its tables, one page each: root, context, three levels of page tables, queue, status.
const TABLES: u64 = 56 << 20;

const ROOT: u64 = TABLES;
const CONTEXT: u64 = TABLES + 0x1000;
const LEVEL_3: u64 = TABLES + 0x2000;
const LEVEL_2: u64 = TABLES + 0x3000;
const LEVEL_1: u64 = TABLES + 0x4000;
const QUEUE: u64 = TABLES + 0x5000;
const STATUS_WORD: u64 = TABLES + 0x6000;

const GCMD: u64 = 0x18;
const GSTS: u64 = 0x1c;
const RTADDR: u64 = 0x20;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const IECTL: u64 = 0xa0;
const IEDATA: u64 = 0xa4;
const IEADDR: u64 = 0xa8;
const ICS: u64 = 0x9c;
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const QIE: u32 = 1 << 26;

/// The unit's registers in the hands of a previous owner.
pub struct Owner {
    base: u64,
    tail: u64,
}

impl Owner {
    /// Turns off everything that another owner may have left on, and starts its own queue.
    pub fn new(base: u64) -> Self {
        let owner = Self { base, tail: 0 };
        phys::fill(TABLES, 0x7000, 0);
        owner.command(0, TE, false);
        owner.command(TE, QIE, false);
        phys::write64(base + IQT, 0);
        phys::write64(base + IQA, QUEUE);
        owner.command(0, QIE, true);
        owner
    }

    /// Whether translation is on.
    pub fn translates(base: u64) -> bool {
        phys::read32(base + GSTS) & TE != 0
    }

    fn command(&self, drop: u32, bit: u32, on: bool) {
        let kept = phys::read32(self.base + GSTS) & (TE | QIE) & !drop & !bit;
        phys::write32(self.base + GCMD, kept | if on { bit } else { 0 });
        while (phys::read32(self.base + GSTS) & bit != 0) != on {
            cpu::pause();
        }
    }

    /// Writes a descriptor and moves the tail; does not wait.
    fn submit(&mut self, low: u64, high: u64) {
        phys::write64(QUEUE + self.tail, low);
        phys::write64(QUEUE + self.tail + 8, high);
        self.tail = (self.tail + 16) % 4096;
        phys::write64(self.base + IQT, self.tail);
    }

    /// Submits a wait that completes with the status word (SW, bit 5), and waits for it.
    fn wait(&mut self) {
        phys::write32(STATUS_WORD, 0);
        self.submit(5 | 1 << 5 | 0x55 << 32, STATUS_WORD);
        while phys::read32(STATUS_WORD) != 0x55 {
            cpu::pause();
        }
    }

    /// Submits a wait that completes with an interrupt (IF, bit 4) to `vector`. Returns whether ICS.IWC was set.
    pub fn wait_by_interrupt(&mut self, vector: u8) -> bool {
        phys::write32(self.base + IEDATA, cpu::msi_data(vector));
        phys::write32(self.base + IEADDR, 0xfee0_0000);
        phys::write32(self.base + IECTL, 0);
        self.submit(5 | 1 << 4, 0);
        let complete = phys::read32(self.base + ICS) & 1 != 0;
        phys::write32(self.base + ICS, 1);
        phys::write32(self.base + IECTL, 1 << 31);
        complete
    }

    /// Maps the page at `iova` (below 1 GiB) to the one at `physical`, for `source`. Domain 9, 3 levels.
    pub fn translate(&mut self, source: RequesterId, iova: u64, physical: u64) {
        phys::write64(LEVEL_1 + (iova >> 12 & 511) * 8, physical | 3);
        phys::write64(LEVEL_2 + (iova >> 21 & 511) * 8, LEVEL_1 | 3);
        phys::write64(LEVEL_3 + (iova >> 30 & 511) * 8, LEVEL_2 | 3);
        let entry = CONTEXT + u64::from(source.devfn()) * 16;
        phys::write64(entry + 8, 9 << 8 | 1);
        phys::write64(entry, LEVEL_3 | 1);
        phys::write64(ROOT + u64::from(source.bus()) * 16, CONTEXT | 1);
        phys::write64(self.base + RTADDR, ROOT);
        let kept = phys::read32(self.base + GSTS) & (TE | QIE);
        phys::write32(self.base + GCMD, kept | SRTP);
        while phys::read32(self.base + GSTS) & SRTP == 0 {
            cpu::pause();
        }
        // Invalidates the whole context cache and the whole IOTLB.
        self.submit(1 | 1 << 4, 0);
        self.submit(2 | 1 << 4, 0);
        self.wait();
        self.command(0, TE, true);
    }
}
