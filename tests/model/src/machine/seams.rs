//! Registers and the clock.

use iommud::hw::{Clock, Nanos, RegisterIo};

use super::Machine;

/// `RegisterIo` over one unit of a machine.
#[derive(Clone)]
pub struct Registers {
    machine: Machine,
    unit: usize,
}

impl Machine {
    /// The registers of a unit.
    #[must_use]
    pub fn registers(&self, unit: usize) -> Registers {
        Registers { machine: self.clone(), unit }
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> SoftClock {
        SoftClock { machine: self.clone() }
    }
}

impl Registers {
    fn read(&self, offset: u32, width: u8) -> u64 {
        let mut state = self.machine.state();
        state.reads += 1;
        let (device, mut bus) = state.unit(self.unit);
        let value = device.read(&mut bus, offset, width);
        state.acted();
        value
    }

    fn write(&self, offset: u32, width: u8, value: u64) {
        let mut state = self.machine.state();
        state.writes += 1;
        let (device, mut bus) = state.unit(self.unit);
        device.write(&mut bus, offset, width, value);
        state.acted();
    }
}

impl RegisterIo for Registers {
    fn read32(&mut self, offset: u32) -> u32 {
        u32::try_from(self.read(offset, 4)).unwrap()
    }
    fn read64(&mut self, offset: u32) -> u64 {
        self.read(offset, 8)
    }
    fn write32(&mut self, offset: u32, value: u32) {
        self.write(offset, 4, u64::from(value));
    }
    fn write64(&mut self, offset: u32, value: u64) {
        self.write(offset, 8, value);
    }
}

/// `Clock` over a machine: a read takes 10 ns, `relax` the time set with `Machine::set_relax`. Units do the work that
/// becomes due while time passes.
#[derive(Clone)]
pub struct SoftClock {
    machine: Machine,
}

impl Clock for SoftClock {
    fn now(&mut self) -> Nanos {
        let mut state = self.machine.state();
        state.pass_time(10);
        Nanos(state.now)
    }
    fn relax(&mut self) {
        let mut state = self.machine.state();
        let relax = state.relax;
        state.pass_time(relax);
    }
}
