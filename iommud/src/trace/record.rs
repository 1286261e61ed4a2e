//! The words of a record.
//!
//! ```text
//! word 0   bits 7:0 kind, 15:8 flags (1: without memory), 31:16 zero, 63:32 the object: session, unit ...
//! word 1   bits 31:0 number of the record in its life, 63:32 time in milliseconds
//! word 2-5 arguments, by kind
//! word 6   the outcome: an address, or the number of an object; of a plan that failed, word 7 inverted
//! word 7   bits 3:0 state, 15:4 refusal, 31:16 number of steps, 63:32 refused item, or slot of a buffer
//! ```
//!
//! The elements of a list are in records of their own behind the first one. These have eight words of data each, and
//! no number.

/// A record: eight words, each little-endian in a file.
pub type Record = [u64; 8];

/// Bytes of a record.
pub const RECORD_BYTES: usize = 64;

/// The word of a list's record that takes the outcome of its element.
pub(super) const ITEM_OUTCOME: usize = 4;

/// Flag in word 0: the plan may take no memory.
pub(super) const FRUGAL: u64 = 1 << 8;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $words:literal;)*) => {
        /// The kind of a record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $code,)* }

        impl Kind {
            /// The kind with this code.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The code, never 0.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// The kind in words.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

kinds! {
    /// A unit is ready.
    UnitReady = 1, "a unit is ready";
    /// A unit failed.
    UnitFailed = 2, "a unit failed";
    /// Quarantine can be given back.
    Proved = 3, "nothing reaches quarantine";
    /// A function appeared.
    FunctionAdded = 4, "a function appeared";
    /// Functions appeared.
    FunctionsAdded = 5, "functions appeared";
    /// A function went away.
    FunctionRemoved = 6, "a function went away";
    /// Functions went away.
    FunctionsRemoved = 7, "functions went away";
    /// Memory was taken from policy.
    MemoryTaken = 8, "memory was taken";
    /// Memory was given back to policy.
    MemoryReturned = 9, "memory was given back";
    /// A requester storms.
    Storm = 10, "a requester storms";
    /// A device is attached.
    Attach = 11, "attach";
    /// A device is detached.
    Detach = 12, "detach";
    /// A buffer is released.
    Release = 13, "release";
    /// A descriptor of a buffer is closed.
    Drop = 14, "a buffer's descriptor is closed";
    /// A session ends.
    Close = 15, "a session ends";
    /// The server stops.
    Shutdown = 16, "the server stops";
    /// Owed work about an entry.
    SettleEntry = 17, "owed: an entry";
    /// Owed work about a buffer.
    SettleBuffer = 18, "owed: a buffer";
    /// Owed work about regions of firmware.
    SettleRegions = 19, "owed: regions of firmware";
    /// A device is claimed.
    Claim = 32, "claim";
    /// A buffer is allocated.
    Allocate = 33, "allocate";
    /// A buffer is given to a session of its client.
    Import = 34, "import";
    /// A buffer is given to a session of any client.
    ImportShared = 35, "import of a shared buffer";
    /// A descriptor of a buffer is opened.
    Hold = 36, "a buffer's descriptor is opened";
    /// One map, unmap, grant or revoke.
    One = 37, "map, unmap, grant or revoke";
    /// Several of them.
    Batch = 38, "batch";
    /// A map of pages in any order.
    MapList = 39, "map of a list";
    /// A server starts.
    Life = 64, "a server starts";
    /// The memory for buffers has this size.
    Pool = 65, "memory for buffers";
    /// Tags that units may hold.
    Tags = 66, "tags that units may hold";
    /// A unit was found off.
    FoundOff = 67, "a unit was found off";
    /// A function was left driven.
    CutOff = 68, "a function was left driven";
    /// A unit was brought up, or answered once.
    Installed = 69, "a unit was brought up";
    /// A unit is not to be relied on.
    Lost = 70, "a unit is not relied on";
    /// A buffer was refused before memory was looked for.
    NotAdmitted = 71, "a buffer was not admitted";
    /// The records of one write end.
    Seal = 72, "a seal";
}

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It has not: the server ended in it.
    UnderWay = 0,
    /// Its plan was carried out.
    Committed = 1,
    /// Policy refused it.
    Refused = 2,
    /// A step failed, and the ones before it were undone.
    Undone = 3,
    /// As before, and a device may still reach what the plan brought.
    Quarantined = 4,
}

impl State {
    const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::UnderWay),
            1 => Some(Self::Committed),
            2 => Some(Self::Refused),
            3 => Some(Self::Undone),
            4 => Some(Self::Quarantined),
            _ => None,
        }
    }
}

/// Word 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How the event ended.
    pub state: State,
    /// Code of the refusal; 0 when committed.
    pub refusal: u16,
    /// Number of steps of the plan, modulo 2^16.
    pub steps: u16,
    /// Index of the refused item, or the slot of the new buffer.
    pub item: u32,
}

impl Status {
    /// A status without details.
    #[must_use]
    pub const fn new(state: State) -> Self {
        Self { state, refusal: 0, steps: 0, item: 0 }
    }

    /// The word.
    #[inline]
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.state as u8)
            | u64::from(self.refusal & 0xfff) << 4
            | u64::from(self.steps) << 16
            | u64::from(self.item) << 32
    }

    /// Reads the word; `None` for a state that no server writes.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let refusal = u16::try_from(bits >> 4 & 0xfff).ok()?;
        let steps = u16::try_from(bits >> 16 & 0xffff).ok()?;
        Some(Self { state: State::from_code(bits & 0xf)?, refusal, steps, item: high(bits) })
    }
}

/// Word 0 of a record about an object.
#[inline]
pub(super) fn first(kind: Kind, object: u32) -> u64 {
    u64::from(kind.code()) | u64::from(object) << 32
}

/// Two halves in one word.
#[inline]
pub(super) fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Bits 31:0.
#[inline]
pub(super) fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(0)
}

/// Bits 63:32.
#[inline]
pub(super) fn high(word: u64) -> u32 {
    low(word >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_word() {
        let status = Status { state: State::Refused, refusal: 9, steps: 0x1234, item: 7 };
        assert_eq!(status.to_bits(), 0x0000_0007_1234_0092);
        assert_eq!(Status::from_bits(0x0000_0007_1234_0092), Some(status));
        assert_eq!(Status::new(State::UnderWay).to_bits(), 0);
        assert_eq!(Status::new(State::Quarantined).to_bits(), 4);
        assert_eq!(Status::from_bits(5), None);
    }

    #[test]
    fn every_kind_has_its_code() {
        let codes: alloc::vec::Vec<u8> = (0..=u8::MAX)
            .filter(|code| Kind::from_code(*code).is_some_and(|kind| kind.code() == *code))
            .collect();
        let expected = (1..=19).chain(32..=39).chain(64..=72);
        assert_eq!(codes, expected.collect::<alloc::vec::Vec<u8>>());
    }
}
