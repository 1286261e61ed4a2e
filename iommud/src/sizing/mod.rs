//! Computes the memory that the server needs on a machine, before any is taken.
//!
//! Policy decides the start of the machine once without hardware: every function is added, and every unit becomes
//! ready. The steps of the plans show which page tables exist and what they map. The frames of these tables are
//! counted, not built. The base is the server's own need; the rest, for drivers, is the clients' share.
//!
//! ```text
//! base     runs of each unit (device tables, rings, logs)         hw: Survey::runs
//!          context tables, one for each bus behind a unit         steps; buses behind bridges; ids of no function
//!          domains of policy (compat, one for each format)        steps, `tables`
//!          domains for regions that firmware reserves             one for each function that has some
//!          splits of large leaves around the server's own memory  one table of each level for each piece
//! clients  a domain for each function, and tables for all buffers
//! ```

mod domains;
mod facts;
mod tables;

#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::addr::PhysRange;
use crate::hw::{amdvi, vtd};
use crate::topology::firmware::{UnitDescription, UnitKind};

use domains::{Domain, Forecast};
pub use facts::Facts;
use tables::frames;

/// Frames in a page of 2 MiB. Memory for tables is taken in such pages.
pub const PAGE_FRAMES: u64 = 512;

/// Bytes of a frame.
const FRAME: u64 = 4096;

/// Bytes of a page of 2 MiB.
const PAGE: u64 = PAGE_FRAMES * FRAME;

/// Context tables for requester ids of no known function: policy silences at most this many.
const STRANGERS: u64 = 64;

/// Frames for clients on the smallest machine: 2 MiB.
const LEAST_SHARE: u64 = 512;

/// Frames for the domain of one function: its root and lower tables, and the mappings of a small driver.
const FRAMES_A_FUNCTION: u64 = 32;

/// Functions beyond this many get no share of their own.
const MOST_FUNCTIONS: u64 = 256;

/// Pages of buffers for which one frame of tables is taken. A full table maps 512 pages.
const PAGES_A_FRAME: u64 = 16;

/// Bounds of the memory for buffers, and the part of the machine's memory in between.
const LEAST_BUFFERS: u64 = 8 << 20;
const MOST_BUFFERS: u64 = 64 << 20;
const PART_FOR_BUFFERS: u64 = 64;

/// Memory for buffers comes in multiples of this many bytes: the chunks that Redox gives.
const BUFFER_CHUNK: u64 = 4 << 20;

/// The memory that the server needs on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Aligned runs of more than one frame that units take, in frames, in the order of the units.
    pub runs: Vec<usize>,
    /// Frames of tables that the server needs for itself, `runs` included.
    pub base_frames: u64,
    /// Frames of tables for clients.
    pub client_frames: u64,
    /// Bytes of buffers for clients. The server itself needs none.
    pub buffer_bytes: u64,
    /// For each unit, its own frames and those of the domains of policy behind it. Units share domains, so the sum
    /// may be more than `base_frames`.
    pub units: Vec<u64>,
}

impl Need {
    /// Bytes of tables to take, a multiple of 2 MiB.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        let all = self.base_frames.saturating_add(self.client_frames);
        all.div_ceil(PAGE_FRAMES).saturating_mul(PAGE).max(self.least_table_bytes())
    }

    /// Bytes of tables with which every unit comes up, a multiple of 2 MiB.
    #[must_use]
    pub fn least_table_bytes(&self) -> u64 {
        // Short runs may not fit behind each other at the end of a page: single frames fill the gap later.
        let gaps = u64::from(!self.runs.is_empty());
        (self.base_frames.div_ceil(PAGE_FRAMES).max(1) + gaps).saturating_mul(PAGE)
    }
}

/// Computes the memory that the server needs on this machine. Nothing is read or changed.
#[must_use]
pub fn memory_need(facts: &Facts<'_>) -> Need {
    let forecast = Forecast::of(facts);
    let buffer_bytes = buffer_bytes(facts.ram);
    if facts.firmware.units.is_empty() {
        return Need { buffer_bytes, ..Need::default() };
    }
    let runs = |index: usize| runs_of(facts, index);
    let of_unit = |index: usize| {
        let frames: u64 = runs(index).iter().map(|run| frames(*run)).sum();
        frames + forecast.buses_of(index)
    };
    let units = 0..facts.firmware.units.len();
    let per_bus = facts.surveys.iter().flatten().any(|survey| survey.frame_per_bus);
    let fixed = units.clone().map(of_unit).sum::<u64>()
        + forecast.domains.iter().map(Domain::frames).sum::<u64>() * copies(facts)
        + forecast.reserved_frames
        + if per_bus { STRANGERS } else { 0 };
    let mut need = Need {
        runs: units.clone().flat_map(runs).copied().filter(|run| *run > 1).collect(),
        base_frames: fixed,
        client_frames: client_frames(facts, buffer_bytes),
        buffer_bytes,
        units: units.map(|index| of_unit(index) + forecast.domains_behind(index)).collect(),
    };
    // The more memory is taken, the more leaves of the domains of policy it may split.
    for _ in 0..16 {
        let pieces = (need.table_bytes() + need.buffer_bytes) / PAGE + frames(facts.left.len());
        let splits = forecast.domains.iter().map(|domain| domain.splits(pieces, facts.left));
        need.base_frames = fixed + splits.sum::<u64>() * copies(facts);
    }
    need
}

/// The runs of a unit. A unit that does not answer may come back later, so its runs are counted too.
fn runs_of<'a>(facts: &Facts<'a>, index: usize) -> &'a [usize] {
    let silent = |unit: &UnitDescription| match (unit.registers, unit.kind) {
        (Err(_), _) => &[][..],
        (Ok(_), UnitKind::Vtd) => vtd::RUNS,
        (Ok(_), UnitKind::AmdVi { .. }) => amdvi::RUNS,
    };
    match facts.surveys.get(index) {
        Some(Some(survey)) => survey.runs,
        _ => facts.firmware.units.get(index).map_or(&[], silent),
    }
}

/// Number of domains of policy that may exist in place of one. Units that turn out to snoop do not share the domains
/// of others.
fn copies(facts: &Facts<'_>) -> u64 {
    let unknown = facts.surveys.iter().flatten().filter(|survey| !survey.coherence_known).count();
    if unknown > 1 { 2 } else { 1 }
}

/// Frames for clients, by the functions that may be driven and by the buffers that may be mapped.
fn client_frames(facts: &Facts<'_>, buffer_bytes: u64) -> u64 {
    let driven = facts.functions.iter().filter(|function| function.kind.buses().is_none()).count();
    let functions = frames(driven).min(MOST_FUNCTIONS);
    LEAST_SHARE + functions * FRAMES_A_FUNCTION + buffer_bytes / FRAME / PAGES_A_FRAME
}

/// A fraction of the machine's memory, within bounds.
fn buffer_bytes(ram: &[PhysRange]) -> u64 {
    let total = ram.iter().fold(0_u64, |all, range| all.saturating_add(range.length()));
    let part = total / PART_FOR_BUFFERS / BUFFER_CHUNK * BUFFER_CHUNK;
    part.clamp(LEAST_BUFFERS, MOST_BUFFERS)
}
