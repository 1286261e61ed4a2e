//! The text of `domains/N`.

use std::collections::BTreeSet;

use iommu_protocol::ids::PciAddress;
use serde_json::{Value, json};

use super::lines::{Lines, range};
use crate::names;

/// A device that has its owner's domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The device.
    pub address: PciAddress,
    /// `attached`, `not attached` or `gone`.
    pub state: String,
}

/// A buffer of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The device whose session has it.
    pub device: PciAddress,
    /// Its slot in that session.
    pub slot: u32,
    /// Its length in bytes.
    pub bytes: u64,
    /// First and last address of the range in which its pages are granted.
    pub grants: Option<(u64, u64)>,
}

/// A mapping of a part of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The device whose session has the buffer.
    pub device: PciAddress,
    /// The buffer's slot in that session.
    pub slot: u32,
    /// First I/O virtual address.
    pub first: u64,
    /// Last I/O virtual address (inclusive).
    pub last: u64,
    /// First byte in the buffer; `None` when the pages lie anywhere in it.
    pub offset: Option<u64>,
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

/// A range that no mapping may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// First address.
    pub first: u64,
    /// Last address (inclusive).
    pub last: u64,
    /// Why.
    pub words: String,
}

/// A range that was mapped until a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// First address.
    pub first: u64,
    /// Last address (inclusive).
    pub last: u64,
    /// Milliseconds since it was unmapped.
    pub age: u64,
}

/// One owner's domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number.
    pub index: u32,
    /// The owner, in words.
    pub owner: String,
    /// The devices.
    pub devices: Vec<Member>,
    /// First and last address that mappings may use.
    pub addresses: (u64, u64),
    /// Sizes of pages, in words.
    pub page_sizes: String,
    /// How many mappings there are, those that are not listed included.
    pub count: u64,
    /// Ranges that mappings may not use, by address.
    pub reserved: Vec<Reserved>,
    /// The buffers that are listed, by device and slot.
    pub buffers: Vec<Buffer>,
    /// The mappings that are listed, by address.
    pub mappings: Vec<Mapping>,
    /// Ranges that were unmapped last, the last one first.
    pub unmapped: Vec<Unmapped>,
    /// The text did not list everything.
    pub cut: bool,
}

impl Mapping {
    /// Whether an address is in it.
    #[must_use]
    pub const fn contains(&self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }

    /// Bytes of it.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// What the device may do.
    #[must_use]
    pub const fn access(&self) -> &'static str {
        match (self.read, self.write) {
            (true, true) => "read and write",
            (true, false) => "read only",
            (false, true) => "write only",
            (false, false) => "no access",
        }
    }
}

