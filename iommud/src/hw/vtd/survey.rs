//! Identifies a unit from its registers, before anything is changed.

use super::port::Port;
use super::spec::capability::{Capability, ExtendedCapability};
use super::spec::register::{
    CAPABILITY, EXTENDED_CAPABILITY, IO_RIGHTS, ROOT_TABLE, TABLE_MODE, TRANSLATION, VERSION,
};
use crate::hw::hal::{Clock, RegisterIo};
use crate::hw::unit::UnitError;
use crate::topology::capabilities::{LevelSet, PageSizes, UnitCapabilities};

/// Runs of frames that bring-up takes: root table, queue, status word of the queue.
pub const RUNS: &[usize] = &[1, 1, 1];

/// Levels 3, 4 and 5 in SAGAW.
const USABLE_WIDTHS: u8 = 0b1110;

/// The widest physical address that tables can hold.
const MOST_HOST_BITS: u8 = 52;

/// The registers that identify a unit which this driver supports.
pub(super) struct Identity {
    pub(super) version: u32,
    pub(super) capability: Capability,
    pub(super) extended: ExtendedCapability,
    /// Translation was on.
    pub(super) translating: bool,
}

/// Reads the registers that identify a unit: five reads, no wait.
///
/// # Errors
/// `Dead`; `Unsupported` for a unit that this driver cannot drive.
pub(super) fn identify<R: RegisterIo, C: Clock>(
    port: &mut Port<R, C>,
) -> Result<Identity, UnitError> {
    let version = port.registers.read32(VERSION);
    let capability = Capability(port.registers.read64(CAPABILITY));
    let extended = ExtendedCapability(port.registers.read64(EXTENDED_CAPABILITY));
    if version == u32::MAX || capability.0 == u64::MAX || extended.0 == u64::MAX {
        return Err(UnitError::Dead);
    }
    let status = port.status()?;
    let old_root = port.registers.read64(ROOT_TABLE);
    check(capability, extended, status, old_root)?;
    let translating = status & TRANSLATION != 0;
    Ok(Identity { version, capability, extended, translating })
}

/// Refuses a unit that this driver cannot drive.
fn check(
    capability: Capability,
    extended: ExtendedCapability,
    status: u32,
    old_root: u64,
) -> Result<(), UnitError> {
    if !extended.queued_invalidation() {
        return Err(UnitError::Unsupported { what: "queued invalidation (ECAP.QI)" });
    }
    if capability.widths() & USABLE_WIDTHS == 0 {
        return Err(UnitError::Unsupported {
            what: "second-stage tables of 3 to 5 levels (SAGAW)",
        });
    }
    // Section 11.4.5: the mode of a unit that translates may change only with ESRTPS.
    let other_mode = old_root & (TABLE_MODE | IO_RIGHTS) != 0;
    if status & TRANSLATION != 0 && other_mode && !capability.enhanced_root() {
        return Err(UnitError::Unsupported { what: "taking over from scalable mode (ESRTPS)" });
    }
    Ok(())
}

/// The highest domain id that the unit holds (CAP.ND).
pub(super) fn highest_tag(capability: Capability) -> u16 {
    u16::try_from((1u32 << capability.domain_bits()) - 1).unwrap_or(u16::MAX)
}

/// Depths of page tables that the unit walks (CAP.SAGAW).
pub(super) fn levels(capability: Capability) -> LevelSet {
    let mut levels = LevelSet::empty();
    levels.set(LevelSet::THREE, capability.widths() & 1 << 1 != 0);
    levels.set(LevelSet::FOUR, capability.widths() & 1 << 2 != 0);
    levels.set(LevelSet::FIVE, capability.widths() & 1 << 3 != 0);
    levels
}

/// Limits `host_bits` to the width that tables can hold.
pub(super) fn usable_host_bits(host_bits: u8) -> u8 {
    host_bits.min(MOST_HOST_BITS)
}

/// Capabilities of a unit with these registers, on a machine with physical addresses of `host_bits` bits.
pub(super) fn capabilities(
    capability: Capability,
    extended: ExtendedCapability,
    host_bits: u8,
) -> UnitCapabilities {
    let mut page_sizes = PageSizes::SIZE_4K;
    page_sizes.set(PageSizes::SIZE_2M, capability.large_pages() & 1 != 0);
    page_sizes.set(PageSizes::SIZE_1G, capability.large_pages() & 2 != 0);
    UnitCapabilities {
        levels: levels(capability),
        page_sizes,
        coherent: extended.coherent(),
        forces_snoop: extended.snoop_control(),
        caches_absent: capability.caching_mode(),
        publishes: capability.caching_mode() || capability.write_buffer(),
        last_tag: highest_tag(capability),
        pass_through: extended.pass_through(),
        physical_bits: host_bits,
        iova_bits: capability.address_bits(),
        // Depth and root are in different words of a context entry, so one store cannot change both.
        deepens: false,
    }
}
