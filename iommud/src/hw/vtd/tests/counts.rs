//! The invalidations that a unit was given, and how their waits ended.

use super::*;
use crate::hw::Invalidations;

/// Turning the unit on was two commands, each with its wait.
#[test]
fn waits_are_counted_by_how_they_end() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    let mut told = Invalidations { commands: 2, at_once: 2, ..Invalidations::default() };
    assert_eq!(unit.invalidations(), told);
    let mut invalidate = |timeouts, stalled| {
        (fake.0.borrow_mut().timeouts, fake.0.borrow_mut().stalled) = (timeouts, stalled);
        let done = unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false);
        (done.is_ok(), unit.invalidations())
    };
    (told.commands, told.at_once) = (3, 3);
    assert_eq!(invalidate(0, false), (true, told));
    (told.commands, told.at_once, told.unanswered) = (5, 4, 1);
    assert_eq!(invalidate(1, false), (true, told), "a device did not answer once");
    (told.commands, told.unanswered) = (7, 3);
    assert_eq!(invalidate(2, false), (false, told), "a device did not answer twice");
    (told.commands, told.unanswered) = (8, 4);
    assert_eq!(invalidate(0, true), (false, told), "the queue stands still");
}
