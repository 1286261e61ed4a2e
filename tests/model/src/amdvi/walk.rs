//! Decodes entries (48882 sections 2.2.2 and 2.2.3).

use super::Amdvi;
use super::bits::{self, below, device, page};
use super::config::Config;
use crate::machine::{Bus, Use, View, Violation};
use crate::paging::{Format, Leaf, Slot, Upper, shift};

/// A decoded device table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) domain: u16,
    pub(super) read: bool,
    pub(super) write: bool,
    /// Page faults are not logged.
    pub(super) silent: bool,
    /// The exclusion range applies to the device.
    pub(super) excluded: bool,
    pub(super) target: Target,
}

/// The target of a device table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A page table.
    Table { root: u64, levels: u8 },
    /// Memory, untranslated.
    Pass,
    /// No target: reserved bits are set, or the unit lacks the mode.
    Illegal,
    /// No target: the entry cannot be read.
    Unreadable,
}

impl Device {
    pub(super) const fn nowhere(target: Target) -> Self {
        let (read, write) = (false, false);
        Self { domain: 0, read, write, silent: false, excluded: false, target }
    }

    /// Whether the entry allows any access.
    pub(super) fn opens(&self) -> bool {
        let table = matches!(self.target, Target::Table { .. }) && (self.read || self.write);
        table || self.target == Target::Pass
    }
}

/// Decodes a device table entry. Also returns a rule that the entry breaks and for which hardware has no fault.
pub(super) fn decode_device(config: &Config, words: [u64; 4]) -> (Device, Option<&'static str>) {
    let [first, second, ..] = words;
    let (read, write) = (first & device::READ != 0, first & device::WRITE != 0);
    if first & device::VALID == 0 {
        let through = Device { read: true, write: true, ..Device::nowhere(Target::Pass) };
        return (through, None);
    }
    if first & device::TRANSLATION_VALID == 0 {
        let rule = "V without TV: implementations differ";
        return (Device::nowhere(Target::Illegal), Some(rule));
    }
    let mut reserved = device::RESERVED;
    reserved[0] |= bits::ADDRESS & !below(config.host_width);
    if !config.page_requests {
        reserved[0] |= device::PPR;
    }
    let mode = u8::try_from(first >> device::MODE_SHIFT & 7).unwrap();
    let bad = words.iter().zip(reserved).any(|(word, reserved)| word & reserved != 0);
    if bad || mode > config.levels {
        return (Device::nowhere(Target::Illegal), None);
    }
    let rule = match (mode, read || write) {
        (0, false) => Some("mode 0 without permissions: implementations differ"),
        _ if second & device::NO_SNOOP != 0 => Some("tables that are not snooped"),
        _ => None,
    };
    let target = match mode {
        0 => Target::Pass,
        levels => Target::Table { root: first & bits::ADDRESS, levels },
    };
    let entry = Device {
        domain: u16::try_from(second & 0xffff).unwrap(),
        read: read || rule.is_some(),
        write: write || rule.is_some(),
        silent: second & device::SILENT != 0,
        excluded: second & device::EXCLUDED != 0,
        target,
    };
    (entry, rule)
}

impl Format for Config {
    fn decode(&self, entry: u64, level: u8) -> Slot {
        if entry & page::PRESENT == 0 {
            return Slot::Absent;
        }
        let (read, write) = (entry & page::READ != 0, entry & page::WRITE != 0);
        let address = entry & bits::ADDRESS;
        let next = u8::try_from(entry >> page::NEXT_SHIFT & 7).unwrap();
        let wide = address & !below(self.host_width) != 0;
        let size = match next {
            0 => shift(level),
            // The lowest clear bit from bit 12 on, bit n, gives 2^(n+1) bytes: more than one entry's range, less than
            // the next level's.
            7 => (address | 0xfff).trailing_ones() + 1,
            _ => {
                // Section 2.2.3: a table's level is below that of the entry that points to it.
                if next >= level || entry & page::LINK_RESERVED != 0 || wide {
                    return Slot::Reserved;
                }
                return Slot::Table(Upper { table: address, level: next, read, write });
            }
        };
        let fits = match next {
            0 => address & below(size) == 0,
            _ => size > shift(level) && size < shift(level + 1),
        };
        if !fits || entry & page::LEAF_RESERVED != 0 || wide {
            return Slot::Reserved;
        }
        let snoops = entry & page::FORCE_COHERENT != 0;
        let leaf = Leaf { physical: address & !below(size), read, write, snoops };
        Slot::Page { leaf, bits: size }
    }

