//! One map, unmap, grant or revoke by itself: decided, carried out and committed without a list.
//!
//! It is the same decision as that of a batch of one ([`work`](crate::policy::work)), and the same order of steps
//! ([`follow`]); what is left out is writing the steps down. That takes memory in one piece and a domain that at most
//! one unit uses; the steps of everything else are written down.

use iommu_protocol::status::Refusal;
use iommu_protocol::wire::Access;

use crate::addr::{INTERRUPT_WINDOW, Iova, IovaRange, PhysAddr};
use crate::policy::draft::{Change, Draft};
use crate::policy::event::{BatchRequest, Outcome};
use crate::policy::ids::{DomainId, SessionId, UnitIndex};
use crate::policy::mappings::MappingIndex;
use crate::policy::plan::{Plan, Sink, Step, follow};
use crate::policy::registry::Registry;

/// Where nothing is mapped.
const NOWHERE: IovaRange = INTERRUPT_WINDOW;

/// A change of one mapping: what a [`Plan`] consists of that has no list of steps.
#[derive(Clone, Copy, Debug)]
pub struct Single {
    pub(super) domain: DomainId,
    /// Number of the account that the mapping is charged to.
    pub(super) account: u32,
    pub(super) range: IovaRange,
    /// What devices may do; nothing when the range is unmapped.
    pub(super) mapped: Option<Access>,
    /// First byte of what is mapped, in its buffer.
    pub(super) offset: u64,
    /// Its memory; known when it is in one piece.
    pub(super) phys: Option<PhysAddr>,
    /// The mark on the registry.
    pub(super) change: Change,
    /// The unit that uses the domain, and whether it is to be told of new translations.
    pub(super) unit: Option<(UnitIndex, bool)>,
}

impl Default for Single {
    /// Of nothing.
    fn default() -> Self {
        Self {
            domain: DomainId(u32::MAX),
            account: u32::MAX,
            range: NOWHERE,
            mapped: None,
            offset: 0,
            phys: None,
            change: Change::Left(MappingIndex::NONE, u32::MAX),
            unit: None,
        }
    }
}

impl Single {
    /// Gives its steps to a sink, in order, until it takes no more.
    ///
    /// # Errors
    /// The sink's.
    #[inline(always)]
    pub fn give<S: Sink>(&self, sink: &mut S) -> Result<(), S::Error> {
        let Self { domain, range, .. } = *self;
        let units = self.unit.into_iter();
        match (self.mapped, self.phys) {
            (Some(access), Some(phys)) => {
                sink.step(Step::Map { domain, range, phys, access })?;
                follow(domain, None, Some(range), units, sink)
            }
            // A plan of one change has memory in one piece: see `Work::is_plain`.
            (Some(_), None) => Ok(()),
            (None, _) => {
                sink.step(Step::Unmap { domain, range })?;
                follow(domain, Some(range), None, units, sink)
            }
        }
    }

    /// What the client is told: the address, 0 for an unmap or revoke.
    #[inline(always)]
    pub(super) const fn iova(&self) -> Iova {
        if self.mapped.is_some() { self.range.first() } else { Iova(0) }
    }
}

impl Registry {
    /// As [`Registry::decide`], for a map, unmap, grant or revoke by itself: what a batch of one comes
    /// to. Returns its address too, 0 for an unmap.
    ///
    /// # Errors
    /// As [`Registry::decide`].
    #[inline(always)]
    pub fn decide_change(
        &mut self,
        session: SessionId,
        item: &BatchRequest,
    ) -> Result<(Plan, Iova), Refusal> {
        let mut draft = self.new_draft();
        match self.change(&mut draft, session, item) {
            Ok(iova) => Ok((Plan { draft }, iova)),
            Err(refusal) => {
                self.refuse(draft);
                Err(refusal)
            }
        }
    }

    #[inline(always)]
    fn change(
        &mut self,
        draft: &mut Draft,
        session: SessionId,
        item: &BatchRequest,
    ) -> Result<Iova, Refusal> {
        let Some(mut work) = self.work(session)? else {
            return self.change_direct(draft, session, *item);
        };
        work.item(item, &mut draft.single)?;
        let iova = draft.single.iova();
        draft.is_single = work.is_plain(&mut draft.single);
        if !draft.is_single {
            work.write_down(draft);
        }
        Ok(iova)
    }

    /// As `change`, for a session without a domain.
    #[cold]
    fn change_direct(
        &mut self,
        draft: &mut Draft,
        session: SessionId,
        item: BatchRequest,
    ) -> Result<Iova, Refusal> {
        match self.batch_direct(draft, session, &[item])? {
            Outcome::Single(iova) => Ok(iova),
            _ => Err(Refusal::BadOperation),
        }
    }

    /// As [`Registry::commit`], for a plan of [`Registry::decide_change`].
    #[inline(always)]
    pub fn commit_change(&mut self, plan: Plan) {
        if !plan.draft.is_single {
            drop(self.commit(plan));
            return;
        }
        let Single { domain, account, change, .. } = plan.draft.single;
        if matches!(change, Change::Left(..)) {
            self.settle(domain, account, &[change]);
        }
        self.recycle_single(plan.draft);
    }
}
