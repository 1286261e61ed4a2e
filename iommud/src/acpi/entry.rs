//! Device entries of an IVHD (AMD IOMMU 48882 rev 3.10 section 5.2.2.1).

use super::bytes::{array, u8_at, u16_at, u32_at};

/// Bytes of an ACPI HID entry before its unique id.
const HID_FIXED_SIZE: usize = 22;

/// One device entry as it is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Offset in bytes from the start of the table.
    pub offset: usize,
    /// Its type, as in the table.
    pub kind: u8,
    /// The requester id it names; 0 where the type names none.
    pub device_id: u16,
    /// Bits that go into the device table entry.
    pub data_setting: u8,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The further fields of its type.
    pub body: EntryBody<'a>,
}

/// The fields of a device entry besides requester id and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryBody<'a> {
    /// Types 0 and 40h: padding.
    Padding,
    /// Type 1: every device behind the unit.
    All,
    /// Type 2: one device.
    Select,
    /// Type 3: the first of a range.
    RangeStart,
    /// Type 4: the last of a range.
    RangeEnd,
    /// Type 42h: one device, whose requests carry another id.
    AliasSelect {
        /// The id that requests carry.
        source_device_id: u16,
    },
    /// Type 43h: the first of a range, whose requests carry another id.
    AliasRangeStart {
        /// The id that requests carry.
        source_device_id: u16,
    },
    /// Type 46h: one device with extended settings.
    ExtendedSelect {
        /// Bit 31: ATS is not to be used.
        extended_data_setting: u32,
    },
    /// Type 47h: the first of a range with extended settings.
    ExtendedRangeStart {
        /// Bit 31: ATS is not to be used.
        extended_data_setting: u32,
    },
    /// Type 48h: an I/O APIC or HPET.
    Special {
        /// I/O APIC id or HPET number.
        handle: u8,
        /// The id that its requests carry.
        source_device_id: u16,
        /// 1 I/O APIC, 2 HPET.
        variety: u8,
    },
    /// Type F0h: a device of the ACPI name space.
    AcpiHid {
        /// Hardware id.
        hardware_id: [u8; 8],
        /// Compatible id.
        compatible_id: [u8; 8],
        /// 0 none, 1 an integer, 2 text.
        uid_format: u8,
        /// Unique id.
        uid: &'a [u8],
    },
    /// A type this specification does not have.
    Unknown,
}

/// The entries cannot be walked past this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEntry {
    /// Offset in bytes from the start of the table.
    pub offset: usize,
    /// Its type.
    pub kind: u8,
    /// Bytes left in the structure.
    pub room: usize,
}

/// Walks the device entries of an IVHD. Each step goes at least four bytes on, or is an error and the last.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    offset: usize,
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// The entries from byte `at` of a structure that starts at `offset` of the table.
    pub(super) fn new(structure: &'a [u8], offset: usize, at: usize) -> Self {
        let rest = structure.get(at..).unwrap_or_default();
        Self { offset: offset.saturating_add(at), rest }
    }

    fn take(&mut self) -> Option<Entry<'a>> {
        let (bytes, rest) = self.rest.split_at_checked(size(self.rest)?)?;
        let entry = Entry {
            offset: self.offset,
            kind: u8_at(bytes, 0)?,
            device_id: u16_at(bytes, 1)?,
            data_setting: u8_at(bytes, 3)?,
            bytes,
            body: EntryBody::of(bytes)?,
        };
        self.offset = self.offset.saturating_add(bytes.len());
        self.rest = rest;
        Some(entry)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BadEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        let kind = u8_at(self.rest, 0)?;
        Some(self.take().ok_or_else(|| {
            let room = core::mem::take(&mut self.rest).len();
            BadEntry { offset: self.offset, kind, room }
        }))
    }
}

/// Bytes of the entry at the start of `bytes`. The upper two bits of the type give the size. An entry of type F0h
/// states its own. The size of types above F0h is unknown.
fn size(bytes: &[u8]) -> Option<usize> {
    match u8_at(bytes, 0)? {
        0xf0 => Some(HID_FIXED_SIZE + usize::from(u8_at(bytes, HID_FIXED_SIZE - 1)?)),
        0xf1.. => None,
        kind => Some(4 << (kind >> 6)),
    }
}

impl<'a> EntryBody<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        Some(match u8_at(bytes, 0)? {
            0 | 0x40 => Self::Padding,
            1 => Self::All,
            2 => Self::Select,
            3 => Self::RangeStart,
            4 => Self::RangeEnd,
            0x42 => Self::AliasSelect { source_device_id: u16_at(bytes, 5)? },
            0x43 => Self::AliasRangeStart { source_device_id: u16_at(bytes, 5)? },
            0x46 => Self::ExtendedSelect { extended_data_setting: u32_at(bytes, 4)? },
            0x47 => Self::ExtendedRangeStart { extended_data_setting: u32_at(bytes, 4)? },
            0x48 => Self::Special {
                handle: u8_at(bytes, 4)?,
                source_device_id: u16_at(bytes, 5)?,
                variety: u8_at(bytes, 7)?,
            },
            0xf0 => Self::AcpiHid {
                hardware_id: array(bytes, 4)?,
                compatible_id: array(bytes, 12)?,
                uid_format: u8_at(bytes, 20)?,
                uid: bytes.get(HID_FIXED_SIZE..)?,
            },
            _ => Self::Unknown,
        })
    }
}
