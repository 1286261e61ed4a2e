//! Identifies a unit from its registers and its capability block, before anything is changed.

use super::capability::Capability;
use super::port::Port;
use super::spec::capability::{Features, host_levels};
use super::spec::registers;
use super::unit::{AmdUnit, RUNS};
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::{Survey, UnitError};
use crate::topology::capabilities::{LevelSet, PageSizes, UnitCapabilities};
use crate::topology::firmware::{UnitDescription, UnitKind};

/// The table describes a unit of another vendor.
pub(super) const NOT_AMD_VI: UnitError = UnitError::Unsupported { what: "not an AMD-Vi unit" };

impl<R: RegisterIo, C: Clock, M: TableMemory> AmdUnit<R, C, M> {
    /// Identifies the unit, as [`AmdUnit::bring_up`] will find it. Writes nothing and waits for nothing. The unit is
    /// assumed not to snoop, because only a write of its control register can show that.
    ///
    /// # Errors
    /// `Dead`, `Unsupported`: bring-up would fail in the same way.
    pub fn survey(
        registers: R,
        clock: C,
        description: &UnitDescription,
        capability: Option<Capability>,
    ) -> Result<Survey, UnitError> {
        let (_, features) = identify(registers, clock, description, capability)?;
        let runs = match features.contains(Features::PPR) {
            true => RUNS,
            false => RUNS.split_last().map_or(RUNS, |(_, without)| without),
        };
        Ok(Survey {
            capabilities: capabilities(supported_levels(features)?, false, capability),
            coherence_known: false,
            runs,
            frame_per_bus: false,
        })
    }
}

/// The unit's registers and extended features: at most two reads, no wait.
///
/// # Errors
/// `Dead`, `Unsupported`.
pub(super) fn identify<R: RegisterIo, C: Clock>(
    registers: R,
    clock: C,
    description: &UnitDescription,
    capability: Option<Capability>,
) -> Result<(Port<R, C>, Features), UnitError> {
    let UnitKind::AmdVi { features, .. } = description.kind else { return Err(NOT_AMD_VI) };
    check_registers(description, capability)?;
    let mut port = open(registers, clock, capability)?;
    let features = read_features(&mut port, features, capability)?;
    Ok((port, features))
}

/// The unit's registers.
///
/// # Errors
/// `Dead`; `Unsupported` if firmware states that it did not enable the registers, and they do not answer. (QEMU's
/// registers answer all the same.)
fn open<R: RegisterIo, C: Clock>(
    registers: R,
    clock: C,
    capability: Option<Capability>,
) -> Result<Port<R, C>, UnitError> {
    let enabled = capability.is_none_or(|block| block.enabled());
    Port::open(registers, clock).map_err(|error| match error {
        UnitError::Dead if !enabled => {
            UnitError::Unsupported { what: "firmware did not enable the unit's registers" }
        }
        error => error,
    })
}

/// Capabilities of the unit. Values that its capability block does not state are those of any unit with four levels.
pub(super) fn capabilities(
    levels: LevelSet,
    coherent: bool,
    capability: Option<Capability>,
) -> UnitCapabilities {
    // If unknown, absent entries count as cached: one invalidation too many does no harm.
    let caches_absent = capability.is_none_or(|block| block.caches_absent());
    UnitCapabilities {
        levels,
        page_sizes: PageSizes::all(),
        coherent,
        forces_snoop: true,
        caches_absent,
        publishes: caches_absent,
        last_tag: u16::MAX,
        pass_through: true,
        physical_bits: capability.and_then(|block| block.physical_bits()).unwrap_or(52),
        iova_bits: capability.and_then(|block| block.virtual_bits()).unwrap_or(48),
        deepens: true,
    }
}

/// Checks that firmware's table and the capability block name the same registers.
fn check_registers(
    description: &UnitDescription,
    capability: Option<Capability>,
) -> Result<(), UnitError> {
    match capability {
        Some(block) if Some(block.base()) != description.base() => Err(UnitError::Unsupported {
            what: "firmware table and unit disagree on its registers",
        }),
        _ => Ok(()),
    }
}

/// Reads the extended feature register, or returns no features if there is no such register. Without a capability
/// block, firmware's copy shows that there is one.
fn read_features<R: RegisterIo, C: Clock>(
    port: &mut Port<R, C>,
    firmware: Option<u64>,
    capability: Option<Capability>,
) -> Result<Features, UnitError> {
    let exists = capability.map_or(firmware.is_some(), |block| block.extended());
    if !exists {
        return Ok(Features::empty());
    }
    match port.read(registers::EXTENDED_FEATURES) {
        u64::MAX => Err(UnitError::Dead),
        features => Ok(Features::from_bits_retain(features)),
    }
}

pub(super) fn supported_levels(features: Features) -> Result<LevelSet, UnitError> {
    let basic = LevelSet::THREE | LevelSet::FOUR;
    match host_levels(features.bits()) {
        0 => Ok(basic),
        1 => Ok(basic | LevelSet::FIVE),
        2 => Ok(LevelSet::all()),
        _ => Err(UnitError::Unsupported { what: "the unit has no page tables for DMA" }),
    }
}
