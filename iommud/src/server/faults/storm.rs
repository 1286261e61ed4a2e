//! Fault storms: the faults of a requester that do not stop are suppressed. So faults of others are recorded, and
//! requests are still answered.

use iommu_protocol::Refusal;
use iommu_protocol::fault::{FaultAccess, FaultRecord};
use iommu_protocol::ids::{PciAddress, RequesterId};

use crate::hw::{BufferMemory, HardwareFault, Unit};
use crate::policy::{Event, SessionId, UnitIndex};
use crate::server::Server;

/// Fault records taken from one unit in one [`Server::tick`]: bounds the work between two requests.
pub(in crate::server) const FAULTS_A_TICK: usize = 16;

/// Most times that one tick polls a unit: it polls again after a requester was silenced.
const ROUNDS: usize = 4;

/// The words of the record for the session, and of the log.
const WORDS: &str =
    "silenced: 16 faults without a pause; reported again when the device is attached";

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Takes waiting fault records from every unit, then tries the work that ends of life left. Returns the number of
    /// records. Called when idle and at least every 10 ms. When units report by interrupt, it is called 10 ms after
    /// each call that found some: more may have come without a message. It is also called while
    /// [`Server::has_unfinished`]. A requester with 16 faults in consecutive ticks is silenced: its unit suppresses
    /// its faults until the entry is moved, as by an attach. So is an id of no known function, until a function
    /// appears there; 64 of them at most.
    pub fn tick(&mut self) -> u64 {
        let found = self.poll_faults();
        self.storms.end_tick();
        self.look_again();
        self.finish_endings();
        self.count_buffers();
        found
    }

    /// Takes waiting fault records without ending the tick: requests of a client must not make a storm look quiet.
    pub(in crate::server) fn poll_faults(&mut self) -> u64 {
        let before = self.faults.total();
        for index in 0..self.machine.units.len() {
            let Ok(number) = u32::try_from(index) else { break };
            for _ in 0..ROUNDS {
                if !self.take_faults(index, UnitIndex(number)) {
                    break;
                }
            }
        }
        self.faults.total().saturating_sub(before)
    }

    /// Takes faults of one unit. Returns whether it silenced a requester: then others may have more faults to report.
    fn take_faults(&mut self, index: usize, unit: UnitIndex) -> bool {
        let mut taken: [Option<HardwareFault>; FAULTS_A_TICK] = [None; _];
        let mut places = taken.iter_mut();
        let result = self.engine.take_faults(unit, FAULTS_A_TICK, &mut |fault| {
            if let Some(place) = places.next() {
                *place = Some(fault);
            }
        });
        match result {
            Ok(lost) => self.counts.faults_lost_in_hardware += u64::from(lost),
            Err(error) => self.fail(unit, alloc::string::ToString::to_string(&error)),
        }
        let mut silenced = false;
        for fault in taken.iter().flatten() {
            self.deliver_fault(index, fault);
            if self.storms.count(unit, fault.source) {
                silenced |= self.suppress_faults(index, unit, fault.source);
            }
        }
        silenced
    }

    fn suppress_faults(&mut self, index: usize, unit: UnitIndex, source: RequesterId) -> bool {
        // Faults that the unit recorded before still arrive.
        if self.registry.is_silenced(unit, source) {
            return false;
        }
        if let Err(refusal) = self.run_event(&Event::Storm(unit, source)) {
            // A device that makes up ids could continue with all 65536 of them.
            if refusal != Refusal::Quota || !core::mem::replace(&mut self.storms.full, true) {
                log::warn!("unit {index}: {source:?} has too many faults, and goes on: {refusal}");
            }
            return false;
        }
        let segment = self.machine.units.get(index).map_or(0, |unit| unit.description.segment);
        let address = PciAddress { segment, requester: source };
        log::warn!("{address}: {WORDS}");
        let owner = self.owner_of(unit, source);
        self.faults.note(FaultRecord::new(0, address, None, FaultAccess::Unknown, 0, WORDS), owner);
        if let Some(session) = owner {
            self.handles.session_readable(session);
        }
        true
    }

    /// The session that gets a requester's faults, when it is attached.
    pub(in crate::server) fn owner_of(
        &self,
        unit: UnitIndex,
        source: RequesterId,
    ) -> Option<SessionId> {
        self.registry
            .session_of(unit, source)
            .filter(|session| self.registry.session(*session).is_some_and(|view| view.attached))
    }
}
