//! What ends of life need, and what they left to be done because there was no memory (I9).
//!
//! ```text
//! claim: the domains of policy that its end will need are made
//! end --(memory)--> under policy, memory given back
//!   +--(none)-----> blocked, memory kept: owed --Settle--> under policy, memory given back
//! ```

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::draft::{Draft, Effect};
use crate::policy::event::Owed;
use crate::policy::ids::{BufferId, GroupId};
use crate::policy::registry::Registry;

impl Registry {
    /// What is owed, in a fixed order.
    pub fn owed(&self) -> impl Iterator<Item = Owed> + '_ {
        self.owed.iter().copied()
    }

    /// Whether anything is owed.
    #[must_use]
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Makes the domains of policy that the end of a group's sessions will need: then there may be no memory for them.
    pub(super) fn prepare_end(&self, draft: &mut Draft, group: GroupId) -> Result<(), Refusal> {
        let mut keys = Vec::new();
        self.machine.keys(group, &mut keys);
        for key in keys {
            let Some(shared) = self.machine.target_when_cut(key) else { continue };
            let made = draft.shared.iter().any(|(made, _)| *made == shared);
            if !made && !self.machine.shared.contains_key(&shared) {
                self.make_shared(draft, &self.machine, shared)?;
            }
        }
        let made = draft.shared.drain(..).map(|(shared, id)| Effect::Shared(shared, id));
        draft.effects.extend(made);
        Ok(())
    }

    pub(super) fn settle_owed(&mut self, draft: &mut Draft, owed: Owed) -> Result<(), Refusal> {
        if !self.owed.contains(&owed) {
            return Ok(());
        }
        match owed {
            Owed::Entry(unit, source) => {
                let user = self.machine.sources.get((unit, source)).and_then(|s| s.users.first());
                let user = user.and_then(|user| self.machine.function(*user));
                if let Some(group) = user.map(|user| user.group) {
                    self.rebind_groups(draft, &[group])?;
                }
            }
            Owed::Buffer(id) => self.settle_buffer(draft, id)?,
        }
        draft.effects.push(Effect::Owe(owed, false));
        Ok(())
    }

    fn settle_buffer(&self, draft: &mut Draft, id: BufferId) -> Result<(), Refusal> {
        match self.buffers.get(id.0) {
            Some(buffer) if !buffer.unproved => self.free_memory(draft, id, buffer),
            _ => Ok(()),
        }
    }
}
