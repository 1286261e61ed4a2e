//! Shares of limited resources: memory of buffers, and domain tags. (Frames of tables: `engine::budget`.)
//!
//! ```text
//! pool     = promised + common
//! promised   for each domain, and for each group that is not claimed yet; at most half in all
//! common     the rest; a client may have a quarter of it in addition to the promises of its domains
//! ```
//!
//! Where half of the pool is too little for a promise to each group, a client has promises for a quarter of them at
//! most, and for one at least, and a quarter of the pool in all: the domains of one client take no other's.
//!
//! So three clients together cannot make another client's claim fail, nor its allocation within a quarter of the
//! common part.
//! All is counted in pieces of the pool, and each piece has memory of one client only. So a promise is there in
//! pieces, wherever the buffers of other clients lie.
//!
//! Memory of devices that a client gave up counts as that of their groups: see `left_behind`.

use iommu_protocol::status::Refusal;

use crate::addr::PAGE_SIZE;
use crate::policy::collections::ranges::bounds;
use crate::policy::ids::{BufferId, SessionId};
use crate::policy::state::State;
use crate::policy::state::memory::Memory;
use crate::policy::state::objects::Buffer;
use crate::policy::view::Admitted;

/// Bytes of buffers that each domain of a client is promised, if the granule is not larger.
const PROMISED: u64 = 64 << 10;

/// One client may have this fraction (1/4) of the common part.
const PARTS: u64 = 4;

impl State {
    /// Places that are promised: one for each domain of a client, and one for each group that may be claimed. They
    /// take at most half.
    fn places(&self, each: u64, of: u64) -> u64 {
        self.wanted_places().min(of / 2 / each.max(1))
    }

    /// One for each group, and for each owner whose devices are all gone.
    fn wanted_places(&self) -> u64 {
        u64::try_from(self.claimable()).unwrap_or(u64::MAX)
    }

    /// Groups that are claimed or may be, and owners whose devices are all gone.
    pub(in crate::policy) fn claimable(&self) -> usize {
        let orphans = self.machine.owners.iter().filter(|(_, owner)| owner.groups.is_empty());
        self.machine.groups.len() + orphans.count()
    }

    /// Bytes that a client with this many domains is promised.
    fn promise_of(&self, domains: u32, places: u64, each: u64) -> u64 {
        let domains = u64::from(domains);
        let most = if places < self.wanted_places() { (places / PARTS).max(1) } else { u64::MAX };
        domains.min(most).saturating_mul(each)
    }

    /// Bytes that a client with this many domains is promised, and bytes for each of them.
    pub(super) fn buffer_promise(&self, domains: u32) -> (u64, u64) {
        let each = self.pool.of(PROMISED);
        (self.promise_of(domains, self.places(each, self.pool.capacity), each), each)
    }

    /// Number of owners: each has at most one domain.
    fn claimed(&self) -> u64 {
        u64::try_from(self.machine.owners.len()).unwrap_or(u64::MAX)
    }

    /// The most bytes of the pool that a client with this many domains may have.
    pub(in crate::policy) fn share_of(&self, domains: u32) -> u64 {
        let each = self.pool.of(PROMISED);
        let places = self.places(each, self.pool.capacity);
        let own = self.promise_of(domains.max(1), places, each);
        let common = self.pool.capacity - places * each;
        let most = if places < self.wanted_places() { PARTS } else { 1 };
        // Each may have one piece, however few there are.
        let limit = (self.pool.capacity / most).max(each.min(self.pool.capacity));
        own.saturating_add(common / PARTS).min(limit)
    }

    /// Bytes of those pieces of the pool in which this memory lies and no charged buffer does.
    pub(in crate::policy) fn new_pieces(&self, memory: &Memory) -> u64 {
        let size = self.pool.granule.max(1);
        let charged = |id: BufferId| self.buffers.get(id.0).is_some_and(|buffer| buffer.charged);
        let (mut count, mut counted) = (0_u64, None);
        for segment in memory.segments() {
            let (first, last) = bounds(segment);
            let ends = (first / size, last / size);
            count = count.saturating_add(ends.1 - ends.0).saturating_add(1);
            // The memory fills the pieces in between.
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

    /// Charges a buffer that was refused, and whose memory a unit may still reach, to its client. The pool has that
    /// memory no more: without a charge, others would be promised what is not there.
    pub(in crate::policy) fn charge_unproved(&mut self, buffer: &mut Buffer) {
        let pieces = self.new_pieces(&buffer.memory);
        if let Some(account) = self.accounts.get_mut(buffer.client) {
            account.memory = account.memory.saturating_add(buffer.length);
            account.taken = account.taken.saturating_add(pieces);
            buffer.charged = true;
        }
    }

    /// Refuses unless a client may have this many more bytes of the pool.
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
        let places = self.places(each, self.pool.capacity);
        let own = self.promise_of(client.domains, places, each);
        let promised = after <= own;
        let (mut taken, mut short, mut given) = (more, 0_u64, own);
        for (number, other) in self.accounts.iter() {
            taken = taken.saturating_add(other.taken);
            if number != account {
                let promise = self.promise_of(other.domains, places, each);
                given = given.saturating_add(promise);
                short = short.saturating_add(promise.saturating_sub(left.charged(number, other)));
            }
        }
        // An owner without a domain has no promise, and needs none.
        let claimed = self.claimed().saturating_mul(each);
        let given = if places < self.wanted_places() { given } else { claimed };
        let unclaimed = places.saturating_mul(each).saturating_sub(given);
        let unclaimed = unclaimed.saturating_sub(left.of_unclaimed(each));
        match taken.checked_add(short).and_then(|all| all.checked_add(unclaimed)) {
            // A client has what it was promised, even when too little is left for groups that came since.
            _ if promised && taken <= self.pool.capacity => Ok(()),
            Some(all) if all <= self.pool.capacity => Ok(()),
            _ => Err(Refusal::NoMemory),
        }
    }

    /// Refuses unless a client with this many domains may have one more: units may know few tags.
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

#[cfg(test)]
mod tests;
