//! Ends of life: the domains that they need, and the work that they owe because there was no memory (I9).
//!
//! ```text
//! claim: creates the domains of policy that its end will need
//! end --(memory)--> under policy, memory given back
//!   +--(none)-----> blocked, memory kept: owed --Settle--> under policy, memory given back
//! ```

use alloc::vec::Vec;

use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::event::Owed;
use crate::policy::ids::GroupId;
use crate::policy::state::objects::Buffer;
use crate::policy::transition::{domain, entries, release};

/// Creates the domains of policy that the end of a group's sessions will need. Then there may be no memory for them.
pub(super) fn prepare_end(decision: &mut Decision<'_>, group: GroupId) -> Result<(), Refusal> {
    let mut keys = Vec::new();
    decision.state.machine.keys(group, &mut keys);
    for key in keys {
        if let Some(shared) = decision.state.machine.target_when_unquiesced(key)
            && !decision.state.machine.shared.contains_key(&shared)
        {
            domain::make_shared(decision, shared)?;
        }
    }
    Ok(())
}

pub(super) fn settle(decision: &mut Decision<'_>, owed: Owed) -> Result<(), Refusal> {
    if !decision.state.owed.contains(&owed) {
        return Ok(());
    }
    match owed {
        Owed::Entry(unit, source) => {
            let machine = &decision.state.machine;
            let user = machine.sources.get((unit, source)).and_then(|source| source.users.first());
            let user = user.and_then(|user| machine.function(*user));
            if let Some(group) = user.map(|user| user.group) {
                entries::rebind_groups(decision, &[group])?;
            }
        }
        Owed::Buffer(id) if decision.state.buffer(id).is_ok_and(Buffer::is_unused) => {
            release::free(decision, id)?;
        }
        Owed::Buffer(_) => {}
        Owed::Regions(id) => domain::settle_regions(decision, id)?,
    }
    decision.owe(owed, false);
    Ok(())
}
