//! The device table: one entry for each of the 65536 requester ids. All of them deny from the start.
//!
//! A denying entry is valid, has a page table without any page, and has no permissions. A zero entry would let the
//! device through, and so would an entry without V. Implementations disagree about an entry without TV. They also
//! disagree about one with mode 0 and no permissions: QEMU lets the device through.
//!
//! Units read an entry as a whole line or as two halves. Only words 0 and 1 ever change, in this order:
//!
//! ```text
//! word 0 := deny      from here on the device reaches nothing, whatever word 1 holds
//! word 1 := domain
//! word 0 := new       one store: V stays set throughout
//! ```
//!
//! If the domain stays the same and gets a deeper page table, one store of word 0 changes root and mode. The other
//! words that a unit reads at once stay as they are.
//!
//! A denying entry has domain 0. Its permissions deny, even if the unit still caches an earlier owner's domain 0.
//!
//! Words 2 and 3 (interrupts, attributes) and the firmware's SysMgt bits keep their first values.

use iommu_protocol::ids::RequesterId;

use super::spec::device::{self, WORDS};
use super::spec::registers;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::hw::fields::bits;
use crate::hw::hal::{MemoryError, TableMemory};
use crate::hw::unit::Entry;
use crate::topology::firmware::EntryRange;

/// Frames of the table, for all requester ids. QEMU ignores the size in the unit's register (`amdvi_get_dte`). So
/// behind the end of a shorter table it would take unrelated memory for an entry.
pub(super) const FRAMES: usize = 512;

/// Entries in a frame.
const PER_FRAME: usize = 128;

/// Levels of the page table without pages that denying entries point to.
const DENY_LEVELS: u8 = 3;
/// SE and SA: faults are not reported. They do not affect translation, so an entry that deepens keeps them.
const SILENT: u64 = device::SUPPRESS | device::SUPPRESS_ALL;

/// A device table in memory.
#[derive(Clone, Debug)]
pub(super) struct DeviceTable {
    base: PhysAddr,
    /// A frame of zeros that is never written: a page table without pages.
    nothing: PhysAddr,
    coherent: bool,
}

impl DeviceTable {
    /// Allocates a table whose entries all deny, with the settings that firmware requires.
    ///
    /// # Errors
    /// `Exhausted`.
    pub(super) fn new<M: TableMemory>(
        memory: &mut M,
        coherent: bool,
        ranges: &[EntryRange],
    ) -> Result<Self, MemoryError> {
        let base = memory.allocate_run(FRAMES)?;
        let nothing = memory.allocate_run(1)?;
        let table = Self { base, nothing, coherent };
        for source in 0..=u16::MAX {
            table.store(memory, RequesterId(source), 0, table.deny());
        }
        // Leading ranges without settings have no effect: there are no settings yet that they could clear.
        for range in ranges.iter().skip_while(|range| range.settings == 0) {
            table.settle(memory, range);
        }
        if !coherent {
            for index in 0..FRAMES {
                memory.clean(table.frame(index), 0, PER_FRAME * WORDS);
            }
        }
        Ok(table)
    }

    /// The value of the device table register.
    pub(super) const fn register(&self) -> u64 {
        registers::table_base(self.base.0, FRAMES as u64)
    }

    /// Applies the settings of an IVHD device entry to its functions and to their alias. Where entries overlap, the
    /// last one holds.
    fn settle<M: TableMemory>(&self, memory: &mut M, range: &EntryRange) {
        let (management, passes) = device::settings(range.settings);
        let named = (range.first.0..=range.last.0).chain(range.alias.map(|alias| alias.0));
        for source in named.map(RequesterId) {
            for (word, mask, bits) in
                [(1, device::MANAGEMENT_BITS, management), (2, device::PASS_BITS, passes)]
            {
                let value = self.load(memory, source, word);
                let wanted = value & !mask | bits;
                if value != wanted {
                    self.store(memory, source, word, wanted);
                }
            }
        }
    }

