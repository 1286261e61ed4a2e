//! I4 and I8 at every instant of an event: addresses that devices reach, and addresses that they no longer reach.

use super::act::{Act, Answer};
use super::check::{Broken, Event, Invariant, broken, where_to};
use super::history::device_of;
use super::ledger::{Ledger, Unit};
use super::scene::{BESIDE, BUFFERS, Device};

impl Event<'_> {
    /// Whether a refused request may have let a device reach this memory, because a unit failed on the way. Either
    /// memory was being mapped for the client's own device, from a buffer of no other client. Or the device was
    /// returning to policy. Such memory is kept, or not reused before it is unreachable.
    fn was_to_be_granted(&self, device: Device, (iova, physical): (u64, u64)) -> bool {
        let own_failed = self.after.unit(self.scene, device) == Some(Unit::Failed);
        // One domain may span two units. If one unit fails, the request is refused, but the mapping was entered for
        // both.
        let some_failed = self.before.units != self.after.units;
        if !own_failed && !some_failed {
            return false;
        }
        if !(BUFFERS.0..BUFFERS.0 + BUFFERS.1).contains(&physical) {
            if !own_failed {
                return false;
            }
            let mut fine = self.scene.policy(device, &[]);
            fine.extend(
                (0..self.scene.functions.len()).filter_map(|at| self.scene.reserved_of(at)),
            );
            return where_to(&fine, iova).any(|to| to == physical);
        }
        let owner = self.before.owner(self.scene, self.scene.functions[device].group);
        let others = |ledger: &Ledger| {
            let mut others = ledger.memory_of_others([owner, None]);
            others.any(|(start, length)| (start..start + length).contains(&physical))
        };
        owner == Some(self.client) && !others(self.before) && !others(self.after)
    }

    /// Whether an address leads to the same memory before and after the event, and therefore at every instant in
    /// between. Either the same session drives the device throughout. Or the device has no driver, and the event does
    /// not concern its group.
    fn goes_on(&self, device: Device, iova: u64) -> bool {
        let well = |ledger: &Ledger| {
            let unit = self.scene.functions[device].unit;
            unit.is_some_and(|unit| ledger.units[unit] == Unit::Up && !ledger.troubled[unit])
        };
        let of = |ledger: &Ledger| ledger.driver(device).map(|session| session.handle);
        if !well(self.before) || !well(self.after) || of(self.before) != of(self.after) {
            return false;
        }
        // A mapping may be interrupted if its owner asked to end it, or if it is undone because a unit fails.
        let own = self.before.driver(device).is_some_and(|session| session.client == self.client);
        let undone = matches!(self.answer, Some(Answer::Refused(_)))
            || self.before.units != self.after.units;
        // So may policy's mapping of unused memory while the server takes that memory.
        let free = self.scene.takes && (BUFFERS.0..BESIDE).contains(&iova);
        if own && undone || free {
            return false;
        }
        let group = self.scene.functions[device].group;
        let touched = match self.act {
            Act::Added(at) | Act::Removed(at) | Act::Reset(at) => {
                self.scene.functions[at].group == group
            }
            Act::Die(client) => self.before.owner(self.scene, group) == Some(client),
            act => device_of(act).is_some_and(|at| self.scene.functions[at].group == group),
        };
        let leads = |ledger: &Ledger| {
            let reach = ledger.reach(self.scene, device).unwrap_or_default();
            where_to(&reach, iova).next()
        };
        let (was, is) = (leads(self.before), leads(self.after));
        (of(self.before).is_some() || !touched) && is.is_some() && was == is
    }

    /// I4: any memory that a device reached during the event was granted before or after it. I8: an address that
    /// stays reachable was reachable throughout.
    pub(super) fn instants(&self) -> Result<(), Broken> {
        for seen in self.seen {
            let source = |device: &Device| {
                self.scene.source(*device) == seen.glimpse.source
                    && self.scene.functions[*device].unit == Some(seen.glimpse.unit)
            };
            let devices = 0..self.scene.functions.len();
            let Some(device) = devices.clone().find(|device| source(device)) else { continue };
            let iova = seen.glimpse.iova;
            let mut granted = Vec::new();
            for ledger in [self.before, self.after] {
                if let Some(reach) = ledger.reach(self.scene, device) {
                    granted.extend(where_to(&reach, iova));
                }
            }
            if self.before.unit(self.scene, device) != Some(Unit::Down) {
                granted.extend(where_to(&self.was[device].reach, iova));
            }
            if self.after.unit(self.scene, device) == Some(Unit::Failed) {
                granted.extend(where_to(&self.is[device].reach, iova));
            }
            let at = |did: &str| {
                format!(
                    "at step {} of {:?} D{} {did} at {iova:#x}",
                    seen.step,
                    self.act,
                    device + 1
                )
            };
            match seen.physical {
                Some(physical) if granted.contains(&physical) => {}
                Some(physical) if !self.was_to_be_granted(device, (iova, physical)) => {
                    return Err(broken(Invariant::I4, at(&format!("reached {physical:#x}"))));
                }
                None if self.goes_on(device, iova) && !self.lacks_or_lacked_memory(device) => {
                    return Err(broken(Invariant::I8, at("was denied")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
