//! Claims that wait, in their order, and answers to those that waited.

use alloc::collections::VecDeque;
use alloc::string::String;

use iommu_protocol::Refusal;

use crate::hw::Nanos;
use crate::policy::ClientId;
use crate::server::caller::Caller;
use crate::server::handles::Handle;

/// The most waiting claims, of all clients.
pub const MOST_WAITING: usize = 64;

/// The most waiting claims of one client.
pub const MOST_WAITING_OF_ONE: usize = 4;

/// The longest time that a claim waits, whatever its client requests.
pub const LONGEST_WAIT: Nanos = Nanos(60_000_000_000);

/// The number of a waiting claim; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The result of opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is open.
    Now(Handle),
    /// The claim waits. [`Server::next_answer`](crate::server::Server::next_answer) returns the result.
    Later(Ticket),
}

/// The answer to a claim that waited.
pub type Answer = (Ticket, Result<Handle, Refusal>);

#[derive(Clone)]
pub(super) struct Claim {
    pub(super) ticket: Ticket,
    pub(super) caller: Caller,
    pub(super) at: Option<Handle>,
    pub(super) path: String,
    pub(super) deadline: Nanos,
}

/// Claims that wait, oldest first, and answers that were not taken yet.
#[derive(Clone, Default)]
pub(in crate::server) struct PendingClaims {
    pub(super) claims: VecDeque<Claim>,
    pub(super) answers: VecDeque<Answer>,
    pub(super) next: u64,
    /// A unit came or failed, or a function was removed: claims are to be tried again.
    pub(super) changed: bool,
}

impl PendingClaims {
    /// Records that something that decides claims has changed.
    pub(in crate::server) const fn change(&mut self) {
        self.changed = true;
    }

    /// Number of waiting claims.
    pub(in crate::server) fn count(&self) -> usize {
        self.claims.len()
    }

    pub(super) fn has_room(&self, client: ClientId) -> bool {
        let mine = self.claims.iter().filter(|claim| claim.caller.client == client).count();
        self.claims.len() < MOST_WAITING && mine < MOST_WAITING_OF_ONE
    }

    /// Refuses every claim for which `ends` is true.
    pub(super) fn refuse(&mut self, refusal: Refusal, ends: impl Fn(&Claim) -> bool) {
        let Self { claims, answers, .. } = self;
        claims.retain(|claim| {
            let over = ends(claim);
            if over {
                answers.push_back((claim.ticket, Err(refusal)));
            }
            !over
        });
    }
}
