//! The text of `activity`: counts that grow.

use std::str::FromStr;

use iommu_protocol::ids::PciAddress;

use super::lines::{Lines, pair};

/// Number of ranges of time in which a unit counts its waits.
pub const RANGES: usize = 7;

/// What `activity` says, or the difference between two readings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Handles that clients asked for.
    pub opens: u64,
    /// Calls on sessions.
    pub calls: u64,
    /// Requests that were refused.
    pub refusals: u64,
    /// Faults that were recorded.
    pub faults: u64,
    /// Those of requester ids that no function has.
    pub stray_faults: u64,
    /// Faults that units had no room for, at least.
    pub lost_faults: u64,
    /// The units, in firmware order.
    pub units: Vec<UnitActivity>,
    /// Devices that have or had a session or faults, by address.
    pub devices: Vec<DeviceActivity>,
    /// Devices that the server left out.
    pub not_listed: u64,
}

/// What a unit was given to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitActivity {
    /// Its number.
    pub index: u32,
    /// `vt-d` or `amd-vi`.
    pub kind: String,
    /// `enabled`, `parsed` or `failed`.
    pub state: String,
    /// Commands, without their waits.
    pub commands: u64,
    /// Waits.
    pub waits: u64,
    /// Waits that were not done.
    pub unanswered: u64,
    /// Waits that were done at the first look.
    pub at_once: u64,
    /// The other waits, by the time that they took.
    pub times: [u64; RANGES],
    /// The sum of these times.
    pub nanoseconds: u64,
    /// What its counters say of the IOTLB, in words; `None` where it has none.
    pub iotlb: Option<String>,
}

/// What happened on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceActivity {
    /// Its address.
    pub address: PciAddress,
    /// Vendor and device; `None` when it is gone.
    pub id: Option<(u16, u16)>,
    /// Who has claimed it, in words; `None` when nobody has.
    pub owner: Option<String>,
    /// Its faults are not reported.
    pub silenced: bool,
    /// Mappings that were made.
    pub maps: u64,
    /// Mappings that ended.
    pub unmaps: u64,
    /// Bytes of the mappings that were made.
    pub mapped: u64,
    /// Bytes of the mappings that ended.
    pub unmapped: u64,
    /// Faults that were recorded.
    pub faults: u64,
}

impl Activity {
    /// Reads the text. A line that is not understood is left out, a field of one counts as 0.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = Lines::of(text);
        let count = |key: &str| lines.parse(key).unwrap_or(0);
        Self {
            opens: count("opens"),
            calls: count("calls"),
            refusals: count("refusals"),
            faults: count("faults"),
            stray_faults: count("faults of unknown devices"),
            lost_faults: count("faults lost in hardware"),
            units: lines.all("unit").filter_map(unit).collect(),
            devices: lines.all("device").filter_map(device).collect(),
            not_listed: count("devices not listed"),
        }
    }
}

/// The fields of a line, behind its name.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn of(line: &'a str) -> (&'a str, Self) {
        let mut parts = line.split(", ");
        let name = parts.next().unwrap_or_default();
        (name, Self(parts.filter_map(|part| part.split_once(' ')).collect()))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(of, _)| *of == name).map(|(_, value)| *value)
    }

    fn count<T: FromStr + Default>(&self, name: &str) -> T {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    fn words(&self, name: &str) -> Option<String> {
        self.get(name).filter(|value| *value != "none").map(str::to_owned)
    }
}

fn unit(line: &str) -> Option<UnitActivity> {
    let (index, fields) = Fields::of(line);
    let mut times = [0; RANGES];
    let counts = fields.get("times").unwrap_or_default().split(' ');
    for (place, count) in times.iter_mut().zip(counts) {
        *place = count.parse().unwrap_or(0);
    }
    Some(UnitActivity {
        index: index.parse().ok()?,
        kind: fields.words("kind").unwrap_or_default(),
        state: fields.words("state").unwrap_or_default(),
        commands: fields.count("commands"),
        waits: fields.count("waits"),
        unanswered: fields.count("unanswered"),
        at_once: fields.count("at-once"),
        times,
        nanoseconds: fields.count("nanoseconds"),
        iotlb: fields.words("iotlb"),
    })
}

