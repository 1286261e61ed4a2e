//! Violations that the machine detects.

/// A broken rule of the hardware's specification or of the seams. Units are numbered in the order they were added;
/// addresses are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Software used a frame as a table without holding it.
    NotATable {
        /// The frame.
        frame: u64,
    },
    /// Software freed a frame without holding it.
    FreedTwice {
        /// The frame.
        frame: u64,
    },
    /// Software freed a frame as zeroed, but it is not zero (for a unit that does not snoop: in memory).
    FreedNotZero {
        /// The frame.
        frame: u64,
        /// Index of the word.
        word: usize,
        /// Its content.
        value: u64,
    },
    /// Software freed memory that a unit could still reach, by its tables or by its caches.
    FreedInUse {
        /// The unit.
        unit: usize,
        /// First byte of the memory.
        address: u64,
        /// How the unit reaches it.
        how: String,
    },
    /// A unit read a table from memory that is not a table of the server.
    WalkedForeign {
        /// The unit.
        unit: usize,
        /// The address read.
        address: u64,
    },
    /// A unit wrote a status word to memory that is not a table of the server.
    StatusForeign {
        /// The unit.
        unit: usize,
        /// The address written.
        address: u64,
    },
    /// A device reached the server's own memory.
    DeviceInTables {
        /// The requester.
        source: u16,
        /// The address it used.
        iova: u64,
        /// The physical address that it reached.
        physical: u64,
    },
    /// A watched access passed without being granted.
    Passed {
        /// The step at which it passed; see `Machine::steps`.
        step: u64,
        /// The unit.
        unit: usize,
        /// The requester.
        source: u16,
        /// The address it used.
        iova: u64,
        /// The physical address that it reached.
        physical: u64,
    },
    /// A watched access that must always succeed was denied.
    Denied {
        /// The step at which it was denied; see `Machine::steps`.
        step: u64,
        /// The unit.
        unit: usize,
        /// The requester.
        source: u16,
        /// The address it used.
        iova: u64,
        /// The unit's reason.
        reason: u16,
    },
    /// A register was used in a way the specification forbids.
    Register {
        /// The unit.
        unit: usize,
        /// Offset of the register in bytes.
        offset: u32,
        /// The value written; 0 for a read.
        value: u64,
        /// The rule.
        rule: &'static str,
    },
    /// The queue was used in a way the specification forbids.
    Queue {
        /// The unit.
        unit: usize,
        /// First half of the descriptor, or the register's value.
        value: u64,
        /// The rule.
        rule: &'static str,
    },
    /// A page takes several entries, and they differ.
    Replicas {
        /// The unit.
        unit: usize,
        /// The first entry that differs.
        address: u64,
    },
    /// A table entry breaks a rule for which hardware has no fault.
    Entry {
        /// The unit.
        unit: usize,
        /// The requester.
        source: u16,
        /// The entry's two words.
        entry: [u64; 2],
        /// The rule.
        rule: &'static str,
    },
}
