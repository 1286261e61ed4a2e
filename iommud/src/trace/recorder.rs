//! What the server calls: it records if there is a ring.

use iommu_protocol::status::Refusal;

use super::encode::Traced;
use super::fact::Fact;
use super::record::{State, Status};
use super::ring::Ring;
use crate::policy::{Plan, Refused};

/// Records into a ring, if there is one.
#[derive(Debug, Default)]
pub struct Recorder(Option<Ring>);

/// A checkpoint of a server records nothing: a ring has one writer.
impl Clone for Recorder {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl From<Ring> for Recorder {
    fn from(ring: Ring) -> Self {
        Self(Some(ring))
    }
}

impl Recorder {
    /// The ring.
    pub const fn ring(&mut self) -> Option<&mut Ring> {
        self.0.as_mut()
    }

    /// Records that a request is about to be decided.
    #[inline]
    pub fn begin(&mut self, request: &impl Traced) {
        if let Some(ring) = &mut self.0 {
            request.begin(ring);
        }
    }

    /// Records that the plan of the request was carried out.
    #[inline]
    pub fn committed<R: Traced>(&mut self, request: &R, plan: &Plan<R::Outcome>) {
        let Some(ring) = &mut self.0 else { return };
        let (value, item) = match R::value(plan.outcome()) {
            Some(value) => value,
            None => (request.addresses(plan.orders(), ring), 0),
        };
        let steps = u16::try_from(plan.orders().steps().len() & 0xffff).unwrap_or(0);
        let status = Status { state: State::Committed, refusal: 0, steps, item };
        ring.end(value, status.to_bits());
    }

    /// Records that policy refused the request.
    #[cold]
    pub fn refused(&mut self, refused: Refused) {
        let Refused { refusal, item } = refused;
        let status = Status { refusal: refusal.code(), item, ..Status::new(State::Refused) };
        if let Some(ring) = &mut self.0 {
            ring.end(0, status.to_bits());
        }
    }

    /// Records that a step of the plan failed.
    #[cold]
    pub fn undone<T>(&mut self, plan: &Plan<T>, refusal: Refusal, unproved: bool) {
        let state = if unproved { State::Quarantined } else { State::Undone };
        let steps = u16::try_from(plan.orders().steps().len() & 0xffff).unwrap_or(0);
        // A replay takes this outcome from the file. So it stands there twice, and a bit of it that changed is noticed.
        let status = Status { refusal: refusal.code(), steps, ..Status::new(state) }.to_bits();
        if let Some(ring) = &mut self.0 {
            ring.end(!status, status);
        }
    }

    /// Records a fact.
    pub fn fact(&mut self, fact: &Fact) {
        if let Some(ring) = &mut self.0 {
            fact.write(ring);
        }
    }

    /// Sets the time of the records from now on, in milliseconds.
    pub fn set_time(&mut self, milliseconds: u32) {
        if let Some(ring) = &mut self.0 {
            ring.set_time(milliseconds);
        }
    }
}
