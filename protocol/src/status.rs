//! Refusals: the reasons why requests are denied, and the errno of each at the scheme's edge.

use core::fmt;

/// An error number as POSIX systems (Redox and Linux alike) number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $errno:literal, $words:literal;)*) => {
        /// Why a request was refused. The numbers are part of the protocol and never change meaning; 4 and 24 were
        /// never given by a server.
        ///
        /// | refusal | code | errno | words |
        /// |---|---|---|---|
        $(#[doc = concat!("| ", stringify!($name), " | ", $code, " | ", $errno, " | ", $words, " |")])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Refusal { $($(#[$doc])* $name = $code,)* }

        impl Refusal {
            /// Every refusal, in the order of the codes.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$name,)*];

            /// The refusal with this wire code; 0 (no refusal) and unknown codes give `None`.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The wire code, never 0.
            #[must_use]
            pub const fn code(self) -> u16 {
                match self { $(Self::$name => $code,)* }
            }

            /// The error number of this refusal for operations that return only an errno (open, read, mmap).
            #[must_use]
            pub const fn errno(self) -> Errno {
                match self { $(Self::$name => Errno($errno),)* }
            }

            /// The refusal in words.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

refusals! {
    /// The device has no record: it does not exist, was removed, or was not probed yet.
    NotProbed = 1, 19, "the device is not probed or is gone";
    /// The unit in front of the device is not up yet; try again.
    NotReady = 2, 11, "the unit of this device is not ready yet";
    /// Another session owns the device's group.
    NotOwner = 3, 16, "another owner holds the group of this device";
    /// The object is in use in a way that forbids the operation.
    Busy = 5, 16, "the object is in use";
    /// The range overlaps a reserved region of the device.
    Reserved = 6, 13, "the range overlaps a reserved region";
    /// The range is empty, overflows, or is not within the domain or the buffer.
    Range = 7, 34, "the range is empty, overflows or lies outside";
    /// Address, offset or length is not a multiple of the page size or of the requested alignment.
    Alignment = 8, 22, "the address or length is not aligned";
    /// A limit of this client is reached.
    Quota = 9, 122, "a quota of this client is reached";
    /// No memory that meets the constraints.
    NoMemory = 10, 12, "no memory that meets the constraints";
    /// No free I/O virtual address range that meets the constraints.
    NoSpace = 11, 28, "no free I/O virtual addresses that meet the constraints";
    /// No unit stands in front of the device and the policy demands one.
    NoUnit = 12, 6, "no unit confines this device";
    /// The unit in front of the device has failed.
    UnitFailed = 13, 5, "the unit of this device has failed";
    /// The hardware or this build cannot do it.
    Unsupported = 14, 95, "not supported by this unit";
    /// The protocol version is not spoken here.
    BadVersion = 15, 93, "unknown protocol version";
    /// The operation number is unknown, or means nothing on this handle.
    BadOperation = 16, 38, "unknown operation for this handle";
    /// The payload is shorter or longer than the operation's structure.
    BadLength = 17, 90, "the payload has the wrong length";
    /// Reserved bytes or undefined flag bits are not zero.
    BadReserved = 18, 71, "reserved bytes or flags are not zero";
    /// The slot or handle names nothing of this client.
    BadHandle = 19, 9, "no such handle or slot";
    /// The range is mapped already.
    Mapped = 20, 17, "the range is mapped already";
    /// The range is not exactly one mapping made before.
    NotMapped = 21, 2, "no such mapping";
    /// Not allowed for this user or on this handle.
    Permission = 22, 1, "not permitted";
    /// No such path.
    NotFound = 23, 2, "no such path";
    /// The access bits are empty or undefined.
    BadAccess = 25, 22, "the access bits are empty or undefined";
    /// The server's memory for buffers is used up. It may take more from the system, or a client gives some back.
    Full = 26, 12, "the memory for buffers is used up";
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl core::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_invertible() {
        assert!(Refusal::ALL.is_sorted_by(|a, b| a.code() < b.code()));
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), Some(*refusal));
            assert!(refusal.errno().0 > 0);
            assert!(!refusal.words().is_empty());
        }
        assert_eq!(Refusal::from_code(0), None);
        assert_eq!(Refusal::from_code(u16::MAX), None);
    }
}