fn device(line: &str) -> Option<DeviceActivity> {
    let (address, fields) = Fields::of(line);
    let id = fields.get("id").and_then(|id| pair(id, ":"));
    let id = id.and_then(|(vendor, device)| {
        Some((u16::try_from(vendor).ok()?, u16::try_from(device).ok()?))
    });
    Some(DeviceActivity {
        address: address.parse().ok()?,
        id,
        owner: fields.words("owner"),
        silenced: fields.get("silenced") == Some("true"),
        maps: fields.count("maps"),
        unmaps: fields.count("unmaps"),
        mapped: fields.count("mapped"),
        unmapped: fields.count("unmapped"),
        faults: fields.count("faults"),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "\
opens: 9
calls: 40
refusals: 1
faults: 3
faults of unknown devices: 1
faults lost in hardware: 0
unit: 0, kind vt-d, state enabled, commands 12, waits 10, unanswered 1, at-once 4, times 1 2 0 0 0 2 0, nanoseconds 5000300, iotlb none
unit: 1, kind vt-d, state failed, commands 0, waits 0, unanswered 0, at-once 0, times 0 0 0 0 0 0 0, nanoseconds 0, iotlb none
device: 0000--00--04.0, id 8086:10d3, owner none, silenced true, maps 0, unmaps 0, mapped 0, unmapped 0, faults 2
device: 0000--01--00.0, id 144d:a808, owner process 12, silenced false, maps 20, unmaps 15, mapped 81920, unmapped 61440, faults 0
device: 0000--02--00.0, maps 1, unmaps 1, mapped 4096, unmapped 4096, faults 0
devices not listed: 2
";

    #[test]
    fn all_lines_are_read() {
        let activity = Activity::parse(TEXT);
        let counts = (activity.opens, activity.calls, activity.refusals);
        assert_eq!((counts, activity.not_listed), ((9, 40, 1), 2));
        assert_eq!((activity.faults, activity.stray_faults, activity.lost_faults), (3, 1, 0));
        let unit = UnitActivity {
            index: 0,
            kind: "vt-d".to_owned(),
            state: "enabled".to_owned(),
            commands: 12,
            waits: 10,
            unanswered: 1,
            at_once: 4,
            times: [1, 2, 0, 0, 0, 2, 0],
            nanoseconds: 5_000_300,
            iotlb: None,
        };
        assert_eq!(activity.units[0], unit);
        assert_eq!((activity.units[1].index, activity.units[1].state.as_str()), (1, "failed"));
        let nvme = DeviceActivity {
            address: PciAddress::new(0, 1, 0, 0).unwrap(),
            id: Some((0x144d, 0xa808)),
            owner: Some("process 12".to_owned()),
            silenced: false,
            maps: 20,
            unmaps: 15,
            mapped: 81920,
            unmapped: 61440,
            faults: 0,
        };
        let [nic, second, gone] = &activity.devices[..] else { panic!("{activity:?}") };
        assert_eq!(second, &nvme);
        assert_eq!((nic.silenced, nic.faults, nic.owner.as_deref()), (true, 2, None));
        assert_eq!((gone.id, gone.maps), (None, 1));
    }

    /// Nothing in a text makes it fail: what is not understood is left out, or 0.
    #[test]
    fn hostile_texts_are_read_as_far_as_they_go() {
        assert_eq!(Activity::parse(""), Activity::default());
        let odd = "opens: -1\ncalls: 18446744073709551616\nfaults\nunit: x, kind\nunit: 4294967296\n\
                   device: 0000--00--20.0, maps 1\ndevice:\ndevice: , , ,\n: 7\ndevices not listed: many\n";
        assert_eq!(Activity::parse(odd), Activity::default());
        let odd = "unit: 3, times 1 2 3 4 5 6 7 8 9, kind a b, waits 1 2, kind c\n\
                   device: 0000--00--04.0, id 12345:1, owner , maps 18446744073709551615, maps 3\n";
        let read = Activity::parse(odd);
        assert_eq!(read.units[0].times, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((read.units[0].kind.as_str(), read.units[0].waits), ("a b", 0));
        assert_eq!((read.devices[0].id, read.devices[0].maps), (None, u64::MAX));
        assert_eq!(read.devices[0].owner.as_deref(), Some(""));
    }

    /// However a text is cut and whatever a byte of it becomes, reading it ends.
    #[test]
    fn damaged_texts_are_read() {
        for at in 0..TEXT.len() {
            assert!(Activity::parse(&TEXT[..at]).devices.len() <= 3);
            for byte in [b' ', b',', b':', b'\n', b'9', b'-'] {
                let mut bytes = TEXT.as_bytes().to_vec();
                bytes[at] = byte;
                let read = Activity::parse(&String::from_utf8(bytes).unwrap());
                assert!(read.units.len() <= 2 && read.devices.len() <= 3, "{at}");
            }
        }
    }
}
