//! The paths of the scheme. [`Path::parse`] and `Display` are inverses of each other.

use core::fmt;

use crate::ids::{PciAddress, Slot};

/// A path below `/scheme/iommu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The scheme's root directory.
    Root,
    /// `status`: firmware tables, units, policy, as text.
    Status,
    /// `units`, a directory.
    Units,
    /// `units/N`: one unit, in firmware order. When opened for writing, it takes the word `reset`: the server then
    /// brings a failed unit up again at once (administrators only).
    Unit(u32),
    /// `groups`, a directory.
    Groups,
    /// `groups/N`: one isolation group.
    Group(u32),
    /// `devices`, a directory.
    Devices,
    /// `devices/SSSS--BB--DD.F`: text when read, a session when opened for writing.
    Device(PciAddress),
    /// `domains`, a directory: the domains of owners. Those of policy are not listed.
    Domains,
    /// `domains/N`: what one owner's devices reach.
    Domain(u32),
    /// `faults`: every fault, newest last.
    Faults,
    /// `metrics`: one `name value` a line.
    Metrics,
    /// `activity`: counts of the server, its units and devices, for rates.
    Activity,
    /// `rescan`: any write to it makes the server walk configuration space again (administrators only). The text is
    /// the result of the last walk.
    Rescan,
}

/// The names in the root directory.
pub const NAMES: [&str; 9] =
    ["status", "units", "groups", "devices", "domains", "faults", "metrics", "activity", "rescan"];

/// The word that is written to `units/N`; a line feed may follow.
pub const RESET: &[u8] = b"reset";

/// The word that is written to `groups/N` (administrators only); a line feed may follow. The sessions on the group's
/// devices end as if their processes had died.
pub const RELEASE: &[u8] = b"release";

/// On Redox, a client that waits for a device's unit appends this to the device's path. Behind it is the longest wait
/// in milliseconds, in decimal. A call on the handle returns the outcome.
pub const WAIT: &str = "?wait=";

/// A path relative to a session's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPath {
    /// `buffers/N`: the buffer in slot N of this session, for mapping into the process.
    Buffer(Slot),
    /// `devices/SSSS--BB--DD.F`: a session on another member of the same group, under the same owner.
    Member(PciAddress),
}

impl Path {
    /// The path that `text` names, without a leading or trailing slash; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('/') {
            None => Self::parse_top(text),
            Some(("units", rest)) => Some(Self::Unit(parse_number(rest)?)),
            Some(("groups", rest)) => Some(Self::Group(parse_number(rest)?)),
            Some(("devices", rest)) => Some(Self::Device(rest.parse().ok()?)),
            Some(("domains", rest)) => Some(Self::Domain(parse_number(rest)?)),
            Some(_) => None,
        }
    }

    fn parse_top(text: &str) -> Option<Self> {
        Some(match text {
            "" => Self::Root,
            "status" => Self::Status,
            "units" => Self::Units,
            "groups" => Self::Groups,
            "devices" => Self::Devices,
            "domains" => Self::Domains,
            "faults" => Self::Faults,
            "metrics" => Self::Metrics,
            "activity" => Self::Activity,
            "rescan" => Self::Rescan,
            _ => return None,
        })
    }

    /// Whether the path names a directory.
    #[must_use]
    pub const fn is_directory(self) -> bool {
        matches!(self, Self::Root | Self::Units | Self::Groups | Self::Devices | Self::Domains)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Status => f.write_str("status"),
            Self::Units => f.write_str("units"),
            Self::Unit(index) => write!(f, "units/{index}"),
            Self::Groups => f.write_str("groups"),
            Self::Group(index) => write!(f, "groups/{index}"),
            Self::Devices => f.write_str("devices"),
            Self::Device(address) => write!(f, "devices/{address}"),
            Self::Domains => f.write_str("domains"),
            Self::Domain(index) => write!(f, "domains/{index}"),
            Self::Faults => f.write_str("faults"),
            Self::Metrics => f.write_str("metrics"),
            Self::Activity => f.write_str("activity"),
            Self::Rescan => f.write_str("rescan"),
        }
    }
}

impl SessionPath {
    /// The path that `text` names relative to a session; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('/')? {
            ("buffers", rest) => Some(Self::Buffer(Slot(parse_number(rest)?))),
            ("devices", rest) => Some(Self::Member(rest.parse().ok()?)),
            _ => None,
        }
    }
}

impl fmt::Display for SessionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffer(Slot(slot)) => write!(f, "buffers/{slot}"),
            Self::Member(address) => write!(f, "devices/{address}"),
        }
    }
}

/// A decimal number as `Display` writes it: no sign, no leading zero.
fn parse_number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn each_path_reads_as_documented() {
        let address = PciAddress::new(0, 0, 4, 0).unwrap();
        let table = [
            (Path::Root, ""),
            (Path::Status, "status"),
            (Path::Unit(0), "units/0"),
            (Path::Group(17), "groups/17"),
            (Path::Domains, "domains"),
            (Path::Domain(3), "domains/3"),
            (Path::Device(address), "devices/0000--00--04.0"),
            (Path::Faults, "faults"),
            (Path::Metrics, "metrics"),
            (Path::Activity, "activity"),
            (Path::Rescan, "rescan"),
        ];
        for (path, text) in table {
            assert_eq!(path.to_string(), text);
            assert_eq!(Path::parse(text), Some(path));
        }
        for name in NAMES {
            assert_eq!(Path::parse(name).map(|path| path.to_string()).as_deref(), Some(name));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["/", "status/", "/status", "units/", "units/01", "units/+1", "units/4294967296"]
        {
            assert_eq!(Path::parse(bad), None, "{bad}");
        }
        for bad in ["", "buffers", "buffers/-1", "buffers/0/1", "devices/x", "status"] {
            assert_eq!(SessionPath::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_is_written_back_unchanged(text in "(units|groups|devices|domains|buffers|status)?/?[0-9a-f./-]{0,16}") {
            if let Some(path) = Path::parse(&text) {
                prop_assert_eq!(path.to_string(), text.clone());
            }
            if let Some(path) = SessionPath::parse(&text) {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
