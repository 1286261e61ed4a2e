//! Turns typed structures into [`Firmware`]: the part that both tables share.

pub(super) mod dmar;
mod entries;
pub(super) mod ivrs;

use alloc::string::String;
use alloc::vec::Vec;

use crate::addr::{INTERRUPT_WINDOW, PhysAddr, PhysRange};
use crate::topology::firmware::{Firmware, NamedDevice, UnitDefect, UnitDescription};

use super::anomaly::{Anomaly, RegionProblem, UnitProblem};
use super::table::Table;

/// Widths of physical addresses that a table may state.
const ADDRESS_WIDTHS: core::ops::RangeInclusive<u16> = 32..=64;

/// The result so far.
#[derive(Default)]
struct Builder {
    firmware: Firmware,
    /// Offset of the structure of each unit.
    offsets: Vec<usize>,
    anomalies: Vec<Anomaly>,
}

impl Builder {
    fn new(table: &Table<'_>) -> Self {
        let mut builder = Self::default();
        if let Err(error) = table.verify() {
            builder.report(Anomaly::Table(error));
        }
        match table.available().saturating_sub(table.bytes().len()) {
            0 => {}
            count => builder.report(Anomaly::TrailingBytes { count }),
        }
        builder
    }

    fn report(&mut self, anomaly: Anomaly) {
        self.anomalies.push(anomaly);
    }

    /// Stores the width of physical addresses, or reports it if it is impossible.
    fn set_width(&mut self, bits: u16) {
        if ADDRESS_WIDTHS.contains(&bits) {
            self.firmware.host_address_width = u8::try_from(bits).ok();
        } else {
            self.report(Anomaly::AddressWidth { bits });
        }
    }

    fn push_unit(&mut self, offset: usize, unit: UnitDescription) {
        self.firmware.units.push(unit);
        self.offsets.push(offset);
    }

    fn report_unit(&mut self, unit: usize, problem: UnitProblem) {
        let offset = self.offsets.get(unit).copied().unwrap_or(0);
        self.report(Anomaly::Unit { offset, unit, problem });
    }

    /// Whether `range` lies within the width of physical addresses.
    fn within_width(&self, range: PhysRange) -> bool {
        let bits = self.firmware.host_address_width.map_or(64, u32::from);
        range.last().0.checked_shr(bits).unwrap_or(0) == 0
    }

    /// The registers of a unit: `size` bytes, a power of two, at a multiple of `alignment`.
    fn registers(&self, address: u64, size: u64, alignment: u64) -> Result<PhysRange, UnitDefect> {
        let base = PhysAddr(address);
        PhysRange::new(base, size)
            .filter(|range| address != 0 && base.is_aligned(alignment) && self.within_width(*range))
            .ok_or(UnitDefect::BadAddress { address })
    }

    /// The first unit before `index` whose registers overlap those of `index`.
    fn overlapped(&self, index: usize) -> Option<usize> {
        let range = self.firmware.units.get(index)?.registers.ok()?;
        self.firmware
            .units
            .iter()
            .take(index)
            .position(|unit| unit.registers.is_ok_and(|other| other.overlaps(range)))
    }

    /// Checks the conditions for a reserved region, and extends it to whole pages. `end` is the last byte, so a
    /// region of one byte becomes a page. `None` if the region is skipped.
    fn region(&mut self, offset: usize, start: u64, end: Option<u64>) -> Option<PhysRange> {
        match self.check_region(start, end) {
            Ok(range) => {
                let whole = range.page_aligned();
                if whole != range {
                    self.report(Anomaly::Region { offset, problem: RegionProblem::Unaligned });
                }
                Some(whole)
            }
            Err(problem) => {
                self.report(Anomaly::Region { offset, problem });
                None
            }
        }
    }

    fn check_region(&self, start: u64, end: Option<u64>) -> Result<PhysRange, RegionProblem> {
        let bounds = RegionProblem::Bounds { start, end: end.unwrap_or(u64::MAX) };
        let end = end.ok_or(bounds)?;
        let range = PhysRange::inclusive(PhysAddr(start), PhysAddr(end)).ok_or(bounds)?;
        let whole = range.page_aligned();
        if !self.within_width(whole) {
            return Err(RegionProblem::BeyondWidth);
        }
        if whole.identity().overlaps(INTERRUPT_WINDOW) {
            return Err(RegionProblem::OverInterrupts);
        }
        let over = |unit: &UnitDescription| unit.registers.is_ok_and(|own| own.overlaps(whole));
        match self.firmware.units.iter().position(over) {
            Some(unit) => Err(RegionProblem::OverRegisters { unit }),
            None => Ok(range),
        }
    }

    fn name_device(&mut self, device: NamedDevice) {
        if !self.firmware.named.contains(&device) {
            self.firmware.named.push(device);
        }
    }

    fn finish(mut self) -> (Firmware, Vec<Anomaly>) {
        if self.firmware.units.is_empty() {
            self.report(Anomaly::NoUnits);
        }
        (self.firmware, self.anomalies)
    }
}

/// Most characters of a name that are shown.
const NAME_LENGTH: usize = 64;

/// Converts bytes of a table to text, up to the first zero. A byte that cannot be printed becomes `?`.
fn printable(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let shown = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' };
    text.iter().take(NAME_LENGTH).map(shown).collect()
}
