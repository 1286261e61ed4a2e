//! The live mappings of a domain: found by address, and listed by the buffer slot they belong to.
//!
//! A mapping is a record of 24 bytes. The index has the geometry of the page tables. A mapping is found at the level
//! whose slots its first page is aligned to and its length fills. There, a leaf has the records that begin in 512
//! slots: a short list of few, or one place for each slot.

mod cells;
mod index;
mod leaf;
mod place;
mod record;
mod sparse;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::{Iova, PAGE_SIZE};
use cells::Cells;
use leaf::{Directory, Leaf};
use place::{NONE, Place};
use record::{ACCESS_SHIFT, CHUNK, GRANT, LIST, Record, UNUSED, page_number, threshold};

pub(in crate::policy) use record::{Mapping, MappingIndex, MappingList};

/// All mappings of one domain.
#[derive(Clone)]
pub(in crate::policy) struct Mappings {
    records: Vec<Box<[Record; CHUNK]>>,
    /// Records from here on were never used.
    fresh: u32,
    free: u32,
    count: u32,
    leaves: Vec<Leaf>,
    free_leaves: Vec<u32>,
    /// The leaf that became empty last, kept for the next mapping, and the place that points to it.
    idle: (u32, Place),
    /// The leaf of level 0 that was looked up last: its number among those of its level, and its index.
    recent: (u32, u32),
    /// Level 0: by GiB, then by 2 MiB.
    pages: Vec<Option<Directory>>,
    /// Level 1: by GiB.
    blocks: Option<Directory>,
    /// Level 2.
    whole: u32,
    /// Below this number of mappings, most of the records are free.
    sparse_below: u32,
    cells: Cells,
}

impl Default for Mappings {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            fresh: 0,
            free: NONE,
            count: 0,
            leaves: Vec::new(),
            free_leaves: Vec::new(),
            idle: (NONE, Place::NOWHERE),
            recent: (NONE, NONE),
            pages: Vec::new(),
            blocks: None,
            whole: NONE,
            sparse_below: 0,
            cells: Cells::default(),
        }
    }
}

impl core::fmt::Debug for Mappings {
    /// Shows the mappings by number, with their neighbours in the lists: all state that is visible from outside.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut live: Vec<u32> = self.leaves.iter().flat_map(Leaf::iter).collect();
        live.sort_unstable();
        let links = |index| self.record(index).map(|record| (record.previous, record.next));
        let all = live.iter().map(|index| (index, links(*index), self.get(MappingIndex(*index))));
        f.debug_list().entries(all).finish()
    }
}

impl Mappings {
    /// Number of mappings.
    pub(in crate::policy) const fn len(&self) -> u32 {
        self.count
    }

    /// Inserts a mapping, which overlaps no other, at the end of its slot's list. Its range lies in the first 2^39
    /// bytes; offset and length are multiples of 4096.
    #[inline]
    pub(in crate::policy) fn insert(
        &mut self,
        mapping: Mapping,
        list: &mut MappingList,
    ) -> MappingIndex {
        let page = page_number(mapping.range.first().0);
        let mut flags = (mapping.access.bits() & 3) << ACCESS_SHIFT;
        if mapping.grant {
            flags |= GRANT;
        }
        if mapping.list {
            flags |= LIST;
        }
        let record = Record {
            page: page | flags,
            pages: page_number(mapping.range.length()),
            slot: mapping.slot,
            offset: page_number(mapping.offset),
            previous: list.last,
            next: NONE,
        };
        let index = self.add(record);
        if let Some(last) = self.record_mut(list.last) {
            last.next = index;
        } else {
            list.first = index;
        }
        list.last = index;
        list.count += 1;
        list.charged += record.charge();
        self.link(Place::new(page, record.pages), index);
        MappingIndex(index)
    }

    /// The mapping of exactly this range.
    #[cfg(test)]
    pub(in crate::policy) fn find(&mut self, iova: Iova, length: u64) -> Option<MappingIndex> {
        let place = Place::of(iova, length)?;
        let leaf = self.leaf_of(place)?;
        let index = self.leaves.get(leaf as usize)?.get(place.slot)?;
        let record = self.record(index)?;
        (u64::from(record.pages) == length / PAGE_SIZE).then_some(MappingIndex(index))
    }