    fn caches_absent(&self) -> bool {
        self.caches_absent
    }
}

impl Amdvi {
    /// Entries of the device table.
    pub(super) fn entries(&self) -> u64 {
        ((self.table & 0x1ff) + 1) * 128
    }

    /// Address of the entry of `source`; `None` beyond the end of the table.
    fn place(&self, source: u16) -> Option<u64> {
        let index = u64::from(source);
        (index < self.entries()).then(|| (self.table & bits::ADDRESS) + 32 * index)
    }

    /// Returns the entry of `source`, from the cache or from memory, and caches it whatever its content.
    pub(super) fn device(&mut self, bus: &mut Bus<'_>, source: u16) -> Device {
        if let Some(cached) = self.devices.get(&source) {
            return *cached;
        }
        let Some(address) = self.place(source) else { return Device::nowhere(Target::Illegal) };
        let Some(purpose) = bus.memory.purpose(address) else {
            return Device::nowhere(Target::Unreadable);
        };
        let unit = bus.unit;
        if !matches!(purpose, Use::Table | Use::Firmware) {
            bus.report(Violation::WalkedForeign { unit, address });
        }
        let words = [0, 8, 16, 24].map(|at| self.load_entry(bus.view(), address + at));
        let (device, rule) = decode_device(&self.config, words);
        if let Some(rule) = rule {
            let entry = [words[0], words[1]];
            bus.report(Violation::Entry { unit, source, entry, rule });
        }
        if self.config.caches_devices {
            self.devices.insert(source, device);
        }
        device
    }

    /// Reads a word of the device table. The control register decides whether such reads snoop.
    fn load_entry(&self, view: View<'_>, address: u64) -> u64 {
        match self.control & bits::control::COHERENT {
            0 => view.memory.memory_load(address),
            _ => view.memory.walk_load(view.unit, address),
        }
    }

    /// Reads the entry of `source` from the table alone. Changes nothing.
    pub(super) fn look(&self, view: View<'_>, source: u16) -> Option<Device> {
        let address = self.place(source).filter(|at| view.memory.exists(*at))?;
        let words = [0, 8, 16, 24].map(|at| self.load_entry(view, address + at));
        Some(decode_device(&self.config, words).0)
    }

    /// Returns the requesters whose first word in the table may allow an access. Nearly all entries deny, so this
    /// check keeps a scan of all entries cheap.
    pub(super) fn candidates(&self, view: View<'_>) -> Vec<u16> {
        let mut out = Vec::new();
        let base = self.table & bits::ADDRESS;
        for (bus, frame) in (0..).zip((base..base + 32 * self.entries()).step_by(4096)) {
            let snooped = self.control & bits::control::COHERENT != 0;
            let words = match snooped {
                true => view.memory.walk_frame(view.unit, frame),
                false => view.memory.unsnooped_frame(frame),
            };
            let Some(words) = words else { continue };
            for (index, entry) in (0..).zip(words.chunks(4)) {
                if !denies(entry[0]) {
                    out.push(128 * bus + index);
                }
            }
        }
        out
    }
}

/// Whether the first word of an entry alone denies every access.
fn denies(word: u64) -> bool {
    let valid = device::VALID | device::TRANSLATION_VALID;
    word & valid == valid
        && word & (device::READ | device::WRITE) == 0
        && word >> device::MODE_SHIFT & 7 != 0
}
