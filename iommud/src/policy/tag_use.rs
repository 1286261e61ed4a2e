//! Which tags plans take, and what is to be known of them by the next server.

use alloc::vec::Vec;

use crate::policy::draft::Draft;
use crate::policy::ids::UnitIndex;
use crate::policy::plan::Plan;
use crate::policy::registry::Registry;
use crate::policy::state::tags::{Holds, Tags};
use crate::policy::step::{Binding, PASS_THROUGH_TAG, Step};
use crate::topology::tags::{HeldTags, TagRecord, TagRing};

impl Registry {
    /// Before any event: what units may hold of servers before this one. `held` are tags, `units` is how much of
    /// them each unit has, by index, and `last` the highest tag that every unit can hold.
    pub fn begin_tags(&mut self, held: HeldTags, units: Vec<Holds>, last: u16) {
        let held = if units.contains(&Holds::Earlier) { held } else { HeldTags::Nothing };
        let ring = TagRing::new(held, last);
        self.tags = Tags::of(ring, held, units);
    }

    /// A unit whose owner left no note was found with translation off: nothing that its caches held is used again.
    pub fn found_off(&mut self, unit: UnitIndex) {
        if self.tags.holds(unit) == Holds::Anything {
            self.tags.set_holds(unit, Holds::Nothing);
        }
    }

    /// Takes note of the tags of a plan that is about to be run. [`Registry::tag_record`] tells them from now on;
    /// true when it did not before.
    pub fn take_tags_of(&mut self, plan: &Plan) -> bool {
        let Some(tag) = plan.draft.tag else { return false };
        self.tags.reach(tag)
    }

    /// What the next server is to know of the tags that units may hold.
    #[must_use]
    pub fn tag_record(&self) -> TagRecord {
        self.tags.record()
    }

    /// Whether an entry with this binding may be written only when the unit was flushed.
    pub(super) fn opens_late(&self, draft: &Draft, unit: UnitIndex, binding: Binding) -> bool {
        let tag = match binding {
            _ if self.tags.holds(unit) == Holds::Nothing => return false,
            Binding::Blocked => return false,
            Binding::PassThrough => Some(PASS_THROUGH_TAG),
            Binding::Domain(domain) => {
                let made = draft.steps.iter().find_map(|step| match step {
                    Step::CreateTable { domain: made, tag, .. } if *made == domain => Some(*tag),
                    _ => None,
                });
                made.or_else(|| self.domains.get(domain.0).map(|domain| domain.tag))
            }
        };
        tag.is_none_or(|tag| self.tags.is_stale(unit, tag))
    }
}
