//! One map, unmap, grant or revoke by itself: decided, carried out and committed without a list.
//!
//! It is the same decision as that of a batch of one ([`work`](crate::policy::work)), and the same order of steps
//! ([`follow`]); what is left out is writing the steps down. That takes memory in one piece and a domain that at most
//! one unit uses; the steps of everything else are written down.
//!
//! This is what a driver waits for: all of it is inlined into the server's call, where each step is known to the
//! compiler. How many instructions that takes has a bound, in `tests/vm/bare/src/suite/server.rs`.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;

use crate::addr::Iova;
use crate::policy::change::{Change, Changes, Single};
use crate::policy::draft::Draft;
use crate::policy::event::{BatchRequest, Event, MapRequest, Outcome};
use crate::policy::ids::SessionId;
use crate::policy::plan::{Plan, Sink, follow};
use crate::policy::registry::Registry;
use crate::policy::step::{Charge, Step};
use crate::policy::work::Work;

/// A decision about one mapping, complete before the first register is touched: what a [`Plan`] is for everything
/// else. Consumed by [`Registry::commit_change`], [`Registry::abort_change`] or [`Registry::quarantine_change`].
#[derive(Debug, Default)]
#[must_use = "a plan is consumed by commit or abort"]
pub struct ChangePlan(Single);

/// Where a decision about one mapping stands.
#[derive(Debug)]
pub enum Decided {
    /// In the plan of the change.
    Change,
    /// In a plan with a list of steps, whose outcome is [`Outcome::Single`].
    Plan(Plan),
}

impl ChangePlan {
    /// Gives its steps to a sink, in order, until it takes no more.
    ///
    /// # Errors
    /// The sink's.
    #[inline(always)]
    pub fn give<S: Sink>(&self, sink: &mut S) -> Result<(), S::Error> {
        let Single { domain, range, .. } = self.0;
        let units = self.0.unit.into_iter();
        match (self.0.mapped, self.0.phys) {
            (Some(access), Some(phys)) => {
                sink.step(Step::Map { domain, range, phys, access })?;
                follow(domain, None, Some(range), units, false, sink)
            }
            // A plan of one change has memory in one piece: see `Work::is_plain`.
            (Some(_), None) => Ok(()),
            (None, _) => {
                sink.step(Step::Unmap { domain, range })?;
                follow(domain, Some(range), None, units, true, sink)
            }
        }
    }

    /// All its steps, in order, as a list.
    #[must_use]
    #[inline(always)]
    pub fn written(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        // A list takes every step.
        let Ok(()) = self.give(&mut steps);
        steps
    }

    /// Which frames it may take.
    #[must_use]
    #[inline(always)]
    pub const fn charge(&self) -> Charge {
        Charge::Account(self.0.account)
    }

    /// What the client is told: the address, 0 for an unmap or revoke.
    #[must_use]
    #[inline(always)]
    pub const fn iova(&self) -> Iova {
        self.0.iova()
    }

    /// What it did to the registry when it was decided, as a batch has it.
    fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        changes.note(&self.0);
        changes
    }
}

/// One of the four requests, as it is asked by itself. All of it is inlined where it is decided: a closure would not be.
trait Asked {
    /// As [`Work::item`].
    fn decide(&self, work: &mut Work<'_>, single: &mut Single) -> Result<(), Refusal>;
    /// As an element of a batch.
    fn item(&self) -> BatchRequest;
}

struct Map<'a>(&'a MapRequest);
struct Unmap(Iova, u64);
struct Grant<'a>(&'a MapRequest);
struct Revoke(Slot, u64, u64);

impl Asked for Map<'_> {
    #[inline(always)]
    fn decide(&self, work: &mut Work<'_>, single: &mut Single) -> Result<(), Refusal> {
        work.map(self.0, single)
    }
    fn item(&self) -> BatchRequest {
        BatchRequest::Map(*self.0)
    }
}

impl Asked for Unmap {
    #[inline(always)]
    fn decide(&self, work: &mut Work<'_>, single: &mut Single) -> Result<(), Refusal> {
        work.unmap(self.0, self.1, single)
    }
    fn item(&self) -> BatchRequest {
        BatchRequest::Unmap { iova: self.0, length: self.1 }
    }
}

