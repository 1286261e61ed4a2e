//! Rules that the machine sees broken.

/// A rule of the hardware's specification, or of the seams, that was broken. Numbers of units are in the
/// order they were added; addresses are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Software used a frame as a table that it does not hold.
    NotATable {
        /// The frame.
        frame: u64,
    },
    /// Software gave a frame back that it does not hold.
    FreedTwice {
        /// The frame.
        frame: u64,
    },
    /// Software said that a frame is zero again, but it is not (for a unit that does not snoop: in memory).
    FreedNotZero {
        /// The frame.
        frame: u64,
        /// Index of the word.
        word: usize,
        /// What it holds.
        value: u64,
    },
    /// Memory was given back that a unit could still reach, by its tables or by what it has cached.
    FreedInUse {
        /// The unit.
        unit: usize,
        /// First byte of the memory.
        address: u64,
        /// How the unit reaches it.
        how: String,
    },
    /// A unit read a table from memory that is no table of the server.
    WalkedForeign {
        /// The unit.
        unit: usize,
        /// The address read.
        address: u64,
    },
    /// A unit wrote a status word to memory that is no table of the server.
    StatusForeign {
        /// The unit.
        unit: usize,
        /// The address written.
        address: u64,
    },
    /// A device reached memory that is the server's own.
    DeviceInTables {
        /// The requester.
        source: u16,
        /// The address it used.
        iova: u64,
        /// Where that led.
        physical: u64,
    },
    /// A watched access passed although it was not granted.
    Passed {
        /// The step at which it did; see `Machine::steps`.
        step: u64,
        /// The unit.
        unit: usize,
        /// The requester.
        source: u16,
        /// The address it used.
        iova: u64,
        /// Where that led.
        physical: u64,
    },
    /// A watched access that must always succeed was denied.
    Denied {
        /// The step at which it was; see `Machine::steps`.
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
        /// What was written; 0 for a read.
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
    /// A page that takes several entries has entries that differ.
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
