//! Fault records out of the lines of `faults`.

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::PciAddress;
use serde_json::{Value, json};

use super::lines::hexadecimal;

/// One line of `faults`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counts all faults since the server started, from 1. What the server says of faults has the number of the last.
    pub sequence: u64,
    /// The device.
    pub device: PciAddress,
    /// What it tried.
    pub access: FaultAccess,
    /// Where, where the unit said it.
    pub address: Option<u64>,
    /// The reason in words.
    pub words: String,
    /// The hardware's reason code; 0 in what the server says.
    pub reason: u64,
    /// Records of the device lost before.
    pub lost: u64,
}

impl Fault {
    /// Reads a line as `FaultRecord` writes it; `None` for anything else.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (sequence, rest) = line.trim().strip_prefix('#')?.split_once(' ')?;
        let (device, rest) = rest.split_once(' ')?;
        let (access, rest) = rest.split_once(" at ")?;
        let (place, rest) = rest.split_once(": ")?;
        let (words, rest) = rest.rsplit_once(" (reason ")?;
        let (reason, rest) = rest.split_once(')')?;
        let lost = match rest {
            "" => 0,
            _ => rest.strip_prefix(", ")?.strip_suffix(" earlier lost")?.parse().ok()?,
        };
        Some(Self {
            sequence: sequence.parse().ok()?,
            device: device.parse().ok()?,
            access: match access {
                "read" => FaultAccess::Read,
                "write" => FaultAccess::Write,
                "access" => FaultAccess::Unknown,
                _ => return None,
            },
            address: match place {
                "an unknown iova" => None,
                _ => Some(hexadecimal(place.strip_prefix("iova ")?)?),
            },
            words: words.to_owned(),
            reason: hexadecimal(reason)?,
            lost,
        })
    }

    /// The fault as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "sequence": self.sequence,
            "device": crate::names::address(self.device),
            "access": match self.access {
                FaultAccess::Read => "read",
                FaultAccess::Write => "write",
                FaultAccess::Unknown => "unknown",
            },
            "address": self.address,
            "words": self.words,
            "reason": self.reason,
            "lost": self.lost,
        })
    }
}

/// All faults of a text; lines that are none are left out.
#[must_use]
pub fn faults(text: &str) -> Vec<Fault> {
    text.lines().filter_map(Fault::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_protocol::fault::FaultRecord;

    #[test]
    fn what_the_server_writes_is_read() {
        let device = PciAddress::new(0, 3, 0, 1).unwrap();
        let words = "write: no permission (leaf)";
        let record = FaultRecord::new(7, device, Some(0x1000), FaultAccess::Write, 5, words);
        let mut expected = Fault {
            sequence: 7,
            device,
            access: FaultAccess::Write,
            address: Some(0x1000),
            words: words.to_owned(),
            reason: 5,
            lost: 0,
        };
        let line =
            "#7 0000--03--00.1 write at iova 0x1000: write: no permission (leaf) (reason 0x5)";
        assert_eq!(record.to_string(), line);
        assert_eq!(Fault::parse(line), Some(expected.clone()));
        let mut record = FaultRecord::new(8, device, None, FaultAccess::Unknown, 0, "storm");
        record.lost = 12;
        (expected.sequence, expected.access, expected.address) = (8, FaultAccess::Unknown, None);
        (expected.words, expected.reason, expected.lost) = ("storm".to_owned(), 0, 12);
        assert_eq!(Fault::parse(&record.to_string()), Some(expected));
    }

    #[test]
    fn anything_else_is_no_fault() {
        for line in [
            "",
            "#1",
            "#x 0000--03--00.1 write at iova 0x1: w (reason 0x5)",
            "#1 0000:03:00.1 write at iova 0x1: w (reason 0x5)",
            "#1 0000--03--00.1 wrote at iova 0x1: w (reason 0x5)",
            "#1 0000--03--00.1 write at iova x: w (reason 0x5)",
            "#1 0000--03--00.1 write at iova 0x1: w (reason 0x5), many lost",
        ] {
            assert_eq!(Fault::parse(line), None, "{line}");
        }
    }
}
