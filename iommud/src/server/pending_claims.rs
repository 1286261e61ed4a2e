//! Claims that wait for their unit. A client may request that a claim which would be refused `NotReady` is answered
//! when the unit has come up, or at a deadline. Nothing suspends: such a claim is an entry in a queue. Each try is an
//! event of its own, between two others, in the order of the claims.
//!
//! ```text
//! claim --> (not NotReady) answered at once
//!    +----> waits --unit comes--> tried in order --> granted or refused
//!              +--deadline--> NotReady   +--the handle it is relative to is closed--> BadHandle
//!              +--its client ends--> dropped; nothing was done
//! ```

mod queue;

use alloc::collections::VecDeque;
use alloc::string::ToString;

use iommu_protocol::path::{Path, SessionPath};
use iommu_protocol::{PciAddress, Refusal};

use crate::hw::{BufferMemory, Nanos, Unit};
use crate::policy::UnitState;
use crate::server::Server;
use crate::server::caller::Caller;
use crate::server::handles::Handle;

use queue::Claim;
pub(super) use queue::PendingClaims;
pub use queue::{Answer, LONGEST_WAIT, MOST_WAITING, MOST_WAITING_OF_ONE, Opened, Ticket};

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Like [`Server::open`] for writing, but a claim waits when its unit is not up yet, or failed and is to be tried
    /// again. It is answered when the unit is up. After `wait` (at most [`LONGEST_WAIT`]) it is refused as it would
    /// be without waiting. `now` is the time of [`Server::next_answer`].
    ///
    /// # Errors
    /// Those of [`Server::open`], at once when too many claims wait.
    pub fn open_within(
        &mut self,
        caller: Caller,
        at: Option<Handle>,
        path: &str,
        (now, wait): (Nanos, Nanos),
    ) -> Result<Opened, Refusal> {
        match self.open(caller, at, path, true) {
            Ok(handle) => Ok(Opened::Now(handle)),
            Err(refusal)
                if self.may_wait(path, refusal) && self.waiting.has_room(caller.client) =>
            {
                let ticket = Ticket(self.waiting.next);
                self.waiting.next += 1;
                let deadline = Nanos(now.0.saturating_add(wait.0.min(LONGEST_WAIT.0)));
                let path = path.to_string();
                self.waiting.claims.push_back(Claim { ticket, caller, at, path, deadline });
                Ok(Opened::Later(ticket))
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The next answer to a claim that waited. A platform takes all answers after each event and each tick; `now`
    /// never goes back.
    pub fn next_answer(&mut self, now: Nanos) -> Option<Answer> {
        self.try_waiting();
        self.expire(now);
        self.waiting.answers.pop_front()
    }

    /// Refuses claims whose time is over, with the refusal that they would have got without waiting.
    fn expire(&mut self, now: Nanos) {
        let Self { waiting, registry, .. } = self;
        let failed = |claim: &Claim| {
            let unit = device_of(&claim.path).and_then(|device| registry.function(device)?.unit);
            unit.and_then(|unit| registry.unit(unit))
                .is_some_and(|unit| unit.state == UnitState::Failed)
        };
        let over = |claim: &Claim| claim.deadline <= now;
        waiting.refuse(Refusal::UnitFailed, |claim| over(claim) && failed(claim));
        waiting.refuse(Refusal::NotReady, over);
    }

    /// Whether claims wait, or answers to them.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        !self.waiting.claims.is_empty() || !self.waiting.answers.is_empty()
    }

    /// Ends the claims of a client that is gone, without an answer. A session that was claimed and not reported yet
    /// is closed.
    pub fn forget_claims(&mut self, tickets: &[Ticket]) {
        self.waiting.claims.retain(|claim| !tickets.contains(&claim.ticket));
        let (theirs, others) = core::mem::take(&mut self.waiting.answers)
            .into_iter()
            .partition(|(ticket, _)| tickets.contains(ticket));
        self.waiting.answers = others;
        let theirs: VecDeque<Answer> = theirs;
        for handle in theirs.into_iter().filter_map(|(_, answer)| answer.ok()) {
            self.close(handle);
        }
    }

    /// Whether a claim with this refusal may wait: its unit is to come, or to come back.
    fn may_wait(&self, path: &str, refusal: Refusal) -> bool {
        let Some(device) = device_of(path) else { return false };
        match refusal {
            Refusal::NotReady => true,
            Refusal::UnitFailed => {
                let unit = self.registry.function(device).and_then(|view| view.unit);
                unit.is_some_and(|unit| self.may_come_back(unit))
            }
            _ => false,
        }
    }

    /// Tries every claim again, oldest first, if anything that decides them has changed.
    pub(super) fn try_waiting(&mut self) {
        if !core::mem::take(&mut self.waiting.changed) {
            return;
        }
        for claim in core::mem::take(&mut self.waiting.claims) {
            let Claim { ticket, caller, at, ref path, .. } = claim;
            match self.open_checked(caller, at, path, true) {
                Err(refusal) if self.may_wait(path, refusal) => {
                    self.waiting.claims.push_back(claim);
                }
                answer => {
                    let answer = self.counted(answer);
                    self.waiting.answers.push_back((ticket, answer));
                }
            }
        }
    }

    /// Refuses claims that are relative to a handle which is closed.
    pub(super) fn end_claims_below(&mut self, handle: Handle) {
        self.waiting.refuse(Refusal::BadHandle, |claim| claim.at == Some(handle));
    }
}

/// The device in a path that can be claimed.
fn device_of(path: &str) -> Option<PciAddress> {
    match (Path::parse(path), SessionPath::parse(path)) {
        (Some(Path::Device(address)), _) | (_, Some(SessionPath::Member(address))) => Some(address),
        _ => None,
    }
}
