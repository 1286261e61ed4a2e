//! Which functions are driven, noted where it outlives the server.
//!
//! A function is driven from the attach that lets it into its owner's domain until the detach that says it
//! is quiet. When the server dies in between, what the function was told to do may be under way, with
//! addresses of a domain that is about to go. The next server must not give it back to policy: under
//! `compat` a write to such an address would land at the physical address of the same number.
//!
//! ```text
//! attach   noted -> entry written           a note too many cuts a device off that did nothing yet
//! detach   entry is policy's again -> note taken back
//! death    the note stays; Server::start_after cuts the function off before any unit translates
//! ```

use alloc::boxed::Box;
use alloc::collections::BTreeSet;

use iommu_protocol::{PciAddress, Refusal};

use crate::hw::{BufferMemory, Unit};
use crate::policy::{Event, SessionId};
use crate::server::Server;
use crate::topology::tags::TagRecord;

/// Where notes are kept: memory or a file that the death of the process leaves as it is.
pub trait Notes {
    /// Notes that a function is driven, or no longer. What is noted when this returns is what the next
    /// server finds. False when there is no room for it.
    fn set(&mut self, function: PciAddress, driven: bool) -> bool;

    /// Notes which tags units may hold, in place of what was noted of them before. The next server finds one or the
    /// other, never a mixture. Without room nothing is noted: then it takes all tags for held.
    fn set_tags(&mut self, tags: TagRecord);

    /// Notes in the same place, for a checkpoint of the server in tests; `None` where that makes no sense.
    fn copy(&self) -> Option<Box<dyn Notes>> {
        None
    }
}

/// The functions that are noted.
#[derive(Default)]
pub struct Driven {
    noted: BTreeSet<PciAddress>,
    notes: Option<Box<dyn Notes>>,
    /// What is noted of tags, if anything is.
    tags: Option<TagRecord>,
}

impl Clone for Driven {
    fn clone(&self) -> Self {
        let notes = self.notes.as_ref().and_then(|notes| notes.copy());
        Self { noted: self.noted.clone(), notes, tags: self.tags }
    }
}

impl Driven {
    /// Goes on from what earlier servers noted. `Driven::default()` notes nothing anywhere.
    #[must_use]
    pub fn new(found: impl IntoIterator<Item = PciAddress>, notes: Box<dyn Notes>) -> Self {
        Self { noted: found.into_iter().collect(), notes: Some(notes), tags: None }
    }

    /// With what the server before noted of tags. Without this, or with `None`, a unit that is found translating may
    /// hold any.
    #[must_use]
    pub fn after(self, tags: Option<TagRecord>) -> Self {
        Self { tags, ..self }
    }

    pub(super) const fn tags(&self) -> Option<TagRecord> {
        self.tags
    }

    pub(super) fn note_tags(&mut self, tags: TagRecord) {
        if let Some(notes) = &mut self.notes
            && self.tags != Some(tags)
        {
            notes.set_tags(tags);
            self.tags = Some(tags);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PciAddress> + '_ {
        self.noted.iter().copied()
    }

    fn note(&mut self, function: PciAddress) -> Result<(), Refusal> {
        let Some(notes) = &mut self.notes else { return Ok(()) };
        if self.noted.contains(&function) {
            return Ok(());
        }
        if !notes.set(function, true) {
            return Err(Refusal::NoMemory);
        }
        self.noted.insert(function);
        Ok(())
    }

    fn forget(&mut self, function: PciAddress) {
        if self.noted.remove(&function)
            && let Some(notes) = &mut self.notes
        {
            notes.set(function, false);
        }
    }
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Before an event is decided: what it may let into an owner's domain is noted.
    ///
    /// # Errors
    /// `NoMemory`.
    pub(super) fn note_before(&mut self, event: &Event) -> Result<(), Refusal> {
        let Event::Attach(session) = event else { return Ok(()) };
        match self.device_of(*session) {
            Some(function) => self.driven.note(function),
            None => Ok(()),
        }
    }

    /// After an event was carried out, refused or undone: notes that no longer hold are taken back.
    pub(super) fn settle_after(&mut self, event: &Event) {
        match event {
            Event::Attach(session) | Event::Detach(session) => {
                if let Some(function) = self.device_of(*session) {
                    self.settle(function);
                }
            }
            Event::FunctionRemoved(_) => {
                let noted: alloc::vec::Vec<_> = self.driven.iter().collect();
                noted.into_iter().for_each(|function| self.settle(function));
            }
            _ => {}
        }
    }

    /// Takes the note of a function back if the function is neither attached nor cut off.
    pub(super) fn settle(&mut self, function: PciAddress) {
        let driven = self.registry.function(function).is_some_and(|view| {
            let attached = |session| self.registry.session(session).is_some_and(|s| s.attached);
            view.cut || view.session.is_some_and(attached)
        });
        if !driven {
            self.driven.forget(function);
        }
    }

    fn device_of(&self, session: SessionId) -> Option<PciAddress> {
        self.registry.session(session).map(|view| view.address)
    }
}
