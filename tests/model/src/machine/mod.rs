//! A machine in software: memory with CPU caches, a clock, units, devices that do DMA. [`Machine`] is a handle.
//! [`Tables`], [`Buffers`], [`Registers`] and [`SoftClock`] implement the seams of `iommud::hw` over it.

mod buffers;
mod checkpoint;
mod config;
mod device;
mod glimpse;
mod memory;
mod seams;
mod tables;
mod unit;
mod violation;

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

pub use buffers::{BufferShare, Buffers};
pub use checkpoint::Checkpoint;
pub use config::PciBus;
pub use device::Watch;
pub use glimpse::{Glimpse, Seen};
pub use memory::{AddressHasher, Eviction, FRAME, Map, Memory, Use, WORDS};
pub use seams::{Registers, SoftClock};
pub use tables::Tables;
pub use unit::{Bus, Cached, Denied, Reach, Request, SoftwareUnit, Through, Trouble, View, join};
pub use violation::Violation;

/// The memory of a machine. Addresses and lengths in bytes, multiples of 4096.
#[derive(Clone, Debug)]
pub struct Layout {
    /// All memory: first byte and length of each range.
    pub ram: Vec<(u64, u64)>,
    /// The part of `ram` that tables come from.
    pub tables: (u64, u64),
    /// The part of `ram` that buffers come from.
    pub buffers: (u64, u64),
    /// The longest piece of a non-contiguous buffer.
    pub segment: u64,
}

impl Default for Layout {
    /// 1 GiB below 4 GiB and 1 GiB above; 16 MiB for tables, 256 MiB for buffers in pieces of 16 KiB.
    fn default() -> Self {
        Self {
            ram: vec![(0, 1 << 30), (1 << 32, 1 << 30)],
            tables: (0x1000_0000, 16 << 20),
            buffers: (0x2000_0000, 256 << 20),
            segment: 16 << 10,
        }
    }
}

#[derive(Clone)]
struct State {
    layout: Layout,
    memory: Memory,
    units: Vec<Box<dyn SoftwareUnit>>,
    now: u64,
    /// Nanoseconds that one `Clock::relax` takes.
    relax: u64,
    steps: u64,
    reads: u64,
    writes: u64,
    watches: Vec<Watch>,
    glimpses: glimpse::Glimpses,
    /// The step at which a unit is to misbehave, the unit, and how.
    doom: Option<(u64, usize, Trouble)>,
    /// The step at which the running software is to die.
    end: Option<u64>,
    /// Whether freed memory is checked against everything that units reach.
    audit: bool,
    /// Whether freed buffer memory goes back to policy, which maps it one to one before it is freed.
    returns: bool,
    tables: tables::Pool,
    buffers: buffers::Pool,
    config: config::Space,
}

impl State {
    /// Returns the unit and its view of the machine.
    fn unit(&mut self, unit: usize) -> (&mut dyn SoftwareUnit, Bus<'_>) {
        let bus = Bus { memory: &mut self.memory, now: self.now, unit };
        (self.units[unit].as_mut(), bus)
    }

    /// Returns the unit and its view of the machine, both read-only.
    fn view(&self, unit: usize) -> (&dyn SoftwareUnit, View<'_>) {
        (self.units[unit].as_ref(), View { memory: &self.memory, unit })
    }

    /// Ends one action of the CPU. Units do the work that is due, and every watched access is tried after each piece
    /// of it.
    fn acted(&mut self) {
        self.count_step();
        self.try_watches();
        for unit in 0..self.units.len() {
            loop {
                let (device, mut bus) = self.unit(unit);
                if !device.step(&mut bus) {
                    break;
                }
                self.try_watches();
                self.glimpse();
            }
        }
    }

    /// Counts one more action of the CPU. Scheduled trouble or death takes effect.
    fn count_step(&mut self) {
        self.steps += 1;
        if self.end.take_if(|at| *at <= self.steps).is_some() {
            std::panic::resume_unwind(Box::new(Death));
        }
        if let Some((_, unit, trouble)) = self.doom.take_if(|(at, ..)| *at <= self.steps) {
            self.units[unit].trouble(trouble);
        }
    }

    fn pass_time(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        self.acted();
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let violations = std::mem::take(&mut self.memory.violations);
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("rules were broken and nobody looked: {violations:#x?}");
        }
    }
}

/// The payload that ends the software acting on a machine.
struct Death;

/// A handle on a machine; clones refer to the same machine.
#[derive(Clone)]
pub struct Machine(Rc<RefCell<State>>);

impl Default for Machine {
    fn default() -> Self {
        Self::new(Layout::default())
    }
}

