//! Shares of what clients use up: memory of buffers, and domain tags. (Frames of tables: `engine::budget`.)
//!
//! ```text
//! pool     = promised + common
//! promised   for each domain that there is, and each group that nobody has claimed yet, in all at most half
//! common     the rest; a client may have a quarter of it on top of what its domains were promised
//! ```
//!
//! So no three clients together can make another one's allocation within a quarter of what is common fail, nor its
//! claim. All is counted in pieces of the pool, which have memory of one client each: so what is promised is there in
//! pieces, however the buffers of others lie.
//!
//! What is left of the memory of a client that has no session any more counts as its group's: see `left_behind`.

use iommu_protocol::status::Refusal;

use crate::addr::PAGE_SIZE;
use crate::policy::collections::ranges::bounds;
use crate::policy::ids::{BufferId, SessionId};
use crate::policy::state::State;
use crate::policy::state::memory::Memory;
use crate::policy::view::Admitted;

/// Bytes of buffers that each domain of a client is promised, if pieces are not larger.
const PROMISED: u64 = 64 << 10;

/// Of what is common, one client may have one part in so many.
const PARTS: u64 = 4;

impl State {
    /// Places that are promised: one for each domain of a client, and one for each group that may be claimed.
    fn places(&self, each: u64, of: u64) -> u64 {
        let groups = u64::try_from(self.machine.groups.len()).unwrap_or(u64::MAX);
        groups.max(self.claimed()).min(of / 2 / each.max(1))
    }

    /// Owners that there are: each has at most one domain.
    fn claimed(&self) -> u64 {
        u64::try_from(self.machine.owners.len()).unwrap_or(u64::MAX)
    }

    /// The most bytes of the pool that a client with so many domains may have.
    pub(in crate::policy) fn share_of(&self, domains: u32) -> u64 {
        let each = self.pool.of(PROMISED);
        let promised = self.places(each, self.pool.capacity) * each;
        let own = u64::from(domains.max(1)).saturating_mul(each);
        own.saturating_add((self.pool.capacity - promised) / PARTS).min(self.pool.capacity)
    }

    /// Bytes of the pieces of the pool in which this memory lies, and no buffer that is charged to a client.
    pub(in crate::policy) fn new_pieces(&self, memory: &Memory) -> u64 {
        let size = self.pool.granule.max(1);
        let charged = |id: BufferId| self.buffers.get(id.0).is_some_and(|buffer| buffer.charged);
        let (mut count, mut counted) = (0_u64, None);
        for segment in memory.segments() {
            let (first, last) = bounds(segment);
            let ends = (first / size, last / size);
            count = count.saturating_add(ends.1 - ends.0).saturating_add(1);
            // Of those in between it has all.
            let both = [Some(ends.0), Some(ends.1).filter(|end| *end != ends.0)];
            for piece in both.into_iter().flatten() {
                let (start, end) = (piece * size, (piece * size).saturating_add(size - 1));
                let whole = first <= start && end <= last;
                if counted == Some(piece) || !whole && self.memory.within(start, end).any(charged) {
                    count -= 1;
                }
            }
            counted = Some(ends.1);
        }
        count.saturating_mul(size)
    }

    /// Refuses unless a client may have so many bytes of the pool more.
    pub(in crate::policy) fn check_buffer_share(
        &self,
        account: u32,
        more: u64,
    ) -> Result<(), Refusal> {
        if more == 0 {
            return Ok(());
        }
        let Some(client) = self.accounts.get(account) else { return Err(Refusal::BadHandle) };
        let left = self.left_behind();
        let after = left.charged(account, client).checked_add(more).ok_or(Refusal::Quota)?;
        if after > self.share_of(client.domains) {
            return Err(Refusal::Quota);
        }
        let each = self.pool.of(PROMISED);
        let promised = after <= u64::from(client.domains).saturating_mul(each);
        let (mut taken, mut short) = (more, 0_u64);
        for (number, other) in self.accounts.iter() {
            taken = taken.saturating_add(other.taken);
            if number != account {
                let promised = u64::from(other.domains).saturating_mul(each);
                let used = left.charged(number, other);
                short = short.saturating_add(promised.saturating_sub(used));
            }
        }
        let unclaimed = self.places(each, self.pool.capacity).saturating_sub(self.claimed()) * each;
        let unclaimed = unclaimed.saturating_sub(left.of_unclaimed(each));
        match taken.checked_add(short).and_then(|all| all.checked_add(unclaimed)) {
            // What a client was promised it has, also when groups have come since that there is nothing left for.
            _ if promised && taken <= self.pool.capacity => Ok(()),
            Some(all) if all <= self.pool.capacity => Ok(()),
            _ => Err(Refusal::NoMemory),
        }
    }

    /// Refuses unless a client that has so many domains may have one more: units may know few tags.
    pub(in crate::policy) fn check_tag_share(&self, domains: u32) -> Result<(), Refusal> {
        let last = self.machine.last_tag();
        let all = self.tags.count(last);
        let taken = u64::try_from(self.domains.len()).unwrap_or(u64::MAX);
        let free = all.saturating_sub(taken);
        let unclaimed = self.places(1, all).saturating_sub(self.claimed());
        if domains == 0 || (u64::from(domains) < all / PARTS && free > unclaimed) {
            Ok(())
        } else {
            Err(Refusal::Quota)
        }
    }

    /// See [`crate::policy::Registry::admit_within`].
    pub(in crate::policy) fn admit_within(
        &self,
        session: SessionId,
        length: u64,
    ) -> Result<Admitted, Refusal> {
        let session = self.usable(session)?;
        if length == 0 {
            return Err(Refusal::Range);
        }
        if !length.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::Alignment);
        }
        let account = self.accounts.get(session.client).ok_or(Refusal::BadHandle)?;
        let quotas = &self.machine.config.quotas;
        let memory = account.memory.checked_add(length).ok_or(Refusal::Quota)?;
        if memory > quotas.memory
            || account.buffers >= quotas.buffers
            || account.mappings >= quotas.mappings
        {
            return Err(Refusal::Quota);
        }
        self.buffers.next().and(self.slots.next()).ok_or(Refusal::NoMemory)?;
        Ok(Admitted { confined: session.domain.is_some(), account: session.client })
    }
}