impl Asked for Grant<'_> {
    #[inline(always)]
    fn decide(&self, work: &mut Work<'_>, single: &mut Single) -> Result<(), Refusal> {
        work.grant(self.0, single)
    }
    fn item(&self) -> BatchRequest {
        BatchRequest::Grant(*self.0)
    }
}

impl Asked for Revoke {
    #[inline(always)]
    fn decide(&self, work: &mut Work<'_>, single: &mut Single) -> Result<(), Refusal> {
        work.revoke(self.0, self.1, self.2, single)
    }
    fn item(&self) -> BatchRequest {
        BatchRequest::Revoke { slot: self.0, offset: self.1, length: self.2 }
    }
}

impl Registry {
    /// As [`Registry::decide`], for a map by itself.
    ///
    /// # Errors
    /// As [`Registry::decide`]; `plan` means nothing then.
    #[inline(always)]
    pub fn decide_map(
        &mut self,
        session: SessionId,
        request: &MapRequest,
        plan: &mut ChangePlan,
    ) -> Result<Decided, Refusal> {
        self.decide_one(session, &Map(request), plan)
    }

    /// As [`Registry::decide_map`], for an unmap of exactly one mapping.
    ///
    /// # Errors
    /// As [`Registry::decide_map`].
    #[inline(always)]
    pub fn decide_unmap(
        &mut self,
        session: SessionId,
        (iova, length): (Iova, u64),
        plan: &mut ChangePlan,
    ) -> Result<Decided, Refusal> {
        self.decide_one(session, &Unmap(iova, length), plan)
    }

    /// As [`Registry::decide_map`], for a grant.
    ///
    /// # Errors
    /// As [`Registry::decide_map`].
    #[inline(always)]
    pub fn decide_grant(
        &mut self,
        session: SessionId,
        request: &MapRequest,
        plan: &mut ChangePlan,
    ) -> Result<Decided, Refusal> {
        self.decide_one(session, &Grant(request), plan)
    }

    /// As [`Registry::decide_map`], for the revocation of exactly one grant.
    ///
    /// # Errors
    /// As [`Registry::decide_map`].
    #[inline(always)]
    pub fn decide_revoke(
        &mut self,
        session: SessionId,
        (slot, offset, length): (Slot, u64, u64),
        plan: &mut ChangePlan,
    ) -> Result<Decided, Refusal> {
        self.decide_one(session, &Revoke(slot, offset, length), plan)
    }

    #[inline(always)]
    fn decide_one(
        &mut self,
        session: SessionId,
        asked: &impl Asked,
        plan: &mut ChangePlan,
    ) -> Result<Decided, Refusal> {
        let Some(mut work) = self.work(session)? else {
            let plan = self.decide(&Event::Batch(session, Vec::from([asked.item()])))?;
            return Ok(Decided::Plan(plan));
        };
        let single = &mut plan.0;
        (single.domain, single.account) = work.charged();
        asked.decide(&mut work, single)?;
        if work.is_plain(single) {
            return Ok(Decided::Change);
        }
        Ok(Decided::Plan(whole(work, *single)))
    }

    /// As [`Registry::commit`].
    #[inline(always)]
    pub fn commit_change(&mut self, plan: ChangePlan) {
        let ChangePlan(Single { domain, account, change, .. }) = plan;
        if matches!(change, Change::Left(..)) {
            self.settle(domain, account, &[change]);
        }
    }

    /// As [`Registry::abort`].
    #[cold]
    pub fn abort_change(&mut self, plan: ChangePlan) {
        self.take_back_changes(&mut plan.changes());
    }

    /// As [`Registry::quarantine`].
    #[cold]
    pub fn quarantine_change(&mut self, plan: ChangePlan) {
        self.keep_changes_unproved(&plan.changes());
        self.abort_change(plan);
    }
}

/// The same decision with its steps written down.
#[cold]
fn whole(work: Work<'_>, single: Single) -> Plan {
    let outcome = Outcome::Single(single.iova());
    let charge = Charge::Account(single.account);
    let mut draft = Box::new(Draft { outcome, charge, ..Draft::default() });
    work.note(&single, &mut draft);
    work.conclude(&mut draft);
    Plan { draft }
}
