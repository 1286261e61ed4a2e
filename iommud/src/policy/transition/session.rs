//! Attach and detach.
//!
//! ```text
//! attach   block every member that policy lets through, invalidate; then open the attached member's entries
//! detach   block, invalidate; after the last member: open the entries that policy allows
//! ```

use iommu_protocol::status::Refusal;

use crate::policy::decision::Decision;
use crate::policy::ids::SessionId;
use crate::policy::state::objects::Activity;
use crate::policy::transition::entries;
use crate::topology::table::FunctionIndex;

pub(super) fn attach(decision: &mut Decision<'_>, id: SessionId) -> Result<(), Refusal> {
    let (index, attached) = movable(decision, id)?;
    if attached {
        return Ok(());
    }
    let group = decision.state.usable(id)?.group;
    decision.set_activity(index, Activity::Attached);
    entries::rebind_groups(decision, &[group])
}

pub(super) fn detach(decision: &mut Decision<'_>, id: SessionId) -> Result<(), Refusal> {
    let (index, attached) = movable(decision, id)?;
    if !attached {
        return Ok(());
    }
    let group = decision.state.session(id)?.group;
    decision.set_activity(index, Activity::Quiet);
    entries::rebind_groups(decision, &[group])
}

/// The function of a session, and whether it is attached.
fn movable(decision: &Decision<'_>, id: SessionId) -> Result<(FunctionIndex, bool), Refusal> {
    let index = decision.state.session(id)?.function.ok_or(Refusal::NotProbed)?;
    let function = decision.state.machine.function(index);
    Ok((index, function.is_some_and(|function| function.activity == Activity::Attached)))
}
