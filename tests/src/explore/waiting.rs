//! Claims that wait for their unit: I7 for answers that come later.

use super::act::{Act, Answer, Client};
use super::check::{Broken, Invariant, broken};
use super::ledger::{Ledger, Unit};
use super::scene::Scene;

/// Enters answers to waiting claims. Each must answer the oldest claim that waits for its device. Returns whether one
/// was granted.
///
/// # Errors
/// I7: an answer without a waiting claim, a second answer, or one out of order. I1: two sessions hold one device.
pub fn enter(
    ledger: &mut Ledger,
    scene: &Scene,
    answers: &[(u64, Answer)],
) -> Result<bool, Broken> {
    let mut granted = false;
    for (ticket, answer) in answers {
        let waits = ledger.waiting.iter().find(|claim| claim.ticket == *ticket);
        let Some(claim) = waits.copied() else {
            let how = format!("{answer:?} for claim {ticket}, for which nobody waits");
            return Err(broken(Invariant::I7, how));
        };
        let oldest = ledger.waiting.iter().find(|other| other.device == claim.device);
        if oldest != Some(&claim) {
            let how = format!("{claim:?} was answered before {oldest:?}");
            return Err(broken(Invariant::I7, how));
        }
        ledger.answered(scene, claim, answer);
        granted |= matches!(answer, Answer::Session { .. });
        let here =
            |session: &&super::ledger::Session| session.device == claim.device && !session.orphan;
        if ledger.sessions.iter().filter(here).count() > 1 {
            let how = format!("D{} is held twice", claim.device + 1);
            return Err(broken(Invariant::I1, how));
        }
    }
    Ok(granted)
}

/// Checks that no claim waits for a missing device, for a unit that is up, or past its deadline.
///
/// # Errors
/// I7: a claim that is never answered.
pub fn check(ledger: &Ledger, scene: &Scene, client: Client, act: Act) -> Result<(), Broken> {
    for claim in &ledger.waiting {
        let present = ledger.functions[claim.device].present;
        // A failed unit may still be revived.
        let up = ledger.unit(scene, claim.device) == Some(Unit::Up);
        if !present || up || act == Act::Expire {
            let how = format!("{claim:?} still waits after {act:?} of client {client}");
            return Err(broken(Invariant::I7, how));
        }
    }
    Ok(())
}
