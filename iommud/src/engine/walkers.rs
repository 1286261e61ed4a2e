//! Units whose entries lead to a table, or may still.

use alloc::vec::Vec;

use crate::policy::UnitIndex;

/// Each unit with the number of its entries. An entry whose end the unit did not confirm counts on. Most tables have
/// one unit, which takes no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Walkers {
    first: Option<(UnitIndex, u32)>,
    others: Vec<(UnitIndex, u32)>,
}

impl Walkers {
    /// No unit.
    pub(super) const fn new() -> Self {
        Self { first: None, others: Vec::new() }
    }

    /// Counts an entry that was written.
    pub(super) fn enter(&mut self, unit: UnitIndex) {
        let mut known = self.first.iter_mut().chain(&mut self.others);
        if let Some((_, entries)) = known.find(|(known, _)| *known == unit) {
            *entries = entries.saturating_add(1);
        } else if self.first.is_none() {
            self.first = Some((unit, 1));
        } else {
            self.others.push((unit, 1));
        }
    }

    /// Counts an entry that leads elsewhere now, which the unit has confirmed.
    pub(super) fn leave(&mut self, unit: UnitIndex) {
        let mut known = self.first.iter_mut().chain(&mut self.others);
        let Some((_, entries)) = known.find(|(known, _)| *known == unit) else { return };
        *entries -= 1;
        if *entries == 0 {
            self.others.retain(|(_, entries)| *entries > 0);
            if self.first.is_some_and(|(_, entries)| entries == 0) {
                self.first = self.others.pop();
            }
        }
    }

    /// The units.
    pub(super) fn units(&self) -> Vec<UnitIndex> {
        self.first.iter().chain(&self.others).map(|(unit, _)| *unit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_walks_until_its_last_entry_has_left() {
        let [a, b, c] = [4, 9, 7].map(UnitIndex);
        let mut walkers = Walkers::new();
        walkers.leave(a);
        for unit in [a, b, a, c] {
            walkers.enter(unit);
        }
        walkers.leave(a);
        assert_eq!(walkers.units(), [a, b, c]);
        walkers.leave(b);
        walkers.leave(b);
        assert_eq!(walkers.units(), [a, c]);
        walkers.leave(a);
        assert_eq!(walkers.units(), [c]);
        walkers.leave(c);
        assert_eq!(walkers, Walkers::new());
    }
}
