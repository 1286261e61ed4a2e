//! The part of the message of the day that the guests of Linux and Redox have in common.

use crate::tour::TOUR;

/// The five things to try, with what they print on a machine with this vendor's unit.
pub(crate) fn tour(amdvi: bool) -> String {
    let mut text = String::from("Five things to try:\n\n");
    for (number, stop) in TOUR.iter().enumerate() {
        let expected = if amdvi { stop.amdvi } else { stop.vtd };
        text.push_str(&format!("  {}. {}\n", number + 1, stop.about));
        text.push_str(&format!("       {}\n", stop.command));
        text.push_str(&format!("     prints: ... {expected} ...\n"));
    }
    text
}