    /// Takes the mapping of exactly this range out of the table and out of its list. `list_of` returns that list,
    /// given the slot and whether the mapping is a grant; without a list nothing is taken out. Returns the mapping's
    /// number, its slot, and the number of mappings that it is charged as. The number is not reused before
    /// [`Mappings::forget`].
    #[inline]
    pub(in crate::policy) fn take_out<'list>(
        &mut self,
        iova: Iova,
        length: u64,
        list_of: impl FnOnce(u32, bool) -> Option<&'list mut MappingList>,
    ) -> Option<(MappingIndex, u32, u32)> {
        let place = Place::of(iova, length)?;
        let leaf = self.leaf_of(place)?;
        let index = self.leaves.get(leaf as usize)?.get(place.slot)?;
        let record = *self.record(index)?;
        if u64::from(record.pages) != length / PAGE_SIZE {
            return None;
        }
        let list = list_of(record.slot, record.page & GRANT != 0)?;
        self.leave(&record, (leaf, place), list);
        Some((MappingIndex(index), record.slot, record.charge()))
    }

    /// Like [`Mappings::take_out`], for a mapping whose number is known.
    pub(in crate::policy) fn take_out_at(&mut self, index: MappingIndex, list: &mut MappingList) {
        let Some(record) = self.record(index.0).copied() else { return };
        let place = record.place();
        if let Some(leaf) = self.leaf_of(place) {
            self.leave(&record, (leaf, place), list);
        }
    }

    /// Undoes the last [`Mappings::take_out`] that was not undone. All later changes were undone before.
    pub(in crate::policy) fn put_back(&mut self, index: MappingIndex, list: &mut MappingList) {
        let Some(&record) = self.record(index.0) else { return };
        match self.record_mut(record.previous) {
            Some(previous) => previous.next = index.0,
            None => list.first = index.0,
        }
        match self.record_mut(record.next) {
            Some(next) => next.previous = index.0,
            None => list.last = index.0,
        }
        list.count += 1;
        list.charged += record.charge();
        self.count += 1;
        self.link(record.place(), index.0);
    }

    /// Frees the record of a mapping that was taken out, and returns the mapping.
    #[inline]
    pub(in crate::policy) fn forget(&mut self, index: MappingIndex) -> Option<Mapping> {
        let free = self.free;
        let record = self.record_mut(index.0)?;
        record.next = free;
        let mapping = record.unpack();
        self.free = index.0;
        mapping
    }

    /// Removes a mapping from the table and from its slot's list; returns it.
    pub(in crate::policy) fn remove(
        &mut self,
        index: MappingIndex,
        list: &mut MappingList,
    ) -> Option<Mapping> {
        self.take_out_at(index, list);
        self.forget(index)
    }

    /// Gives back the memory of an empty table. Every mapping that was taken out was forgotten too.
    #[inline]
    pub(in crate::policy) fn tidy(&mut self) {
        if self.count == 0 && (self.records.len() > 1 || self.leaves.len() > 64) {
            *self = Self::default();
        }
    }

    pub(in crate::policy) fn get(&self, index: MappingIndex) -> Option<Mapping> {
        self.record(index.0)?.unpack()
    }

    /// Sets the cell of a mapping in the store of facts.
    #[inline]
    pub(in crate::policy) fn set_cell(&mut self, index: MappingIndex, cell: u32) {
        self.cells.set(index, cell);
    }

    /// Takes its cell away from a mapping that was taken out.
    #[inline]
    pub(in crate::policy) fn take_cell(&mut self, index: MappingIndex) -> Option<u32> {
        self.cells.take(index)
    }

    /// The cell of a mapping in the store of facts.
    pub(in crate::policy) fn cell(&self, index: MappingIndex) -> Option<u32> {
        self.cells.get(index)
    }

    /// Removes a record from its list and its leaf.
    #[inline]
    fn leave(&mut self, record: &Record, at: (u32, Place), list: &mut MappingList) {
        match self.record_mut(record.previous) {
            Some(previous) => previous.next = record.next,
            None => list.first = record.next,
        }
        match self.record_mut(record.next) {
            Some(next) => next.previous = record.previous,
            None => list.last = record.previous,
        }
        list.count -= 1;
        list.charged -= record.charge();
        self.count -= 1;
        self.unlink(at);
    }

    /// The mappings of a list, oldest first.
    pub(in crate::policy) fn list(
        &self,
        list: &MappingList,
    ) -> impl Iterator<Item = (MappingIndex, Mapping)> {
        let next = |index: u32| (index != NONE).then_some(index);
        core::iter::successors(next(list.first), move |index| {
            self.record(*index).and_then(|record| next(record.next))
        })
        .filter_map(|index| Some((MappingIndex(index), self.get(MappingIndex(index))?)))
    }

    #[inline]
    fn record(&self, index: u32) -> Option<&Record> {
        self.records.get(index as usize / CHUNK)?.get(index as usize % CHUNK)
    }

    #[inline]
    fn record_mut(&mut self, index: u32) -> Option<&mut Record> {
        self.records.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    #[inline]
    fn add(&mut self, record: Record) -> u32 {
        self.count += 1;
        let free = self.free;
        if let Some(place) = self.record_mut(free) {
            let next = place.next;
            *place = record;
            self.free = next;
            return free;
        }
        self.add_fresh(record)
    }

    /// Like `add`, when every record that was ever used is in use.
    #[inline(never)]
    fn add_fresh(&mut self, record: Record) -> u32 {
        let index = self.fresh;
        if index as usize / CHUNK == self.records.len() {
            self.sparse_below = threshold(self.records.len() * CHUNK);
            self.records.push(Box::new([UNUSED; CHUNK]));
        }
        self.fresh += 1;
        if let Some(place) = self.record_mut(index) {
            *place = record;
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::IovaRange;
    use alloc::collections::BTreeMap;
    use iommu_protocol::wire::Access;
    use proptest::prelude::*;

    pub(super) fn mapping(first: u64, length: u64, slot: u32) -> Mapping {
        Mapping {
            range: IovaRange::new(Iova(first), length).unwrap(),
            slot,
            offset: u64::from(slot) * PAGE_SIZE,
            access: Access::READ,
            grant: slot.is_multiple_of(2),
            list: slot.is_multiple_of(3),
        }
    }

    #[test]
    fn a_mapping_is_found_by_its_exact_range_only() {
        let mut table = Mappings::default();
        let mut list = MappingList::default();
        let m = mapping(0x20_0000, 0x20_0000, 3);
        let index = table.insert(m, &mut list);
        assert_eq!(table.find(Iova(0x20_0000), 0x20_0000), Some(index));
        assert_eq!(table.get(index), Some(m));
        for (iova, length) in [
            (0x20_0000, 0x1000),
            (0x20_0000, 0x40_0000),
            (0x20_1000, 0x20_0000),
            (0x20_0001, 0x20_0000),
            (0x20_0000, 0x20_0001),
            (0x20_0800, 0x20_0800),
            (1 << 39 | 0x20_0000, 0x20_0000),
            (0, 0),
        ] {
            assert_eq!(table.find(Iova(iova), length), None, "{iova:#x} {length:#x}");
        }
        let other = table.insert(mapping(0x40_0000, 0x1000, 3), &mut list);
        let before = (list, table.len());
        let taken = table.take_out(Iova(0x20_0000), 0x20_0000, |_, _| Some(&mut list));
        assert_eq!((taken, table.len()), (Some((index, 3, 512)), 1));
        assert_eq!(table.find(Iova(0x20_0000), 0x20_0000), None);
        table.put_back(index, &mut list);
        assert_eq!((list, table.len(), table.get(index)), (before.0, before.1, Some(m)));
        assert_eq!(table.find(Iova(0x20_0000), 0x20_0000), Some(index));
        table.remove(other, &mut list);
        table.remove(index, &mut list);
        assert_eq!((table.len(), list), (0, MappingList::default()));
        assert_eq!(table.find(Iova(0x20_0000), 0x20_0000), None);
    }

    #[test]
    fn a_mapping_is_shown_with_its_neighbours() {
        let mut table = Mappings::default();
        let mut list = MappingList::default();
        let all = [0x4000_0000, 0x1000, 0].map(|first| mapping(first, 0x1000, 1));
        for mapping in all {
            table.insert(mapping, &mut list);
        }
        let shown = [
            (0, Some((NONE, 1)), Some(all[0])),
            (1, Some((0, 2)), Some(all[1])),
            (2, Some((1, NONE)), Some(all[2])),
        ];
        assert_eq!(format!("{table:?}"), format!("{shown:?}"));
    }

    #[test]
    fn a_list_of_pages_is_charged_by_the_page() {
        // Slots: no list and no grant, grant, list, both.
        for (slot, charge) in [(1, 1), (2, 1), (3, 3), (6, 3)] {
            let mut table = Mappings::default();
            let mut list = MappingList::default();
            let all = [0, 0x1000_0000, 0x7f_ffff_d000].map(|first| mapping(first, 0x3000, slot));
            for (at, m) in (1..).zip(all) {
                table.insert(m, &mut list);
                assert_eq!((list.count, list.charged, m.charge()), (at, at * charge, charge));
            }
            let first = all[2].range.first();
            let (_, of, taken) = table.take_out(first, 0x3000, |_, _| Some(&mut list)).unwrap();
            assert_eq!((of, taken, list.count, list.charged), (slot, charge, 2, 2 * charge));
        }
    }

    #[test]
    fn a_list_keeps_its_order_when_one_leaves() {
        let mut table = Mappings::default();
        let mut list = MappingList::default();
        let all: Vec<_> =
            (0..5).map(|n| table.insert(mapping(n * 0x1000, 0x1000, 1), &mut list)).collect();
        for gone in [2, 0, 4] {
            table.remove(all[gone], &mut list);
        }
        let left: Vec<_> = table.list(&list).map(|(_, m)| m.range.first().0).collect();
        assert_eq!((left, list.count), (vec![0x1000, 0x3000], 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn behaves_as_a_sorted_map(actions in proptest::collection::vec((any::<bool>(), 0_u64..600, 0_u32..5, 0_u32..3), 1..800)) {
            let mut table = Mappings::default();
            let mut lists = [MappingList::default(); 3];
            let mut model: BTreeMap<u64, Mapping> = BTreeMap::new();
            for (insert, place, size, slot) in actions {
                let length = [0x1000, 0x3000, 0x20_0000, 0x20_1000, 0x4000_0000][size as usize];
                let first = if size < 2 { place * 0x8000 } else { (place + 600) * 0x4000_0000 % (1 << 38) };
                if insert && !model.contains_key(&first) {
                    let m = mapping(first, length, slot);
                    table.insert(m, &mut lists[slot as usize]);
                    model.insert(first, m);
                } else if let Some(m) = model.remove(&first) {
                    let index = table.find(m.range.first(), m.range.length()).unwrap();
                    prop_assert_eq!(table.get(index), Some(m));
                    table.remove(index, &mut lists[m.slot as usize]);
                }
                prop_assert_eq!(table.len() as usize, model.len());
            }
            for m in model.values() {
                let index = table.find(m.range.first(), m.range.length()).unwrap();
                prop_assert_eq!(table.get(index), Some(*m));
            }
            for (slot, list) in lists.iter().enumerate() {
                let listed: Vec<_> = table.list(list).map(|(_, m)| m).collect();
                prop_assert_eq!(listed.len(), list.count as usize);
                prop_assert!(listed.iter().all(|m| m.slot as usize == slot && model.get(&m.range.first().0) == Some(m)));
                prop_assert_eq!(listed.len(), model.values().filter(|m| m.slot as usize == slot).count());
            }
        }
    }
}
