//! The software under exploration: the shipped server, or a control with a known flaw. The same checks apply to both.

use super::act::{Act, Answer, Client, Event};
use super::ledger::{Ledger, Unit};
use super::scene::{Device, Scene};
use crate::machine::Machine;

/// The progress of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The event has ended.
    Done(Answer),
    /// The event is suspended, and other events may come in between. The shipped server has no such state.
    Suspended,
}

/// A server for clients on a machine.
pub trait Subject: Sized {
    /// A checkpoint of the software; the machine has its own.
    type Saved;

    /// Starts the server on a new machine.
    fn start(scene: &Scene) -> Self;

    /// The machine it runs on.
    fn machine(&self) -> &Machine;

    /// Saves the software's state.
    fn save(&self) -> Self::Saved;

    /// Restores the software's state.
    fn restore(&mut self, saved: &Self::Saved);

    /// Handles an event of `client` (or of the machine).
    fn begin(&mut self, scene: &Scene, ledger: &Ledger, client: Client, event: Event) -> Progress;

    /// Resumes the suspended event of stream `stream`.
    fn resume(&mut self, scene: &Scene, stream: usize) -> Progress {
        let _ = (scene, stream);
        unreachable!("nothing is ever suspended")
    }

    /// Returns the answers to waiting claims since the last call, in order.
    fn answers(&mut self) -> Vec<(u64, Answer)> {
        Vec::new()
    }

    /// Announces the stream of the next event, for subjects that suspend events.
    fn of_stream(&mut self, stream: usize) {
        let _ = stream;
    }

    /// Returns the texts that a refused request must not change.
    fn texts(&mut self) -> String;

    /// Returns all texts and each session's query results, without meaningless numbers.
    fn tells(&mut self, ledger: &Ledger) -> String {
        let _ = ledger;
        self.texts()
    }

    /// The texts of a checkpoint.
    fn texts_of(saved: &Self::Saved) -> String;

    /// Returns the state of the units, from the texts.
    fn units(&mut self) -> Vec<Unit>;

    /// Returns the groups of present functions, each ascending, from the texts.
    fn partition(&mut self, scene: &Scene) -> Vec<Vec<Device>>;

    /// Whether the texts call a device unconfined; `None` when they do not list it.
    fn says_unconfined(&mut self, scene: &Scene, device: Device) -> Option<bool> {
        let _ = (scene, device);
        None
    }

    /// Whether an end of life has left unfinished work.
    fn owes(&mut self) -> bool {
        false
    }

    /// Whether the server keeps back memory that devices may still reach.
    fn quarantined(&mut self) -> bool;

    /// Ends all sessions.
    fn finish(&mut self, scene: &Scene, ledger: &Ledger) {
        for client in 0..4 {
            let _ = self.begin(scene, ledger, client, Act::Die(client).into());
        }
    }
}
