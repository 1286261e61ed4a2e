//! Functions that come and go while the server runs: configuration space is walked again, and what differs from what
//! is known becomes events. Whatever tells of a change is only a hint to do so: an event of the kernel, a write to
//! `rescan`, a claim of a function that is not known.

mod survey;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use iommu_protocol::PciAddress;

use crate::hw::{BufferMemory, Unit};
use crate::server::Server;
use crate::topology::pci::PciFunction;

pub(super) use survey::Survey;
pub use survey::{Discovery, Rescanned};

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Looks for functions in this way from now on. Without it there is no [`Server::rescan`].
    pub fn discover_with(&mut self, discovery: Box<dyn Discovery>) {
        self.survey.discovery = Some(discovery);
    }

    /// Walks configuration space and carries out what has changed: functions that are gone, or are not what they
    /// were, are cut off; then new ones are put under policy. One that cannot be taken in stays denied, is told in
    /// `status`, and tried again at the next walk. `None` when no walk can be made.
    pub fn rescan(&mut self) -> Option<Rescanned> {
        self.survey.change();
        self.walk()
    }

    fn walk(&mut self) -> Option<Rescanned> {
        // A machine has functions: when none answers they cannot be read now, and none of them is taken for gone.
        let found = self.survey.discovery.as_mut()?.walk().filter(|found| !found.is_empty())?;
        let removed = self.remove_all_but(&found);
        let added = self.add_all(&found);
        let done = Rescanned { added, removed };
        if done != Rescanned::default() {
            log::info!("functions: {added} new, {removed} gone");
        }
        self.survey.last = Some(done);
        Some(done)
    }

    fn remove_all_but(&mut self, found: &[PciFunction]) -> usize {
        let found: BTreeMap<_, _> = found.iter().map(|found| (found.address, found)).collect();
        let known: Vec<PciAddress> = self.registry.functions().collect();
        let before = known.len();
        for address in known {
            // What was behind one that is gone went with it.
            let Some(view) = self.registry.function(address) else { continue };
            if found.get(&address) != Some(&&view.function) {
                self.function_gone(address);
            }
        }
        before - self.registry.functions().count()
    }

    fn add_all(&mut self, found: &[PciFunction]) -> usize {
        self.survey.missed.clear();
        let mut added = 0;
        for function in found {
            if self.registry.function(function.address).is_some() {
                continue;
            }
            match self.function_arrived(*function) {
                Ok(()) => added += 1,
                Err(refusal) => {
                    log::warn!("{}: not taken in, stays blocked: {refusal}", function.address);
                    self.survey.missed.push((function.address, refusal));
                }
            }
        }
        added
    }

    /// Whether a function that was not known is there after all, and known now.
    pub(super) fn has_appeared(&mut self, address: PciAddress) -> bool {
        if self.registry.function(address).is_some() || self.survey.in_vain.contains(&address) {
            return false;
        }
        // One look before a walk: a client that claims what is nowhere must not make everybody wait.
        if !self.survey.discovery.as_mut().is_some_and(|discovery| discovery.answers(address)) {
            return false;
        }
        self.walk();
        let appeared = self.registry.function(address).is_some();
        if !appeared {
            self.survey.in_vain.insert(address);
        }
        appeared
    }

    /// The text of `rescan`.
    pub(super) fn survey_text(&self, out: &mut String) -> fmt::Result {
        match self.survey.last {
            None => writeln!(out, "last walk: at start")?,
            Some(Rescanned { added, removed }) => {
                writeln!(out, "last walk: {added} new, {removed} gone")?;
            }
        }
        for (device, refusal) in &self.survey.missed {
            writeln!(out, "not taken in: {device}: {refusal}")?;
        }
        Ok(())
    }
}
