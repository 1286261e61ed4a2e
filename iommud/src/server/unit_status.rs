//! The findings at start, and the state of each unit.

use alloc::string::String;
use alloc::vec::Vec;

use crate::addr::PhysRange;
use crate::hw::UnitError;
use crate::policy::UnitIndex;
use crate::server::budget::Budget;
use crate::topology::firmware::{UnitDefect, UnitDescription};

/// The firmware's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableState {
    /// The machine has no such table.
    Absent,
    /// The table cannot be read: signature and reason.
    Failed(&'static str, String),
    /// The table was read: signature.
    Parsed(&'static str),
}

/// The result of bringing up a unit.
pub enum UnitStart<U> {
    /// It accepts entries and waits to be enabled.
    Ready(U),
    /// It did not carry out a command, and may do so later.
    Stuck(U, UnitError),
    /// It did not come up.
    Failed(UnitError),
    /// The firmware's table does not describe it well enough to try.
    Unusable(UnitDefect),
    /// Policy leaves it alone.
    Off,
}

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// Known from the table, and left alone.
    Parsed,
    /// Translating.
    Enabled,
    /// Not to be relied on, with the reason.
    Failed(String),
}

/// A unit as `status` shows it.
#[derive(Clone)]
pub(super) struct UnitStatus {
    pub(super) description: UnitDescription,
    pub(super) state: UnitState,
    /// Whether it reports faults by interrupt.
    pub(super) tells: bool,
    /// Whether it has translated with tables of this server, whatever happened since.
    pub(super) translated: bool,
}

/// The findings at start.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) table: TableState,
    pub(super) anomalies: Vec<String>,
    pub(super) units: Vec<UnitStatus>,
    pub(super) budget: Budget,
    /// Memory of an earlier server that firmware reserves for a device. A unit may use it as tables until it has new
    /// ones, so that no device reaches it, not even that one.
    pub(super) withheld: Vec<PhysRange>,
}

impl Machine {
    pub(super) fn units(&self) -> &[UnitStatus] {
        &self.units
    }

    pub(super) fn has_failed(&self, unit: UnitIndex) -> bool {
        let status = usize::try_from(unit.0).ok().and_then(|index| self.units.get(index));
        matches!(status, Some(UnitStatus { state: UnitState::Failed(_), .. }))
    }

    /// The text about a unit that has not come up for lack of memory.
    pub(super) fn shortage(&self, unit: UnitIndex) -> Option<String> {
        self.budget.shortage(usize::try_from(unit.0).ok()?)
    }

    pub(super) fn set(&mut self, unit: UnitIndex, state: UnitState) {
        let status = usize::try_from(unit.0).ok().and_then(|index| self.units.get_mut(index));
        if let Some(status) = status {
            log::info!("unit {}: {}", unit.0, state);
            status.translated |= state == UnitState::Enabled;
            status.state = state;
        }
    }
}

impl core::fmt::Display for UnitState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Parsed => f.write_str("parsed"),
            Self::Enabled => f.write_str("enabled"),
            Self::Failed(reason) => write!(f, "failed({reason})"),
        }
    }
}

impl core::fmt::Display for TableState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Failed(signature, reason) => write!(f, "{signature} failed({reason})"),
            Self::Parsed(signature) => write!(f, "{signature} parsed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn states_in_words() {
        let tables = [
            (TableState::Absent, "absent"),
            (
                TableState::Failed("DMAR", "its sum is wrong".into()),
                "DMAR failed(its sum is wrong)",
            ),
            (TableState::Parsed("IVRS"), "IVRS parsed"),
        ];
        for (state, words) in tables {
            assert_eq!(state.to_string(), words);
        }
        let units = [
            (UnitState::Parsed, "parsed"),
            (UnitState::Enabled, "enabled"),
            (UnitState::Failed("it is dead".into()), "failed(it is dead)"),
        ];
        for (state, words) in units {
            assert_eq!(state.to_string(), words);
        }
    }
}