impl Domain {
    /// Reads the text; `None` when it is not one of a domain.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lines = Lines::of(text);
        let mut reserved: Vec<Reserved> =
            lines.all("reserved").filter_map(parse_reserved).collect();
        reserved.sort_by_key(|range| range.first);
        let mut buffers: Vec<Buffer> = lines.all("buffer").filter_map(parse_buffer).collect();
        buffers.sort_by_key(|buffer| (buffer.device, buffer.slot));
        let mut mappings: Vec<Mapping> = lines.all("mapping").filter_map(parse_mapping).collect();
        mappings.sort_by_key(|mapping| mapping.first);
        Some(Self {
            index: lines.parse("domain")?,
            owner: lines.get("owner")?.to_owned(),
            devices: lines.all("device").filter_map(parse_member).collect(),
            addresses: range(lines.get("addresses")?)?,
            page_sizes: lines.get("page sizes")?.to_owned(),
            count: lines.parse("mappings")?,
            reserved,
            buffers,
            mappings,
            unmapped: lines.all("unmapped").filter_map(parse_unmapped).collect(),
            cut: ["not listed", "reserved regions not listed"]
                .iter()
                .any(|key| lines.get(key).is_some()),
        })
    }

    /// The buffers that are listed without any mapping.
    pub fn unmapped(&self) -> impl Iterator<Item = &Buffer> {
        let key = |mapping: &Mapping| (mapping.device, mapping.slot);
        let mapped: BTreeSet<(PciAddress, u32)> = self.mappings.iter().map(key).collect();
        self.buffers.iter().filter(move |of| !mapped.contains(&(of.device, of.slot)))
    }

    /// Bytes of addresses that are neither reserved nor of a listed mapping.
    #[must_use]
    pub fn free(&self) -> u64 {
        let (first, last) = self.addresses;
        let reserved = self.reserved.iter().map(|range| (range.first, range.last));
        let used = self.mappings.iter().map(|mapping| (mapping.first, mapping.last));
        let mut taken: Vec<(u64, u64)> = reserved.chain(used).collect();
        taken.sort_unstable();
        let mut free = (last - first).saturating_add(1);
        let mut next = first;
        for (from, to) in taken {
            let (from, to) = (from.max(next), to.min(last));
            if from <= to {
                free = free.saturating_sub((to - from).saturating_add(1));
                next = to.saturating_add(1);
            }
        }
        free
    }

    /// The domain as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let devices = self.devices.iter().map(
            |member| json!({ "address": names::address(member.address), "state": member.state }),
        );
        let reserved = self
            .reserved
            .iter()
            .map(|range| json!({ "first": range.first, "last": range.last, "why": range.words }));
        json!({
            "domain": self.index,
            "owner": self.owner,
            "devices": devices.collect::<Vec<_>>(),
            "first": self.addresses.0,
            "last": self.addresses.1,
            "page_sizes": self.page_sizes,
            "mapping_count": self.count,
            "free_bytes": self.free(),
            "reserved": reserved.collect::<Vec<_>>(),
            "buffers": self.buffers.iter().map(buffer_json).collect::<Vec<_>>(),
            "mappings": self.mappings.iter().map(mapping_json).collect::<Vec<_>>(),
            "unmapped": self.unmapped.iter().map(unmapped_json).collect::<Vec<_>>(),
            "all_listed": !self.cut,
        })
    }
}

fn buffer_json(buffer: &Buffer) -> Value {
    json!({
        "device": names::address(buffer.device),
        "slot": buffer.slot,
        "bytes": buffer.bytes,
        "grants_first": buffer.grants.map(|(first, _)| first),
        "grants_last": buffer.grants.map(|(_, last)| last),
    })
}

fn mapping_json(mapping: &Mapping) -> Value {
    json!({
        "device": names::address(mapping.device),
        "slot": mapping.slot,
        "first": mapping.first,
        "last": mapping.last,
        "offset": mapping.offset,
        "read": mapping.read,
        "write": mapping.write,
    })
}

fn unmapped_json(range: &Unmapped) -> Value {
    json!({ "first": range.first, "last": range.last, "milliseconds_ago": range.age })
}

fn parse_member(value: &str) -> Option<Member> {
    let (address, state) = value.split_once(", ")?;
    Some(Member { address: address.parse().ok()?, state: state.to_owned() })
}

fn parse_reserved(value: &str) -> Option<Reserved> {
    let (place, words) = value.split_once(' ')?;
    let (first, last) = range(place)?;
    Some(Reserved { first, last, words: words.to_owned() })
}

/// `0000--00--04.0 3, 4096 bytes` and perhaps `, grants at 0x1000-0x1fff`
fn parse_buffer(value: &str) -> Option<Buffer> {
    let mut parts = value.split(", ");
    let (device, slot) = parts.next()?.split_once(' ')?;
    let bytes = parts.next()?.strip_suffix(" bytes")?.parse().ok()?;
    let grants = parts.next().and_then(|part| range(part.strip_prefix("grants at ")?));
    Some(Buffer { device: device.parse().ok()?, slot: slot.parse().ok()?, bytes, grants })
}

/// `0x1000-0x1fff, 3 ms ago`
fn parse_unmapped(value: &str) -> Option<Unmapped> {
    let (place, age) = value.split_once(", ")?;
    let (first, last) = range(place)?;
    Some(Unmapped { first, last, age: age.strip_suffix(" ms ago")?.parse().ok()? })
}

