//! Delivers fault records of a unit to the session that owns their source.

use crate::hw::{BufferMemory, HardwareFault, Unit};
use crate::policy::UnitIndex;
use crate::server::Server;
use crate::server::unit_status::UnitState;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Makes every unit that translates send an interrupt message when it has fault records. A platform that can
    /// receive messages calls this, and [`Server::fault_interrupt`] when one comes. True when every unit sends
    /// messages. The others must be polled by [`Server::tick`], as before.
    pub fn enable_fault_interrupt(&mut self, address: u64, data: u32) -> bool {
        let mut all = true;
        self.recovery.tell_by((address, data));
        for index in 0..self.machine.units.len() {
            let (Ok(number), Some(status)) =
                (u32::try_from(index), self.machine.units.get_mut(index))
            else {
                break;
            };
            if status.state != UnitState::Enabled {
                continue;
            }
            match self.engine.enable_fault_interrupt(UnitIndex(number), address, data) {
                Ok(()) => status.tells = true,
                Err(error) => {
                    log::info!("unit {index}: asked for faults: {error}");
                    all = false;
                }
            }
        }
        all
    }

    /// Like [`Server::tick`], after a unit sent its message.
    pub fn fault_interrupt(&mut self) -> u64 {
        self.counts.fault_interrupts += 1;
        self.tick()
    }

    pub(in crate::server) fn deliver_fault(&mut self, unit: usize, fault: &HardwareFault) {
        let segment = self.machine.units.get(unit).map_or(0, |status| status.description.segment);
        let number = u32::try_from(unit).ok().map(UnitIndex);
        let owner = number.and_then(|unit| self.owner_of(unit, fault.source));
        let device = number.and_then(|unit| self.registry.device_of(unit, fault.source));
        self.faults.count(device);
        self.faults.record(segment, fault, owner);
        if let Some(session) = owner {
            self.handles.session_readable(session);
        }
    }
}