    /// Copies the interrupt fields from the table of the unit's previous owner, as far as its memory can be read.
    /// `register` is that owner's value of the device table register. Returns whether there were any.
    pub(super) fn adopt_interrupts<M: TableMemory>(&self, memory: &mut M, register: u64) -> bool {
        let old = Self {
            base: PhysAddr(register & super::spec::ADDRESS_BITS),
            nothing: self.nothing,
            coherent: self.coherent,
        };
        let entries = (bits(register, 0, 9) + 1) * PER_FRAME as u64;
        let last = u16::try_from(entries - 1).unwrap_or(u16::MAX);
        let mut any = false;
        for source in (0..=last).map(RequesterId) {
            let bits = old.load(memory, source, 2) & device::INTERRUPT_BITS;
            if bits == 0 {
                continue;
            }
            any = true;
            let value = self.load(memory, source, 2) | bits;
            self.store(memory, source, 2, value);
            self.clean(memory, source);
        }
        any
    }

    /// Writes the entry of `source`. The device is never let through in between. If only root and mode change, its
    /// translations stay valid throughout.
    pub(super) fn write<M: TableMemory>(&self, memory: &mut M, source: RequesterId, entry: Entry) {
        let (translation, domain) = self.words(entry);
        let [first, second] = [0, 1].map(|word| self.load(memory, source, word));
        let domain = domain | second & device::MANAGEMENT_BITS;
        let translates = |word| device::mode(word) != 0 && device::permissions(word) != 0;
        let same = second & !SILENT == domain;
        let deepens = same && translates(first) && translates(translation);
        if !deepens {
            self.store(memory, source, 0, self.deny());
            self.clean(memory, source);
            self.store(memory, source, 1, domain);
            self.clean(memory, source);
        }
        self.store(memory, source, 0, translation);
        self.clean(memory, source);
    }

    /// Sets or clears SE and SA in the entry of `source`, by one store. The memory that the source can reach stays
    /// the same.
    pub(super) fn suppress_faults<M: TableMemory>(
        &self,
        memory: &mut M,
        source: RequesterId,
        silent: bool,
    ) {
        let old = self.load(memory, source, 1);
        self.store(memory, source, 1, if silent { old | SILENT } else { old & !SILENT });
        self.clean(memory, source);
    }

    /// Words 0 and 1 of an entry.
    const fn words(&self, entry: Entry) -> (u64, u64) {
        match entry {
            Entry::Blocked => (self.deny(), 0),
            Entry::Translate { tag, root, levels } => {
                let permissions = device::READ | device::WRITE;
                (device::translation(root.0, levels, permissions), tag.0 as u64)
            }
            Entry::PassThrough { tag } => {
                (device::translation(0, 0, device::READ | device::WRITE), tag.0 as u64)
            }
        }
    }

    const fn deny(&self) -> u64 {
        device::translation(self.nothing.0, DENY_LEVELS, 0)
    }

    const fn frame(&self, index: usize) -> PhysAddr {
        PhysAddr(self.base.0 + index as u64 * PAGE_SIZE)
    }

    /// Frame and first word of an entry.
    const fn place(&self, source: RequesterId) -> (PhysAddr, usize) {
        let index = source.0 as usize;
        (self.frame(index / PER_FRAME), index % PER_FRAME * WORDS)
    }

    fn load<M: TableMemory>(&self, memory: &M, source: RequesterId, word: usize) -> u64 {
        let (frame, first) = self.place(source);
        memory.load(frame, first + word)
    }

    fn store<M: TableMemory>(&self, memory: &mut M, source: RequesterId, word: usize, value: u64) {
        let (frame, first) = self.place(source);
        memory.store(frame, first + word, value);
    }

    fn clean<M: TableMemory>(&self, memory: &mut M, source: RequesterId) {
        if !self.coherent {
            let (frame, first) = self.place(source);
            memory.clean(frame, first, WORDS);
        }
    }
}