/// `0000--00--04.0 3 at 0x1000-0x1fff, from byte 0, read and write`
fn parse_mapping(value: &str) -> Option<Mapping> {
    let mut parts = value.split(", ");
    let (name, place) = parts.next()?.split_once(" at ")?;
    let (device, slot) = name.split_once(' ')?;
    let (first, last) = range(place)?;
    let offset = parts.next()?.strip_prefix("from byte ").map(str::parse).transpose().ok()?;
    let access = parts.next()?;
    Some(Mapping {
        device: device.parse().ok()?,
        slot: slot.parse().ok()?,
        first,
        last,
        offset,
        read: access.starts_with("read"),
        write: access.ends_with("write"),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "\
domain: 3
tag: 5
owner: process 12
device: 0000--01--00.0, attached
addresses: 0x1000-0xffffffff
page sizes: 4 KiB, 2 MiB
mappings: 2
reserved: 0xfee00000-0xfeefffff interrupts
buffer: 0000--01--00.0 1, 65536 bytes
mapping: 0000--01--00.0 1 at 0x200000-0x20ffff, scattered, read and write
buffer: 0000--01--00.0 0, 4096 bytes
mapping: 0000--01--00.0 0 at 0x10000-0x10fff, from byte 0, read
buffer: 0000--01--00.0 2, 8192 bytes, grants at 0x300000-0x301fff
unmapped: 0x20000-0x20fff, 3 ms ago
unmapped: 0x20000-0x2ffff, 70 ms ago
";

    #[test]
    fn a_domain_is_read_in_order() {
        let domain = Domain::parse(TEXT).unwrap();
        let device = PciAddress::new(0, 1, 0, 0).unwrap();
        let buffer = |slot, bytes, grants| Buffer { device, slot, bytes, grants };
        let grants = Some((0x30_0000, 0x30_1fff));
        assert_eq!(
            domain.buffers,
            [buffer(0, 4096, None), buffer(1, 65536, None), buffer(2, 8192, grants)]
        );
        let first = Mapping {
            device,
            slot: 0,
            first: 0x1_0000,
            last: 0x1_0fff,
            offset: Some(0),
            read: true,
            write: false,
        };
        assert_eq!(domain.mappings[0], first);
        assert_eq!(
            (domain.mappings[1].offset, domain.mappings[1].access()),
            (None, "read and write")
        );
        assert_eq!((domain.addresses, domain.count), ((0x1000, 0xffff_ffff), 2));
        let unmapped = |last, age| Unmapped { first: 0x2_0000, last, age };
        assert_eq!(domain.unmapped, [unmapped(0x2_0fff, 3), unmapped(0x2_ffff, 70)]);
        assert_eq!(domain.devices, [Member { address: device, state: "attached".to_owned() }]);
        assert!(!domain.cut);
        assert_eq!(Domain::parse("domain: 3\n"), None);
        let cut = format!("{TEXT}not listed: buffers\n");
        assert!(Domain::parse(&cut).unwrap().cut);
    }

    #[test]
    fn lines_that_make_no_sense_are_left_out() {
        for line in [
            "reserved: 0x2000-0x1000 firmware",
            "mapping: 0000--01--00.0 1 at 0x2000-0x1000, from byte 0, read",
            "mapping: 0000--01--00.0 1 at 0x1000-0x1fff, from byte -1, read",
            "mapping: 0000--01--00.0 1 at 0x1000-0x1fff",
            "buffer: 0000--01--00.0, 4096 bytes",
            "unmapped: 0x1000-0x1fff, 3 s ago",
            "unmapped: 0x1000-0x1fff",
        ] {
            let domain = Domain::parse(&format!("{TEXT}{line}\n")).unwrap();
            assert_eq!(domain, Domain::parse(TEXT).unwrap(), "{line}");
        }
        assert_eq!(Domain::parse(&TEXT.replace("0x1000-0xffffffff", "2-1")), None);
    }

    #[test]
    fn free_space_is_what_nothing_else_has() {
        let mut domain = Domain::parse(TEXT).unwrap();
        let all = 0x1_0000_0000 - 0x1000;
        assert_eq!(domain.free(), all - 0x10_0000 - 0x1_0000 - 0x1000);
        // Overlapping ranges count once, and what is outside not at all.
        let words = "firmware".to_owned();
        domain.reserved.push(Reserved { first: 0, last: 0x1_0fff, words });
        assert_eq!(domain.free(), all - 0x10_0000 - 0x1_0000 - 0x1_0000);
        domain.addresses = (0, u64::MAX);
        (domain.reserved[0].first, domain.reserved[0].last) = (0, u64::MAX);
        assert_eq!(domain.free(), 0);
    }
}
