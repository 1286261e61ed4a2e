//! Functions that come and go while the server runs: configuration space is walked again, and what differs from what
//! is known becomes events. Whatever tells of a change is only a hint to do so: an event of the kernel, a write to
//! `rescan`, a claim of a function that is not known.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use iommu_protocol::{PciAddress, Refusal};

use crate::hw::{BufferMemory, Unit};
use crate::server::Server;
use crate::topology::pci::PciFunction;

/// Configuration space as it is now.
pub trait Discovery {
    /// Every function, bridges before what is behind them; `None` when they cannot be listed now.
    fn walk(&mut self) -> Option<Vec<PciFunction>>;

    /// Whether a function answers at an address.
    fn answers(&mut self, address: PciAddress) -> bool;

    /// The same, for a checkpoint of the server in tests; `None` where that makes no sense.
    fn copy(&self) -> Option<Box<dyn Discovery>> {
        None
    }
}

/// What came of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescanned {
    /// Functions that are new. One that is another than before counts here and among those that are gone.
    pub added: usize,
    /// Functions that are gone, with what was behind them.
    pub removed: usize,
}

/// How functions are found, and what came of it.
#[derive(Default)]
pub(super) struct Survey {
    discovery: Option<Box<dyn Discovery>>,
    last: Option<Rescanned>,
    /// Functions that are there and could not be taken in. Their entries deny.
    missed: Vec<(PciAddress, Refusal)>,
}

impl Clone for Survey {
    fn clone(&self) -> Self {
        let discovery = self.discovery.as_ref().and_then(|discovery| discovery.copy());
        Self { discovery, last: self.last, missed: self.missed.clone() }
    }
}

impl Survey {
    pub(super) fn missed(&self) -> &[(PciAddress, Refusal)] {
        &self.missed
    }
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Looks for functions in this way from now on. Without it there is no [`Server::rescan`].
    pub fn discover_with(&mut self, discovery: Box<dyn Discovery>) {
        self.survey.discovery = Some(discovery);
    }

    /// Walks configuration space and carries out what has changed: functions that are gone, or are not what they
    /// were, are cut off; then new ones are put under policy. One that cannot be taken in stays denied, is told in
    /// `status`, and tried again at the next walk. `None` when no walk can be made.
    pub fn rescan(&mut self) -> Option<Rescanned> {
        let found = self.survey.discovery.as_mut()?.walk()?;
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
        if self.registry.function(address).is_some() {
            return false;
        }
        // One look before all others: who asks for what is nowhere does not have everything walked.
        let answers = self.survey.discovery.as_mut().is_some_and(|d| d.answers(address));
        answers && self.rescan().is_some() && self.registry.function(address).is_some()
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
