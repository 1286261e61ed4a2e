//! Decides how much memory the server takes. At start it takes as much as the machine needs, and more while it runs.
//! The command line can fix the amount instead.

use super::HUGE_PAGE;
use super::machine_facts::MachineFacts;
use super::units::{self, Family, MapRegisters};
use crate::addr::PhysRange;
use crate::policy::Config;
use crate::server::Budget;
use crate::sizing::{Facts, Need, PAGE_FRAMES, memory_need};
use crate::topology::pci::ConfigSpace;

const MIB: u64 = 1 << 20;

/// Bytes of one kind of memory, in multiples of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// With less than this, the server does not start on Linux, and units fail on Redox.
    pub least: u64,
    /// Bytes to take at start, if they are available.
    pub wanted: u64,
    /// The most that the server ever takes, including growth while it runs.
    pub most: u64,
}

/// The amounts of memory to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// For tables.
    pub tables: Amount,
    /// For buffers.
    pub buffers: Amount,
}

/// The most memory that the server takes, as a multiple of the amount wanted at start. Applies where the command line
/// does not fix the amount.
const MOST: u64 = 4;

impl Amount {
    /// A fixed amount of bytes, rounded up to pages of 2 MiB, at least one page.
    #[must_use]
    pub fn exactly(bytes: u64) -> Self {
        let bytes = bytes.div_ceil(HUGE_PAGE).max(1).saturating_mul(HUGE_PAGE);
        Self { least: bytes, wanted: bytes, most: bytes }
    }

    /// An amount that follows from the needs of a machine.
    const fn needed(least: u64, wanted: u64) -> Self {
        Self { least, wanted, most: wanted.saturating_mul(MOST) }
    }
}

impl Order {
    /// Fixed amounts of tables and buffers, in bytes.
    #[must_use]
    pub fn exactly(tables: u64, buffers: u64) -> Self {
        Self { tables: Amount::exactly(tables), buffers: Amount::exactly(buffers) }
    }

    /// The amounts that a machine needs. `tables` and `buffers` are amounts from the command line in MiB, which take
    /// precedence.
    #[must_use]
    pub fn new(need: &Need, tables: Option<u32>, buffers: Option<u32>) -> Self {
        let said = |mib: u32| Amount::exactly(u64::from(mib) * MIB);
        let tables = tables
            .map(said)
            .unwrap_or(Amount::needed(need.least_table_bytes(), need.table_bytes()));
        let buffers = buffers
            .map(said)
            .unwrap_or(Amount::needed(HUGE_PAGE, Amount::exactly(need.buffer_bytes).wanted));
        Self { tables, buffers }
    }
}

/// Computes how much memory a machine needs, and logs it. Reads the registers of units. `left` is memory of earlier
/// servers.
pub(super) fn need<U: Family>(
    facts: &MachineFacts,
    (space, map): (&mut impl ConfigSpace, MapRegisters),
    config: &Config,
    left: &[PhysRange],
) -> Need {
    let MachineFacts { firmware, ram, functions, .. } = facts;
    let surveys = &units::surveys::<U, _>(firmware, space, map);
    let need = memory_need(&Facts { firmware, surveys, ram, functions, config, left });
    log::info!(
        "memory: {} KiB of tables for units and policy, {} KiB for clients, {} MiB of buffers wanted",
        need.base_frames * 4,
        need.client_frames * 4,
        need.buffer_bytes / MIB
    );
    need
}

/// Logs how much memory was taken, and states it as the server's budget. `tables` and `buffers` are in bytes.
pub(super) fn budget(need: &Need, tables: u64, buffers: u64) -> Budget {
    log::info!("memory: {} MiB for tables, {} MiB for buffers", tables / MIB, buffers / MIB);
    Budget {
        table_frames_total: tables / HUGE_PAGE * PAGE_FRAMES,
        table_frames_base: need.base_frames,
        buffer_bytes_total: buffers,
        buffer_bytes_base: 0,
        unit_frames: need.units.clone(),
        tables_that_do: need.table_bytes() / MIB,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1000 and 600 frames take 3.1 pages. The aligned run needs one more page for gaps.
    fn wanted() -> Need {
        Need {
            runs: vec![512],
            base_frames: 1000,
            client_frames: 600,
            buffer_bytes: 9 << 20,
            units: vec![1000],
        }
    }

    #[test]
    fn the_machine_says_how_much_unless_the_command_line_does() {
        let by_machine = Order::new(&wanted(), None, None);
        assert_eq!(by_machine.tables, Amount { least: 6 * MIB, wanted: 8 * MIB, most: 32 * MIB });
        assert_eq!(by_machine.buffers, Amount { least: 2 * MIB, wanted: 10 * MIB, most: 40 * MIB });
        let said = Order::new(&wanted(), Some(3), Some(0));
        assert_eq!(said, Order::exactly(4 * MIB, 2 * MIB));
        assert_eq!(said.tables, Amount { least: 4 * MIB, wanted: 4 * MIB, most: 4 * MIB });
    }

    #[test]
    fn the_budget_is_what_was_taken_and_what_of_it_is_the_server_s() {
        let budget = budget(&wanted(), 4 * MIB, 10 * MIB);
        assert_eq!((budget.table_frames_total, budget.table_frames_base), (1024, 1000));
        assert_eq!((budget.buffer_bytes_total, budget.buffer_bytes_base), (10 * MIB, 0));
        let line = "needs 4,000 KiB for tables; --tables 8 would do";
        assert_eq!(budget.shortage(0).as_deref(), Some(line));
    }
}
