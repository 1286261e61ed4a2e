//! Events that cannot be refused: the end of a session, of a buffer's last handle, of a function or a unit, and
//! memory that is taken or given back. None is ever dropped (I9).
//!
//! ```text
//! event --> run --(no memory)--> run without memory: cut off now, the rest is owed --> settled when there is memory
//!            |                              |
//!            +--(a unit failed)--> again without it
//!                                           +--(refused)--> queued, shown in `status`, tried again
//! ```

mod queue;

use alloc::boxed::Box;
use core::fmt;

use iommu_protocol::Refusal;

use crate::hw::{BufferMemory, Unit};
use crate::policy::{Event, Owed};
use crate::server::Server;

pub(super) use queue::Endings;

/// The result of an end of life.
enum Ended {
    /// It was carried out, or its object does not exist.
    Done,
    /// It was not carried out, for this reason.
    Not(Refusal),
}

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Runs an event that cannot be refused. Work that it leaves is done later: see [`Server::finish_endings`]. True
    /// when the event itself is complete.
    pub(super) fn run_to_the_end(&mut self, event: Event) -> bool {
        let Ended::Not(refusal) = self.end(&event) else { return true };
        log::error!("{event:?}: {refusal}: it is tried again");
        self.endings.queued.push_back(event);
        false
    }

    /// Like [`Server::run_to_the_end`], for an event that was queued. Its failure was logged before.
    pub(super) fn run_once_more(&mut self, event: Event) -> bool {
        let done = matches!(self.end(&event), Ended::Done);
        if !done {
            self.endings.queued.push_back(event);
        }
        done
    }

    /// Tries the work that ends of life left. Called after each event that may have given memory back, and in each
    /// [`Server::tick`].
    pub(super) fn finish_endings(&mut self) {
        if !self.has_unfinished() {
            return;
        }
        for event in core::mem::take(&mut self.endings.queued) {
            self.run_once_more(event);
        }
        let owed: alloc::vec::Vec<Owed> = self.registry.owed().collect();
        for what in owed {
            // When this is refused for lack of memory, the work is still owed.
            let _ = self.run_event(&Event::Settle(what));
        }
        self.share_out();
    }

    /// Whether ends of life left work, or functions are to be looked for again: then call [`Server::tick`] again.
    #[must_use]
    pub fn has_unfinished(&self) -> bool {
        self.registry.owes() || !self.endings.queued.is_empty() || self.survey.is_due()
    }

    /// Writes one line for each piece of unfinished work.
    pub(super) fn unfinished(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for event in &self.endings.queued {
            writeln!(out, "unfinished: {}", name(event))?;
        }
        for owed in self.registry.owed() {
            match owed {
                Owed::Entry(unit, source) => {
                    let device = self.device_of_source(unit, source);
                    writeln!(
                        out,
                        "unfinished: {device} is blocked until there is memory for its policy"
                    )?;
                }
                Owed::Regions(_) => {
                    writeln!(
                        out,
                        "unfinished: a region of firmware's allows more than it is to until there is memory for tables"
                    )?;
                }
                Owed::Buffer(_) => {
                    writeln!(
                        out,
                        "unfinished: memory of a buffer that nobody has goes back when there is memory for tables"
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Runs an event again when a unit fails on the way. Each time at least one more unit has failed and is left out.
    fn end(&mut self, event: &Event) -> Ended {
        let mut last = Refusal::NoMemory;
        for _ in 0..=self.machine.units().len() {
            let mut ended = self.run_event(event);
            if let Err(Refusal::NoMemory | Refusal::Quota) = ended {
                ended = self.run_event(&Event::Frugally(Box::new(event.clone())));
            }
            match ended {
                Ok(_) => return Ended::Done,
                // There is nothing to end.
                Err(Refusal::BadHandle | Refusal::NotProbed | Refusal::NotFound) => {
                    return Ended::Done;
                }
                Err(refusal) => last = refusal,
            }
        }
        Ended::Not(last)
    }
}

/// The name of an end of life, for texts.
const fn name(event: &Event) -> &'static str {
    match event {
        Event::Close(_) => "the end of a session",
        Event::Drop(_) => "the end of a buffer's last handle",
        Event::FunctionRemoved(_) => "the removal of a function",
        Event::FunctionsRemoved(_) => "the removal of functions",
        Event::UnitFailed(_) => "the failure of a unit",
        Event::MemoryTaken(_) => "memory that is taken from policy",
        Event::MemoryReturned(_) => "memory that goes back to policy",
        Event::Shutdown => "the end of all sessions",
        _ => "an end of life",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::policy::{BufferId, SessionId, UnitIndex};
    use iommu_protocol::PciAddress;

    #[test]
    fn each_end_of_life_has_its_name() {
        let device = PciAddress::new(0, 0, 3, 0).unwrap();
        let range = PhysRange::new(PhysAddr(0x1000), 0x1000).unwrap();
        let named = [
            (Event::Close(SessionId(1)), "the end of a session"),
            (Event::Drop(BufferId(1)), "the end of a buffer's last handle"),
            (Event::FunctionRemoved(device), "the removal of a function"),
            (Event::FunctionsRemoved([device].to_vec()), "the removal of functions"),
            (Event::UnitFailed(UnitIndex(1)), "the failure of a unit"),
            (Event::MemoryTaken(range), "memory that is taken from policy"),
            (Event::MemoryReturned(range), "memory that goes back to policy"),
            (Event::Shutdown, "the end of all sessions"),
            (Event::Proved, "an end of life"),
        ];
        for (event, words) in named {
            assert_eq!(name(&event), words, "{event:?}");
        }
    }
}
