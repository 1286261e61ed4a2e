//! Notes which functions are driven, in a place that outlives the server.
//!
//! A function is driven from the attach that moves it into its owner's domain until the detach that states that it is
//! quiet. When the server dies in between, requests of the function may be under way, with addresses of a domain that
//! is about to end. The next server must not give the function back to policy. Under `compat` a write to such an
//! address would land at the physical address of the same number.
//!
//! ```text
//! attach   noted -> entry written           one note too many cuts off a device that has done nothing yet
//! detach   entry back under policy -> note removed
//! death    the note stays; Server::start_after cuts the function off before any unit translates
//! removal  the note stays until a different function is seen at the address: a walk may miss a device at work
//! ```

mod driven;

use iommu_protocol::{PciAddress, Refusal};

use crate::hw::{BufferMemory, Unit};
use crate::policy::{Event, SessionId};
use crate::server::Server;

pub use driven::{Driven, Notes};

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Before an event is decided, notes the function that it may move into an owner's domain.
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

    /// After an event was carried out, refused or undone, removes notes that no longer hold.
    pub(super) fn settle_after(&mut self, event: &Event) {
        if let Event::Attach(session) | Event::Detach(session) = event
            && let Some(function) = self.device_of(*session)
        {
            self.settle(function);
        }
    }

    /// Removes the note of a function that is neither attached nor unquiesced, and was not when it was removed.
    pub(super) fn settle(&mut self, function: PciAddress) {
        if !self.registry.may_be_driven(function) {
            self.driven.forget(function);
        }
    }

    fn device_of(&self, session: SessionId) -> Option<PciAddress> {
        self.registry.session(session).map(|view| view.address)
    }
}
