//! The memory that was taken, and the part of it that the server needs for itself.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

use crate::hw::UnitError;

/// Frames of a MiB.
const FRAMES_A_MIB: u64 = 256;

/// Size of a frame in KiB.
const FRAME_KIB: u64 = 4;

/// Memory that was taken, at start and since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Number of frames of 4 KiB that were taken for tables.
    pub table_frames_total: u64,
    /// The frames of these that the server needs for itself: units, domains of policy. The rest is the clients'
    /// share.
    pub table_frames_base: u64,
    /// Bytes that were taken for buffers.
    pub buffer_bytes_total: u64,
    /// The bytes of these that the server needs for itself.
    pub buffer_bytes_base: u64,
    /// For each unit, the frames that it needs, including the domains of policy behind it.
    pub unit_frames: Vec<u64>,
    /// MiB of tables that are enough for all units and for clients.
    pub tables_that_do: u64,
}

impl Budget {
    /// The reason why a unit has not come up for lack of memory: the amount it needs, and the option for the command
    /// line. `None` when the amount that was estimated was taken.
    #[must_use]
    pub fn shortage(&self, unit: usize) -> Option<String> {
        let needed = *self.unit_frames.get(unit)?;
        let enough = self.table_frames_total / FRAMES_A_MIB >= self.tables_that_do;
        (!enough).then(|| {
            let needed = grouped(needed.saturating_mul(FRAME_KIB));
            let does = self.tables_that_do;
            alloc::format!("needs {needed} KiB for tables; --tables {does} would do")
        })
    }

    /// The text of [`Budget::shortage`] when memory was missing, otherwise the error.
    #[must_use]
    pub fn reason(&self, unit: usize, error: &UnitError) -> String {
        let shortage = match error {
            UnitError::Memory(_) => self.shortage(unit),
            _ => None,
        };
        shortage.unwrap_or_else(|| error.to_string())
    }
}

/// A number with a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        // Writing to a string cannot fail.
        let _ = out.write_char(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::MemoryError;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let all = [0, 999, 1000, 4210, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "4,210", "1,234,567"]);
    }

    #[test]
    fn what_would_do_is_said_only_when_too_little_was_taken() {
        let mut budget = Budget {
            table_frames_total: 1024,
            table_frames_base: 1100,
            unit_frames: alloc::vec![600, 1052],
            tables_that_do: 9,
            ..Budget::default()
        };
        let memory = UnitError::Memory(MemoryError::Exhausted);
        assert_eq!(budget.reason(1, &memory), "needs 4,208 KiB for tables; --tables 9 would do");
        assert_eq!(budget.reason(1, &UnitError::Dead), "registers read all ones");
        assert_eq!(budget.reason(2, &memory), "no memory for tables");
        budget.table_frames_total = 9 * 256;
        assert_eq!(budget.reason(1, &memory), "no memory for tables");
    }
}
