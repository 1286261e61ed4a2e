//! What is explored: the shipped server, or a control that is known to be wrong. The same checks apply to both.

use super::act::{Act, Answer, Client, Event};
use super::ledger::{Ledger, Unit};
use super::scene::{Device, Scene};
use crate::machine::Machine;

/// How far an event was dealt with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To its end.
    Done(Answer),
    /// Half-way: other events may come in between. The shipped server has no such state.
    Suspended,
}

/// Something that serves clients on a machine.
pub trait Subject: Sized {
    /// A checkpoint of the software; the machine has its own.
    type Saved;

    /// Starts on a new machine.
    fn start(scene: &Scene) -> Self;

    /// The machine it runs on.
    fn machine(&self) -> &Machine;

    /// Puts the software's state aside.
    fn save(&self) -> Self::Saved;

    /// Makes the software's state what it was.
    fn restore(&mut self, saved: &Self::Saved);

    /// Deals with an event of `client`'s (or of the machine).
    fn begin(&mut self, scene: &Scene, ledger: &Ledger, client: Client, event: Event) -> Progress;

    /// Goes on with the event of stream `stream` that was suspended.
    fn resume(&mut self, scene: &Scene, stream: usize) -> Progress {
        let _ = (scene, stream);
        unreachable!("nothing is ever suspended")
    }

    /// Answers to claims that waited, in their order, since they were taken last.
    fn answers(&mut self) -> Vec<(u64, Answer)> {
        Vec::new()
    }

    /// Tells which stream the next event is of, for those that suspend.
    fn of_stream(&mut self, stream: usize) {
        let _ = stream;
    }

    /// All that it tells of itself and that a refused request must leave as it was.
    fn texts(&mut self) -> String;

    /// All that it tells now, what each session is told included, but for numbers that mean nothing.
    fn tells(&mut self, ledger: &Ledger) -> String {
        let _ = ledger;
        self.texts()
    }

    /// The texts of a checkpoint.
    fn texts_of(saved: &Self::Saved) -> String;

    /// How its units are, by what it tells.
    fn units(&mut self) -> Vec<Unit>;

    /// The groups of functions that are there, each ascending, by what it tells.
    fn partition(&mut self, scene: &Scene) -> Vec<Vec<Device>>;

    /// Whether it says that a device is not confined; `None` when it says nothing of it.
    fn says_unconfined(&mut self, scene: &Scene, device: Device) -> Option<bool> {
        let _ = (scene, device);
        None
    }

    /// Whether ends of life have left something to be done.
    fn owes(&mut self) -> bool {
        false
    }

    /// Whether it keeps memory back that devices may still reach.
    fn quarantined(&mut self) -> bool;

    /// Ends all sessions.
    fn finish(&mut self, scene: &Scene, ledger: &Ledger) {
        for client in 0..4 {
            let _ = self.begin(scene, ledger, client, Act::Die(client).into());
        }
    }
}
