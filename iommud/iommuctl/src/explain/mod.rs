//! A fault as sentences: who, what, where, why, what usually causes it, and what to try.

mod cause;
mod stage;
mod words;

pub use cause::Cause;
pub use stage::Stage;

use std::fmt::Write as _;

use iommu_protocol::fault::FaultAccess;
use serde_json::{Value, json};

use crate::names;
use crate::server::domain::Domain;
use crate::server::fault::Fault;
use crate::server::machine::Machine;
use crate::tree;

/// A fault, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The fault.
    pub fault: Fault,
    /// Its device in words.
    pub device: String,
    /// Its owner in words.
    pub owner: Option<String>,
    /// What the place says.
    pub cause: Cause,
}

/// Explains a fault by what the server says now. The domain may have changed since the fault.
#[must_use]
pub fn explain(fault: &Fault, machine: &Machine, domains: &[Domain]) -> Explained {
    let device = match machine.source(fault.device) {
        Some(known) if known.address() == fault.device => tree::title(known),
        Some(known) => format!("a bridge in front of {}", names::address(known.address())),
        None => "no known device".to_owned(),
    };
    let owner = machine.source(fault.device).and_then(|known| known.owner.as_deref());
    let owner = owner.map(|owner| tree::owner_words(owner, &tree::process_name));
    Explained { fault: fault.clone(), device, owner, cause: Cause::of(fault, machine, domains) }
}

impl Explained {
    /// What happened, in one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Fault { device, words, .. } = &self.fault;
        let device = format!("{} ({})", names::address(*device), self.device);
        match self.cause {
            Cause::Notice | Cause::Unit => format!("{device}: {words}."),
            Cause::InterruptRequest => {
                format!("{device} tried to raise an interrupt and was stopped: {words}.")
            }
            _ => format!("{device} {}{} and was stopped: {words}.", self.tried(), self.at()),
        }
    }

    const fn tried(&self) -> &'static str {
        match self.fault.access {
            FaultAccess::Read => "tried to read memory",
            FaultAccess::Write => "tried to write memory",
            FaultAccess::Unknown => "tried to reach memory",
        }
    }

    fn at(&self) -> String {
        match self.fault.address {
            // VT-d records the page only (VT-d 4.1 section 11.4.7.6).
            Some(page) if page.is_multiple_of(4096) => format!(" in the page at {page:#x}"),
            Some(address) => format!(" at {address:#x}"),
            None => String::new(),
        }
    }

    /// What is known of the place.
    #[must_use]
    pub fn place(&self) -> Option<String> {
        words::place(&self.cause, self.owner.as_deref().unwrap_or("its owner"))
    }

    /// What usually causes it, and what to try.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        words::advice(&self.cause)
    }

    /// All of it, as lines.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("#{} {}\n", self.fault.sequence, self.sentence());
        for line in self.place().iter().map(String::as_str).chain([self.advice()]) {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "   {line}");
        }
        if self.fault.lost > 0 {
            let _ = writeln!(out, "   {} earlier faults of it were not recorded.", self.fault.lost);
        }
        out
    }

    /// All of it, as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "fault": self.fault.json(),
            "device_name": self.device,
            "cause": self.cause.name(),
            "sentence": self.sentence(),
            "place": self.place(),
            "advice": self.advice(),
        })
    }
}

#[cfg(test)]
mod tests;
