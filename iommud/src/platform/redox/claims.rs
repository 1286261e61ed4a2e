//! Claims that wait for their unit to come up.
//!
//! ```text
//! open devices/D?wait=MS --> a session at once
//!   +----> a descriptor of the claim --call--> kept until the claim is decided --> granted: it is a session; refused
//!            +--closed, or its process ends--> the claim is dropped, or the session that it became is closed
//! ```
//!
//! The open itself never waits, for two reasons. First, the manager of name spaces opens paths for other processes,
//! one after another. If one open waited, all opens of the system would wait. Second, when a process is killed during
//! an open, the kernel does not ask the scheme to close the new handle. The device would stay claimed for good. The
//! kernel closes a descriptor that exists already in any case.

use std::collections::BTreeMap;

use iommu_protocol::Refusal;
use iommu_protocol::path::WAIT;
use syscall::error::{EBADF, EINVAL, EWOULDBLOCK, Error, Result};

use crate::hw::Nanos;
use crate::policy::ClientId;
use crate::server::{Handle, MOST_WAITING_OF_ONE, Ticket};

/// Numbers of claims begin here, above those of all handles.
const FIRST: usize = 1 << 32;

/// A claim that was not decided when it was opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) ticket: Ticket,
    pub(super) client: ClientId,
    /// The process that opened the claim. 0 when another process opened it on behalf of that one.
    pub(super) process: usize,
    /// The result of the claim, once it is decided.
    answer: Option<core::result::Result<Handle, Refusal>>,
}

/// All claims, by their numbers in the scheme, until they are closed.
#[derive(Default)]
pub(super) struct Claims {
    all: BTreeMap<usize, Claim>,
    /// Reads the clock, which never goes back. Without a clock, no claim waits.
    clock: Option<Box<dyn FnMut() -> Nanos>>,
}

impl Claims {
    /// No claims, and no clock.
    pub(super) const fn new() -> Self {
        Self { all: BTreeMap::new(), clock: None }
    }

    pub(super) fn set_clock(&mut self, clock: Box<dyn FnMut() -> Nanos>) {
        self.clock = Some(clock);
    }

    /// The time. `None` without a clock.
    pub(super) fn now(&mut self) -> Option<Nanos> {
        self.clock.as_mut().map(|clock| clock())
    }

    /// Whether a process may have one more waiting claim.
    pub(super) fn has_room(&self, process: usize) -> bool {
        let waits = |claim: &&Claim| claim.process == process && claim.answer.is_none();
        self.all.values().filter(waits).count() < MOST_WAITING_OF_ONE
    }

    /// Enters a claim and returns its number.
    pub(super) fn add(
        &mut self,
        ticket: Ticket,
        client: ClientId,
        process: usize,
    ) -> Result<usize> {
        let number = usize::try_from(ticket.0).ok().and_then(|ticket| FIRST.checked_add(ticket));
        let number = number.ok_or(Error::new(EBADF))?;
        self.all.insert(number, Claim { ticket, client, process, answer: None });
        Ok(number)
    }

    /// Records the result of a claim. Returns the claim, or `None` when it is closed.
    pub(super) fn decide(
        &mut self,
        ticket: Ticket,
        answer: core::result::Result<Handle, Refusal>,
    ) -> Option<Claim> {
        let claim = self.all.values_mut().find(|claim| claim.ticket == ticket)?;
        claim.answer = Some(answer);
        Some(*claim)
    }

    /// The answer to a call that waits for a claim: 0 when the claim became a session, otherwise the code of the
    /// refusal.
    ///
    /// # Errors
    /// `EWOULDBLOCK` while the claim waits. Then the loop keeps the call, and tries it again. `EBADF` when there is
    /// no such claim.
    pub(super) fn ask(&self, number: usize) -> Result<usize> {
        match self.all.get(&number).ok_or(Error::new(EBADF))?.answer {
            None => Err(Error::new(EWOULDBLOCK)),
            Some(Ok(_)) => Ok(0),
            Some(Err(refusal)) => Ok(refusal.code().into()),
        }
    }

    /// The session that a claim became. `None` when it is not decided or was refused.
    pub(super) fn session(&self, number: usize) -> Option<Handle> {
        self.all.get(&number)?.answer?.ok()
    }

    /// The number of the claim that became this session.
    pub(super) fn number(&self, session: Handle) -> Option<usize> {
        let mut all = self.all.iter();
        all.find(|(_, claim)| claim.answer == Some(Ok(session))).map(|(number, _)| *number)
    }

    /// Removes a claim whose descriptor is closed. Returns its ticket while it waits, or its session if it became
    /// one.
    pub(super) fn remove(&mut self, number: usize) -> Option<core::result::Result<Handle, Ticket>> {
        let claim = self.all.remove(&number)?;
        match claim.answer {
            None => Some(Err(claim.ticket)),
            Some(answer) => answer.ok().map(Ok),
        }
    }

    /// Whether a claim belongs to this client, decided or not.
    pub(super) fn has_client(&self, client: ClientId) -> bool {
        self.all.values().any(|claim| claim.client == client)
    }
}

/// Splits a path into the device's path and how long its claim may wait. `None` when it may not wait.
///
/// # Errors
/// `EINVAL` when the time is not a number of milliseconds.
pub(super) fn wait_of(path: &str) -> Result<(&str, Option<Nanos>)> {
    let Some((path, wait)) = path.split_once(WAIT) else { return Ok((path, None)) };
    let digits = wait.bytes().all(|byte| byte.is_ascii_digit());
    let wait: Option<u64> = digits.then_some(wait).and_then(|wait| wait.parse().ok());
    let wait = wait.ok_or(Error::new(EINVAL))?;
    Ok((path, Some(Nanos(wait.saturating_mul(1_000_000)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_how_long_its_claim_waits() {
        assert_eq!(wait_of("devices/d"), Ok(("devices/d", None)));
        assert_eq!(wait_of("devices/d?wait=20"), Ok(("devices/d", Some(Nanos(20_000_000)))));
        assert_eq!(wait_of("d?wait=18446744073709551615"), Ok(("d", Some(Nanos(u64::MAX)))));
        for bad in ["d?wait=", "d?wait=x", "d?wait=+1", "d?wait=-1", "d?wait=1?wait=1"] {
            assert_eq!(wait_of(bad), Err(Error::new(EINVAL)), "{bad}");
        }
        assert_eq!(wait_of("d?wait=18446744073709551616"), Err(Error::new(EINVAL)));
    }
}
