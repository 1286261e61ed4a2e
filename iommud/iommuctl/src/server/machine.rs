//! The machine as the server describes it: units, groups and devices.

use iommu_client::Error;
use iommu_protocol::ids::PciAddress;
use iommud::topology::pci::{Buses, FunctionKind, PciFunction};
use iommud::topology::table::FunctionTable;

use super::lines::{Lines, pair};
use super::status::Status;
use super::{Texts, all};

/// A device as `devices/ADDRESS` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What the walk found.
    pub function: PciFunction,
    /// Its group.
    pub group: u32,
    /// The unit in front of it.
    pub unit: Option<u32>,
    /// Its policy while nobody has claimed it.
    pub policy: String,
    /// Who has claimed it, in words; `None` when nobody has.
    pub owner: Option<String>,
    /// Its owner has attached it.
    pub attached: bool,
    /// Its faults are not reported.
    pub silenced: bool,
    /// What it reaches, in words.
    pub reaches: String,
    /// The domain of its owner, and the live mappings there.
    pub domain: Option<(u32, u64)>,
    /// Requester ids under which its requests may arrive, its own first.
    pub requester_ids: Vec<String>,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What `status` says.
    pub status: Status,
    /// All devices, by address.
    pub devices: Vec<Device>,
}

impl Device {
    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> PciAddress {
        self.function.address
    }

    /// Whether it is blocked because its owner ended while it was attached.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.reaches.starts_with("nothing: its owner ended")
    }

    /// Reads the text; `None` when it is not one of a device.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lines = Lines::of(text);
        let truth = |key: &str| lines.get(key) == Some("true");
        let owner = lines.get("owner").filter(|owner| *owner != "none");
        let domain = lines.parse("domain").zip(lines.parse("mappings"));
        Some(Self {
            function: function(&lines)?,
            group: lines.parse("group")?,
            unit: lines.parse("unit"),
            policy: lines.get("policy")?.to_owned(),
            owner: owner.map(str::to_owned),
            attached: truth("attached"),
            silenced: truth("silenced"),
            reaches: lines.get("reaches")?.to_owned(),
            domain,
            requester_ids: lines
                .get("requester ids")
                .map(|ids| ids.split(' ').map(str::to_owned).collect())
                .unwrap_or_default(),
        })
    }
}

fn function(lines: &Lines<'_>) -> Option<PciFunction> {
    let (vendor, device) = pair(lines.get("id")?, ":")?;
    let class = u32::from_str_radix(lines.get("class")?, 16).ok()?;
    let kind = lines.get("kind")?;
    let kind = match kind.split_once(", buses ") {
        None => FunctionKind::from_words(kind, None)?,
        Some((words, buses)) => {
            let (secondary, subordinate) = pair(buses, "-")?;
            let secondary = u8::try_from(secondary).ok()?;
            let subordinate = u8::try_from(subordinate).ok()?;
            FunctionKind::from_words(words, Some(Buses { secondary, subordinate }))?
        }
    };
    let acs = lines.get("acs").and_then(|acs| pair(acs, " of "));
    Some(PciFunction {
        address: lines.parse("device")?,
        vendor: u16::try_from(vendor).ok()?,
        device: u16::try_from(device).ok()?,
        class,
        kind,
        multifunction: lines.get("multifunction") == Some("true"),
        acs: acs.and_then(|(control, _)| u16::try_from(control).ok()),
        acs_capability: acs.and_then(|(_, held)| u16::try_from(held).ok()).unwrap_or(0),
        hot_plug: lines.get("hot-plug") == Some("true"),
    })
}

impl Machine {
    /// Reads everything: one request for each device.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    pub fn read(texts: &dyn Texts) -> Result<Self, Error> {
        let status = Status::parse(&texts.text("status")?);
        let devices = all(texts, "devices")?;
        let mut devices: Vec<Device> =
            devices.iter().filter_map(|(_, text)| Device::parse(text)).collect();
        devices.sort_by_key(Device::address);
        Ok(Self { status, devices })
    }

    /// The device at an address.
    #[must_use]
    pub fn device(&self, address: PciAddress) -> Option<&Device> {
        self.devices.iter().find(|device| device.address() == address)
    }

    /// The device whose requests may arrive from an address: the one that is there, else one behind a bridge, and of
    /// several one that is attached.
    #[must_use]
    pub fn source(&self, address: PciAddress) -> Option<&Device> {
        let id = format!("{:?}", address.requester);
        let behind = |device: &&Device| {
            device.address().segment == address.segment && device.requester_ids.contains(&id)
        };
        let attached = self.devices.iter().filter(behind).find(|device| device.attached);
        self.device(address).or(attached).or_else(|| self.devices.iter().find(behind))
    }

    /// The kind of a unit, as `status` has it.
    #[must_use]
    pub fn unit_kind(&self, unit: Option<u32>) -> Option<&str> {
        let units = || self.status.units.iter();
        let own = units().find(|known| Some(known.index) == unit);
        own.or_else(|| units().next()).map(|unit| unit.kind.as_str())
    }

    /// The functions, for questions of topology.
    #[must_use]
    pub fn table(&self) -> FunctionTable {
        let mut table = FunctionTable::default();
        for device in &self.devices {
            table.insert(device.function);
        }
        table
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const NVME: &str = "\
device: 0000--01--00.0
id: 144d:a808
class: 010802
generation: 1
group: 2
unit: 0
policy: compat
claimed: true
silenced: false
reaches: what its session maps
kind: endpoint
multifunction: false
acs: none
hot-plug: false
requester ids: 01:00.0
attached: true
owner: process 12
domain: 3
mappings: 2
";

    pub(crate) const PORT: &str = "\
device: 0000--00--1c.0
id: 8086:a110
class: 060400
generation: 1
group: 2
unit: 0
policy: compat
claimed: false
silenced: false
reaches: what policy maps
kind: root port, buses 01-02
multifunction: true
acs: 0011 of 001f
hot-plug: true
requester ids: 00:1c.0
attached: false
owner: none
domain: none
";

    #[test]
    fn devices_are_read() {
        let nvme = Device::parse(NVME).unwrap();
        assert_eq!(nvme.owner.as_deref(), Some("process 12"));
        assert_eq!((nvme.domain, nvme.attached, nvme.unit), (Some((3, 2)), true, Some(0)));
        assert_eq!(nvme.function.kind, FunctionKind::Endpoint);
        assert_eq!(nvme.function.acs, None);
        let port = Device::parse(PORT).unwrap();
        let buses = Buses { secondary: 1, subordinate: 2 };
        assert_eq!(port.function.kind, FunctionKind::RootPort(buses));
        assert_eq!((port.function.acs, port.function.acs_capability), (Some(0x11), 0x1f));
        assert_eq!((port.owner, port.domain, port.attached), (None, None, false));
        assert!(port.function.hot_plug && port.function.multifunction);
        let none = NVME.replace("unit: 0", "unit: none, NOT CONFINED");
        assert_eq!(Device::parse(&none).unwrap().unit, None);
        assert_eq!(Device::parse("device: 0000--01--00.0\n"), None);
    }
}
