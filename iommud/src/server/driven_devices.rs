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
//! removal  the note stays until a different function is seen at the address: a walk may have missed one at work
//! ```

mod driven;

use iommu_protocol::{PciAddress, Refusal};

use crate::hw::{BufferMemory, Unit};
use crate::policy::{Event, SessionId};
use crate::server::Server;

pub use driven::{Driven, Notes};

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
            Event::Frugally(event) => self.settle_after(event),
            Event::Attach(session) | Event::Detach(session) => {
                if let Some(function) = self.device_of(*session) {
                    self.settle(function);
                }
            }
            _ => {}
        }
    }

    /// Takes the note of a function back if the function is neither attached nor unquiesced, and was not when it went.
    pub(super) fn settle(&mut self, function: PciAddress) {
        if !self.registry.may_be_driven(function) {
            self.driven.forget(function);
        }
    }

    fn device_of(&self, session: SessionId) -> Option<PciAddress> {
        self.registry.session(session).map(|view| view.address)
    }
}
