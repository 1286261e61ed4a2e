//! The invariants that a server keeps, and those checks of them that need only the machine.

use crate::machine::{Reach, Violation};

/// The invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// I1: each device record is created once; its id does not change during its life.
    I1,
    /// I2: the partition into groups does not depend on the order of discovery.
    I2,
    /// I3: one default domain per group, created before any member attaches.
    I3,
    /// I4: at no instant does a device reach memory that was not granted to it.
    I4,
    /// I5: a refused request leaves the state unchanged.
    I5,
    /// I6: freed memory is not reachable.
    I6,
    /// I7: every request is answered once.
    I7,
    /// I8: a live translation changes only on its owner's request.
    I8,
    /// I9: an event that cannot be refused takes effect, at the latest when there is memory.
    I9,
    /// A device can use its grants as soon as the reply is there.
    Usable,
    /// The rules of the hardware's specification.
    Hardware,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The invariant.
    pub invariant: Invariant,
    /// How it was broken.
    pub how: String,
}

/// Describes a broken invariant.
#[must_use]
pub fn broken(invariant: Invariant, how: impl Into<String>) -> Broken {
    Broken { invariant, how: how.into() }
}

/// Checks that the machine noticed nothing.
///
/// # Errors
/// The first violation, as the invariant that it breaks: I4, I6 or the rules of the hardware.
pub fn unviolated(violations: &[Violation]) -> Result<(), Broken> {
    let Some(violation) = violations.first() else { return Ok(()) };
    let invariant = match violation {
        Violation::FreedInUse { .. }
        | Violation::FreedTwice { .. }
        | Violation::FreedNotZero { .. }
        | Violation::NotATable { .. }
        | Violation::WalkedForeign { .. }
        | Violation::StatusForeign { .. } => Invariant::I6,
        Violation::DeviceInTables { .. } | Violation::Passed { .. } | Violation::Denied { .. } => {
            Invariant::I4
        }
        _ => Invariant::Hardware,
    };
    Err(broken(invariant, format!("{violation:x?}")))
}

/// I3: entries of a group without a driver are one. `bindings` are those of its members that do not deny.
///
/// # Errors
/// The entries differ.
pub fn one_default(group: usize, mut bindings: Vec<(u16, u64, u8)>) -> Result<(), Broken> {
    bindings.dedup();
    if bindings.len() > 1 {
        let how = format!("group {group} has default domains {bindings:x?}");
        return Err(broken(Invariant::I3, how));
    }
    Ok(())
}

/// Whether `whole` covers everything in `part`.
#[must_use]
pub fn within(part: &[Reach], whole: &[Reach]) -> bool {
    part.iter().all(|run| {
        whole.iter().any(|all| {
            all.iova <= run.iova
                && run.last <= all.last
                && all.physical + (run.iova - all.iova) == run.physical
                && (all.read || !run.read)
                && (all.write || !run.write)
        })
    })
}
