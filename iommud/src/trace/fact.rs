//! Facts that the registry and the engine get without an event.

use alloc::vec::Vec;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;

use super::encode::{address, capabilities};
use super::record::{Kind, Record, first};
use super::ring::Ring;
use crate::policy::{Holds, SessionId, UnitIndex};
use crate::topology::capabilities::UnitCapabilities;
use crate::topology::tags::{HeldTags, TagRecord};

/// A fact that the registry and the engine get without an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// `Registry::set_buffer_pool`: capacity and granule in bytes.
    Pool(u64, u64),
    /// `Registry::begin_tags`: the tags, the units that may hold them, the highest tag.
    Tags(HeldTags, Vec<Holds>, u16),
    /// `Registry::found_off`.
    FoundOff(UnitIndex),
    /// `Registry::cut_off`.
    CutOff(PciAddress),
    /// `Engine::install`.
    Installed(UnitIndex, UnitCapabilities),
    /// `Registry::lose`.
    Lost(UnitIndex),
    /// A buffer of so many bytes was refused by `Registry::admit_within` or `Registry::admit_buffer`.
    NotAdmitted(SessionId, u64, Refusal),
}

impl Fact {
    /// Appends the fact to a ring.
    pub fn write(&self, ring: &mut Ring) {
        let of = |kind, object, [a, b]: [u64; 2]| -> Record {
            [first(kind, object), 0, a, b, 0, 0, 0, 0]
        };
        ring.fact(match self {
            Self::Pool(capacity, granule) => of(Kind::Pool, 0, [*capacity, *granule]),
            Self::Tags(held, units, last) => {
                let held = TagRecord { held: *held, ..TagRecord::default() }.to_bits();
                let count = u64::from(u32::try_from(units.len()).unwrap_or(u32::MAX));
                of(Kind::Tags, 0, [count | u64::from(*last) << 32, held])
            }
            Self::FoundOff(UnitIndex(unit)) => of(Kind::FoundOff, *unit, [0; 2]),
            Self::CutOff(function) => of(Kind::CutOff, 0, [address(*function), 0]),
            Self::Installed(UnitIndex(unit), found) => {
                of(Kind::Installed, *unit, capabilities(found))
            }
            Self::Lost(UnitIndex(unit)) => of(Kind::Lost, *unit, [0; 2]),
            Self::NotAdmitted(SessionId(session), length, refusal) => {
                of(Kind::NotAdmitted, *session, [*length, u64::from(refusal.code())])
            }
        });
        if let Self::Tags(_, units, _) = self {
            for units in units.chunks(8) {
                let mut words = [0; 8];
                words.iter_mut().zip(units).for_each(|(word, holds)| *word = code(*holds));
                ring.append(words);
            }
        }
    }
}

const fn code(holds: Holds) -> u64 {
    match holds {
        Holds::Nothing => 0,
        Holds::Earlier => 1,
        Holds::Anything => 2,
        Holds::Failed => 3,
    }
}

/// What a unit may hold, by its number in a record.
pub(super) const fn holds(code: u64) -> Option<Holds> {
    match code {
        0 => Some(Holds::Nothing),
        1 => Some(Holds::Earlier),
        2 => Some(Holds::Anything),
        3 => Some(Holds::Failed),
        _ => None,
    }
}
