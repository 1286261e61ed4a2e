//! An administrator ends the sessions on a group, as when its driver hangs.

use alloc::vec::Vec;

use iommu_protocol::Refusal;

use crate::hw::{BufferMemory, Unit};
use crate::policy::{Event, GroupId, SessionId};
use crate::server::Server;
use crate::server::handles::Control;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// What opening `groups/N` for writing gives.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn group_control(&self, group: u32) -> Result<Control, Refusal> {
        let group = GroupId(group);
        let known = self.registry.groups().any(|other| other == group);
        if known { Ok(Control::Release(group)) } else { Err(Refusal::NotFound) }
    }

    /// Ends the sessions on the devices of a group as if their processes had died. Their handles stay open and name
    /// nothing. A group that nobody has is left as it is.
    pub(super) fn release(&mut self, group: GroupId) {
        // A session whose device was removed is in no group, whatever is at its address now.
        let ends = |session: &SessionId| {
            let session = self.registry.session(*session);
            session.is_some_and(|session| !session.removed && session.group == group)
        };
        let sessions: Vec<SessionId> = self.handles.sessions().filter(ends).collect();
        for session in sessions {
            log::warn!("group {}: a session is ended on an administrator's request", group.0);
            if let Some(handle) = self.handles.end_session(session) {
                self.end_claims_below(handle);
            }
            self.end_session(session);
        }
        self.finish_endings();
    }

    /// The end of a session, whose handle is closed or names nothing any more.
    pub(super) fn end_session(&mut self, session: SessionId) {
        self.run_to_the_end(Event::Close(session));
        self.faults.forget(session);
        self.recovery.session_ended();
        self.set_aside();
        self.share_out();
        self.survey.change();
    }
}
