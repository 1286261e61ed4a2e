//! Claims that wait for their unit: I7 of answers that come later.

use super::act::{Act, Answer, Client};
use super::check::{Broken, Invariant, broken};
use super::ledger::{Ledger, Unit};
use super::scene::Scene;

/// Enters answers to claims that waited. Each is of a claim that waits, and of the oldest that waits for its device.
/// Returns whether one was granted.
///
/// # Errors
/// I7: an answer to nobody, a second one, or one out of turn. I1: two hold one device.
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

/// Claims wait as long as there is something to wait for, and no longer; nobody waits whose claim was not put off.
///
/// # Errors
/// I7: a claim that is never answered.
pub fn check(ledger: &Ledger, scene: &Scene, client: Client, act: Act) -> Result<(), Broken> {
    for claim in &ledger.waiting {
        let present = ledger.functions[claim.device].present;
        // One that failed may come back.
        let up = ledger.unit(scene, claim.device) == Some(Unit::Up);
        if !present || up || act == Act::Expire {
            let how = format!("{claim:?} still waits after {act:?} of client {client}");
            return Err(broken(Invariant::I7, how));
        }
    }
    Ok(())
}
