//! Shares of what clients use up: memory of buffers, and domain tags. (Frames of tables: `engine::budget`.)
//!
//! ```text
//! pool     = promised + common
//! promised   for each domain that there is, and each group that nobody has claimed yet, in all at most half
//! common     the rest; a client may have a quarter of it on top of what its domains were promised
//! ```
//!
//! So no three clients together can make another one's allocation within a quarter of what is common fail, nor its
//! claim.

use iommu_protocol::status::Refusal;

use crate::policy::ids::SessionId;
use crate::policy::pool::Pool;
use crate::policy::registry::Registry;
use crate::policy::units::last_tag;

/// Bytes of buffers that each domain of a client is promised, if pieces are not larger.
const PROMISED: u64 = 64 << 10;

/// Of what is common, one client may have one part in so many.
const PARTS: u64 = 4;

impl Registry {
    /// Says how much memory there is for buffers, in use or not, and in pieces of how many bytes, both in bytes. Without
    /// it there is as much as anybody asks for.
    pub fn set_buffer_pool(&mut self, capacity: u64, granule: u64) {
        self.pool = Pool { capacity, granule };
    }

    /// Whether less than one part in so many of the memory for buffers is free.
    #[must_use]
    pub fn pool_is_below(&self, parts: u64) -> bool {
        let taken = self.accounts.iter().map(|(_, account)| account.taken);
        let taken = taken.fold(0, u64::saturating_add);
        self.pool.capacity.saturating_sub(taken) < self.pool.capacity / parts.max(1)
    }

    /// Whether a session is refused a buffer of `length` bytes for lack of memory for buffers alone.
    pub fn lacks_pool(&mut self, session: SessionId, length: u64) -> bool {
        if self.admit_buffer(session, length).is_ok() {
            return false;
        }
        let pool = core::mem::take(&mut self.pool);
        let admitted = self.admit_buffer(session, length).is_ok();
        self.pool = pool;
        admitted
    }

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
    pub(super) fn share_of(&self, domains: u32) -> u64 {
        let each = self.pool.of(PROMISED);
        let promised = self.places(each, self.pool.capacity) * each;
        let own = u64::from(domains.max(1)).saturating_mul(each);
        own.saturating_add((self.pool.capacity - promised) / PARTS).min(self.pool.capacity)
    }

    /// Refuses unless a client may have so many bytes of buffers more.
    pub(super) fn check_buffer_share(&self, account: u32, length: u64) -> Result<(), Refusal> {
        let more = self.pool.of(length);
        let Some(client) = self.accounts.get(account) else { return Err(Refusal::BadHandle) };
        let after = client.taken.checked_add(more).ok_or(Refusal::Quota)?;
        if after > self.share_of(client.domains) {
            return Err(Refusal::Quota);
        }
        let each = self.pool.of(PROMISED);
        let (mut taken, mut short) = (more, 0_u64);
        for (number, other) in self.accounts.iter() {
            taken = taken.saturating_add(other.taken);
            if number != account {
                let promised = u64::from(other.domains).saturating_mul(each);
                short = short.saturating_add(promised.saturating_sub(other.taken));
            }
        }
        let unclaimed = self.places(each, self.pool.capacity).saturating_sub(self.claimed()) * each;
        match taken.checked_add(short).and_then(|all| all.checked_add(unclaimed)) {
            Some(all) if all <= self.pool.capacity => Ok(()),
            _ => Err(Refusal::NoMemory),
        }
    }

    /// Refuses unless a client that has so many domains may have one more: units may know few tags.
    pub(super) fn check_tag_share(&self, domains: u32) -> Result<(), Refusal> {
        let last = last_tag(&self.machine);
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
}
