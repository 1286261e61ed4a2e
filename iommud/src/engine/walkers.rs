//! Units whose entries lead to a table, or may still.

use alloc::vec::Vec;

use crate::policy::UnitIndex;

/// Each unit with the number of its entries. An entry whose end the unit did not confirm counts on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Walkers(Vec<(UnitIndex, u32)>);

impl Walkers {
    /// No unit.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Counts an entry that was written.
    pub(super) fn enter(&mut self, unit: UnitIndex) {
        match self.0.iter_mut().find(|(known, _)| *known == unit) {
            Some((_, entries)) => *entries = entries.saturating_add(1),
            None => self.0.push((unit, 1)),
        }
    }

    /// Counts an entry that leads elsewhere now, which the unit has confirmed.
    pub(super) fn leave(&mut self, unit: UnitIndex) {
        let Some(at) = self.0.iter().position(|(known, _)| *known == unit) else { return };
        let Some((_, entries)) = self.0.get_mut(at) else { return };
        *entries -= 1;
        if *entries == 0 {
            self.0.swap_remove(at);
        }
    }

    /// The units.
    pub(super) fn units(&self) -> Vec<UnitIndex> {
        self.0.iter().map(|(unit, _)| *unit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_walks_until_its_last_entry_has_left() {
        let [a, b] = [UnitIndex(4), UnitIndex(9)];
        let mut walkers = Walkers::new();
        walkers.leave(a);
        for unit in [a, b, a] {
            walkers.enter(unit);
        }
        walkers.leave(a);
        assert_eq!(walkers.units(), [a, b]);
        walkers.leave(b);
        walkers.leave(b);
        assert_eq!(walkers.units(), [a]);
        walkers.leave(a);
        assert_eq!(walkers, Walkers::new());
    }
}
