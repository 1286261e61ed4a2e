//! Functions that come and go while the server runs. Configuration space is walked again, and differences become
//! events. Every report of a change is only a hint to walk: an event of the kernel, a write to `rescan`, a claim of
//! an unknown function.
//!
//! A device that is at work must not be taken for gone, nor for another one. Under `compat` its requests would land
//! at the physical addresses that equal its I/O virtual ones. `compare` decides on both.

mod compare;
mod survey;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use iommu_protocol::{PciAddress, Refusal};

use crate::hw::{BufferMemory, Unit};
use crate::server::Server;
use crate::topology::pci::PciFunction;

use compare::is_behind;
pub(super) use survey::Survey;
pub use survey::{Discovery, Rescanned};

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Sets the way in which functions are found. Without one [`Server::rescan`] returns `None`.
    pub fn discover_with(&mut self, discovery: Box<dyn Discovery>) {
        self.survey.discovery = Some(discovery);
    }

    /// Walks configuration space and carries out all changes. Functions that are gone or were replaced are cut off;
    /// then new ones are put under policy. A function that cannot be added stays denied, is shown in `status`, and is
    /// tried again at the next walk. A function in use that is missed is looked for again in [`Server::tick`]. `None`
    /// when no walk can be made.
    pub fn rescan(&mut self) -> Option<Rescanned> {
        self.survey.change();
        self.walk()
    }

    fn walk(&mut self) -> Option<Rescanned> {
        // A machine has functions. When none is found they cannot be read now, and none of them is taken for gone.
        let found = self.survey.discovery.as_mut()?.walk().filter(|found| !found.is_empty())?;
        self.survey.begin();
        let removed = self.remove_gone(&found);
        let added = self.add_all(&found);
        let done = Rescanned { added, removed };
        if done != Rescanned::default() {
            log::info!("functions: {added} new, {removed} gone");
        }
        self.survey.last = Some(done);
        Some(done)
    }

    fn remove_gone(&mut self, found: &[PciFunction]) -> usize {
        let before = self.registry.functions().count();
        let gone = self.find_gone(found);
        self.functions_gone(gone);
        before - self.registry.functions().count()
    }

    /// Walks again when it is time to: a function was missed, or one that has changed is free.
    pub(super) fn look_again(&mut self) {
        if !self.survey.is_time() {
            return;
        }
        let is_free = |function: &PciFunction| self.registry.is_at_rest(function.address);
        if self.survey.missing || self.survey.kept.iter().any(is_free) {
            self.walk();
        }
    }

    fn add_all(&mut self, found: &[PciFunction]) -> usize {
        let is_new = |function: &&PciFunction| self.registry.function(function.address).is_none();
        let new = found.iter().filter(is_new).copied();
        let changing = self.changing_bridges();
        let (waiting, ready): (Vec<_>, Vec<_>) =
            new.partition(|function| changing.iter().any(|bridge| is_behind(function, bridge)));
        let mut missed = self.functions_arrived(&ready);
        let added = ready.len() - missed.len();
        missed.extend(waiting.iter().map(|function| (function.address, Refusal::Busy)));
        for (address, refusal) in &missed {
            log::warn!("{address}: not taken in, stays blocked: {refusal}");
        }
        self.survey.missed = missed;
        added
    }

    /// Whether an unknown function is present after all, and known now.
    pub(super) fn has_appeared(&mut self, address: PciAddress) -> bool {
        if self.registry.function(address).is_some() || self.survey.in_vain.contains(&address) {
            return false;
        }
        // One look before a walk: a client that claims an absent function must not make everybody wait.
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
        for device in &self.survey.absent {
            writeln!(out, "not found: {device}: looked for again")?;
        }
        for device in &self.survey.kept {
            writeln!(out, "changed: {}: taken over when it is free", device.address)?;
        }
        for (device, refusal) in &self.survey.missed {
            writeln!(out, "not taken in: {device}: {refusal}")?;
        }
        Ok(())
    }
}
