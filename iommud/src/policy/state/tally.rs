//! Counts of mappings that sessions make and end. They only grow, and begin at 0 with the server.

use alloc::collections::BTreeMap;

use iommu_protocol::ids::PciAddress;

/// Mappings made and ended, and their bytes. The difference is what is mapped now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Mappings made. A list of pages is one mapping.
    pub maps: u64,
    /// Mappings ended, for any reason.
    pub unmaps: u64,
    /// Bytes of the mappings made.
    pub mapped_bytes: u64,
    /// Bytes of the mappings ended.
    pub unmapped_bytes: u64,
}

impl Tally {
    /// Counts a mapping that was made.
    #[inline]
    pub(in crate::policy) const fn map(&mut self, bytes: u64) {
        self.maps = self.maps.wrapping_add(1);
        self.mapped_bytes = self.mapped_bytes.wrapping_add(bytes);
    }

    /// Counts a mapping that was ended.
    #[inline]
    pub(in crate::policy) const fn unmap(&mut self, bytes: u64) {
        self.unmaps = self.unmaps.wrapping_add(1);
        self.unmapped_bytes = self.unmapped_bytes.wrapping_add(bytes);
    }

    /// Undoes [`Tally::map`], or [`Tally::unmap`] when `more` is false.
    pub(in crate::policy) const fn undo(&mut self, bytes: u64, more: bool) {
        let (count, sum) = match more {
            true => (&mut self.maps, &mut self.mapped_bytes),
            false => (&mut self.unmaps, &mut self.unmapped_bytes),
        };
        *count = count.wrapping_sub(1);
        *sum = sum.wrapping_sub(bytes);
    }

    /// Adds the counts of another session.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            maps: self.maps.wrapping_add(other.maps),
            unmaps: self.unmaps.wrapping_add(other.unmaps),
            mapped_bytes: self.mapped_bytes.wrapping_add(other.mapped_bytes),
            unmapped_bytes: self.unmapped_bytes.wrapping_add(other.unmapped_bytes),
        }
    }
}

/// The counts of sessions that ended, by device.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct Tallies(BTreeMap<PciAddress, Tally>);

impl Tallies {
    /// Takes the counts of a session that ended: all its mappings have ended too.
    pub(in crate::policy) fn take_over(&mut self, device: PciAddress, tally: Tally) {
        let Tally { maps, mapped_bytes, .. } = tally;
        if maps == 0 {
            return;
        }
        let ended = Tally { unmaps: maps, unmapped_bytes: mapped_bytes, ..tally };
        let known = self.0.entry(device).or_default();
        *known = known.plus(ended);
    }

    pub(in crate::policy) fn iter(&self) -> impl Iterator<Item = (PciAddress, Tally)> {
        self.0.iter().map(|(device, tally)| (*device, *tally))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_undone_exactly_and_wrap() {
        let mut tally =
            Tally { maps: u64::MAX, mapped_bytes: u64::MAX - 0xfff, ..Tally::default() };
        let before = tally;
        tally.map(0x2000);
        assert_eq!((tally.maps, tally.mapped_bytes), (0, 0x1000));
        tally.unmap(0x3000);
        assert_eq!((tally.unmaps, tally.unmapped_bytes), (1, 0x3000));
        let twice = tally.plus(tally);
        let expected = Tally { maps: 0, unmaps: 2, mapped_bytes: 0x2000, unmapped_bytes: 0x6000 };
        assert_eq!(twice, expected);
        tally.undo(0x3000, false);
        tally.undo(0x2000, true);
        assert_eq!(tally, before);
    }
}
