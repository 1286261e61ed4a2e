//! Claims, including waiting ones, and guesses at other clients' objects.

use iommu_protocol::Refusal;
use iommu_protocol::wire::{BufferRequest, Empty, Map, MapResult, Operation, QueryResult};
use iommud::hw::Nanos;
use iommud::server::{Handle, Opened, Ticket};

use super::words::refused;
use super::{Real, caller};
use crate::explore::act::{Answer, Client};
use crate::explore::backend::Backend;
use crate::explore::ledger::{Ledger, PAGE};
use crate::explore::scene::{Device, Scene};

/// Deadline of a waiting claim, in nanoseconds.
pub(super) const WAIT: u64 = 1_000_000_000;

impl<T: Backend, const CARELESS: u8> Real<T, CARELESS>
where
    T::Unit: Clone,
{
    pub(super) fn claim(
        &mut self,
        scene: &Scene,
        client: Client,
        device: Device,
        at: Option<Handle>,
    ) -> Answer {
        let address = scene.address(device);
        let path = format!("devices/{address}");
        let opened = self.stack.server.open(caller(client), at, &path, true);
        self.claimed(opened)
    }

    fn claimed(&mut self, opened: Result<Handle, Refusal>) -> Answer {
        refused(opened, |handle| {
            let query: QueryResult =
                self.call(handle, Operation::Query, &Empty::default()).expect("a session's query");
            Answer::Session { handle: handle.0, ids: (query.group, query.generation) }
        })
    }

    pub(super) fn claim_within(&mut self, scene: &Scene, client: Client, device: Device) -> Answer {
        let path = format!("devices/{}", scene.address(device));
        let times = (Nanos(self.time), Nanos(WAIT));
        match self.stack.server.open_within(caller(client), None, &path, times) {
            Ok(Opened::Now(handle)) => self.claimed(Ok(handle)),
            Ok(Opened::Later(Ticket(ticket))) => Answer::Waits(ticket),
            Err(refusal) => Answer::Refused(refusal),
        }
    }

    /// Fetches the answers to waiting claims, as a platform does after each event.
    pub(super) fn take_answers(&mut self) {
        let mut taken = Vec::new();
        while let Some((ticket, result)) = self.stack.server.next_answer(Nanos(self.time)) {
            let answer = self.claimed(result);
            taken.push((ticket.0, answer));
        }
        match CARELESS {
            1 => taken.reverse(),
            3 => taken.extend(taken.clone()),
            _ => {}
        }
        self.answers.extend(taken);
    }

    pub(super) fn die(&mut self, ledger: &Ledger, dead: Client) {
        if CARELESS != 2 {
            let theirs = ledger.waiting.iter().filter(|claim| claim.client == dead);
            let theirs: Vec<Ticket> = theirs.map(|claim| Ticket(claim.ticket)).collect();
            self.stack.server.forget_claims(&theirs);
        }
        self.close(ledger, |session| session.client == dead);
    }

    /// Tries another client's objects, known or guessed, in a client's own session. All must be refused.
    pub(super) fn guess(
        &mut self,
        scene: &Scene,
        ledger: &Ledger,
        client: Client,
        own: Device,
        victim: Client,
    ) -> Answer {
        let mine = Self::handle(ledger, client, own);
        let Some(theirs) = ledger.sessions.iter().find(|s| s.client == victim) else {
            return Answer::Refused(Refusal::NotFound);
        };
        // Numbers of the victim's objects that the guesser's own session does not use.
        let own_session = ledger.session(client, own);
        let taken = |slot: u32| own_session.is_some_and(|s| s.buffers.iter().any(|b| b.0 == slot));
        let mapped =
            |iova: u64| own_session.is_some_and(|s| s.mappings.iter().any(|m| m.iova == iova));
        let iova = theirs.mappings.iter().map(|m| m.iova).find(|iova| !mapped(*iova));
        let iova = iova.unwrap_or(64 * PAGE);
        let slot = theirs.buffers.iter().map(|b| b.0).find(|slot| !taken(*slot)).unwrap_or(40);
        let path = format!("buffers/{slot}");
        let map = Map { slot, access: 3, length: PAGE, ..Map::default() };
        let release = BufferRequest { slot, reserved: 0 };
        let member = format!("devices/{}", scene.address(theirs.device));
        let accepted = [
            ("a slot", self.call::<MapResult>(mine, Operation::Map, &map).is_ok()),
            ("an address", self.unmap(mine, iova, PAGE) == Answer::Done),
            ("a buffer", self.call::<Empty>(mine, Operation::Release, &release).is_ok()),
            (
                "a buffer's path",
                self.stack.server.open(caller(client), Some(mine), &path, true).is_ok(),
            ),
            (
                "a device below another's session",
                self.stack
                    .server
                    .open(caller(client), Some(Handle(theirs.handle)), &member, true)
                    .is_ok(),
            ),
            ("a number", self.stack.server.import(mine, Handle(theirs.handle)).is_ok()),
        ];
        match accepted.iter().find(|(_, accepted)| *accepted) {
            Some((what, _)) => Answer::Accepted(what),
            None => Answer::AllRefused,
        }
    }
}