impl Machine {
    /// A machine without units, its clock at 0.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let memory = Memory::new(layout.ram.clone());
        Self(Rc::new(RefCell::new(State {
            memory,
            units: Vec::new(),
            now: 0,
            relax: 1_000,
            steps: 0,
            reads: 0,
            writes: 0,
            watches: Vec::new(),
            glimpses: glimpse::Glimpses::default(),
            doom: None,
            end: None,
            audit: true,
            returns: false,
            tables: tables::Pool::new(layout.tables),
            buffers: buffers::Pool::new(layout.buffers, layout.segment),
            config: config::Space::default(),
            layout,
        })))
    }

    fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// Adds a unit and returns its number. `coherent`: its walks snoop caches. `write_buffer`: stores wait in front
    /// of it until flushed.
    pub fn add(&self, unit: Box<dyn SoftwareUnit>, coherent: bool, write_buffer: bool) -> usize {
        let mut state = self.state();
        state.memory.add_view(coherent, write_buffer);
        state.units.push(unit);
        state.units.len() - 1
    }

    /// The memory layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.state().layout.clone()
    }

    /// Reads or changes memory directly, behind the server's back.
    pub fn with_memory<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut self.state().memory)
    }

    /// Acts on unit `unit` as its concrete type `U`.
    ///
    /// # Panics
    /// When the unit is of another type.
    pub fn with_unit<U: 'static, T>(
        &self,
        unit: usize,
        act: impl FnOnce(&mut U, &mut Bus<'_>) -> T,
    ) -> T {
        let mut state = self.state();
        let (device, mut bus) = state.unit(unit);
        act(device.as_any().downcast_mut::<U>().expect("a unit of that type"), &mut bus)
    }

    /// Looks at unit `unit` as its concrete type `U`.
    ///
    /// # Panics
    /// When the unit is of another type.
    pub fn with_view<U: 'static, T>(&self, unit: usize, look: impl FnOnce(&U, View<'_>) -> T) -> T {
        let state = self.state();
        let (device, view) = state.view(unit);
        look(device.as_any_ref().downcast_ref::<U>().expect("a unit of that type"), view)
    }

    /// Returns a requester's entry by the tables: domain id, root of its page table, levels.
    #[must_use]
    pub fn binding(&self, unit: usize, source: u16) -> Option<(u16, u64, u8)> {
        let state = self.state();
        let (device, view) = state.view(unit);
        device.binding(view, source)
    }

    /// Returns everything that a unit has cached, in any order.
    #[must_use]
    pub fn cached(&self, unit: usize) -> Vec<Cached> {
        self.state().units[unit].cached()
    }

    /// Describes the frames that a unit reads as tables, in any order.
    #[must_use]
    pub fn tables_of(&self, unit: usize) -> Vec<String> {
        let state = self.state();
        let (device, view) = state.view(unit);
        device.tables(view, Through::Tables).into_iter().map(|(_, what)| what).collect()
    }

    /// Whether a unit translates.
    #[must_use]
    pub fn translates(&self, unit: usize) -> bool {
        self.state().units[unit].translating()
    }

    /// Invalidations and waits that a unit has executed.
    #[must_use]
    pub fn executed(&self, unit: usize) -> u64 {
        self.state().units[unit].executed()
    }

    /// Makes a unit misbehave.
    pub fn trouble(&self, unit: usize, trouble: Trouble) {
        self.state().units[unit].trouble(trouble);
    }

    /// Makes a unit misbehave after this many more actions of the CPU.
    pub fn trouble_after(&self, steps: u64, unit: usize, trouble: Trouble) {
        let mut state = self.state();
        state.doom = Some((state.steps + steps + 1, unit, trouble));
    }

    /// Runs software that dies after this many more actions of the CPU; `None` when it died. Its effects stay.
    ///
    /// # Panics
    /// Passes on any other panic of the software.
    pub fn dying_after<T>(&self, actions: u64, act: impl FnOnce() -> T) -> Option<T> {
        {
            let mut state = self.state();
            state.end = Some(state.steps + actions + 1);
        }
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        self.state().end = None;
        match ended {
            Ok(result) => Some(result),
            Err(payload) if payload.is::<Death>() => None,
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }

    /// Counts a store of the CPU to memory that no device reaches, and which the caller models. Scheduled death comes
    /// before it.
    pub fn count_store(&self) {
        self.state().count_step();
    }

    /// Cancels scheduled trouble. True when there was some that had not come.
    pub fn spare(&self) -> bool {
        self.state().doom.take().is_some()
    }

    /// Returns the violations since the last call.
    #[must_use]
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.state().memory.violations)
    }

    /// Fails when a rule was broken since the last check.
    ///
    /// # Panics
    /// Shows the violations.
    pub fn assert_clean(&self) {
        let violations = self.take_violations();
        assert!(violations.is_empty(), "rules were broken: {violations:#x?}");
    }

    /// Leaves the memory of buffers in use but without an owner, as after the end of their server.
    pub fn orphan_buffers(&self) {
        self.state().buffers.orphan();
    }

    /// Sets whether freed memory is checked against everything that units reach (at first it is). The check costs a
    /// walk of all tables for each frame.
    pub fn set_audit(&self, audit: bool) {
        self.state().audit = audit;
    }

    /// Sets whether devices may reach freed buffer memory one to one. That is right when the memory was taken from
    /// policy, which has mapped it again.
    pub fn set_returns(&self, returns: bool) {
        self.state().returns = returns;
    }

    /// Nanoseconds that one `Clock::relax` takes (1000 at first).
    pub fn set_relax(&self, nanoseconds: u64) {
        self.state().relax = nanoseconds;
    }

    /// Lets time pass while the server is idle.
    pub fn pass_time(&self, nanoseconds: u64) {
        self.state().pass_time(nanoseconds);
    }

    /// Nanoseconds since start.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.state().now
    }

    /// Register reads and writes so far, of all units.
    #[must_use]
    pub fn register_accesses(&self) -> (u64, u64) {
        let state = self.state();
        (state.reads, state.writes)
    }

    /// Actions of the CPU so far: stores, cleans, register accesses, reads of the clock.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.state().steps
    }
}
