//! A VT-d unit in software, legacy mode: registers, caches that stay stale until invalidated, invalidation queue,
//! fault records. Written from the specification alone, independent of the code under test.
//!
//! ```text
//! registers.rs  reads and writes       command.rs  global commands       queue.rs  descriptors
//! walk.rs       decoding entries       faults.rs   records
//! reach.rs      all that a requester can reach, with and without cached translations
//! firmware.rs   tables of a previous owner, written bit by bit
//! ```

pub mod bits;
mod command;
mod config;
mod faults;
pub mod firmware;
mod queue;
mod reach;
mod registers;
mod walk;

use std::any::Any;
use std::collections::BTreeSet;

pub use config::Config;

use crate::machine::{
    Bus, Cached, Denied, Machine, Map, Reach, Request, SoftwareUnit, Through, Trouble, View,
};
use crate::paging::{Caches, Upper, Why, look_up, translate};
use walk::{CachedContext, Fault, Target};

/// First and last address of the interrupt window (section 3.14).
const INTERRUPTS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// A VT-d unit.
#[derive(Clone)]
pub struct Vtd {
    config: Config,
    contexts: Map<u16, CachedContext>,
    caches: Caches,
    /// The root table in use: `RTADDR` as it was when the last SRTP completed.
    root: u64,
    status: u32,
    root_register: u64,
    command: Option<command::Pending>,
    protection: command::Protection,
    queue: queue::Queue,
    invalidation: command::RegisterInvalidation,
    faults: faults::Log,
    dead: bool,
    commands_stall: bool,
    /// Translation does not come on.
    stays_off: bool,
    /// Devices that never complete a device-TLB invalidation.
    silent_devices: BTreeSet<u16>,
}

impl Vtd {
    /// A unit after reset: translation off, caches empty.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            faults: faults::Log::new(usize::from(config.fault_records)),
            contexts: Map::default(),
            caches: Caches::default(),
            root: 0,
            status: 0,
            root_register: 0,
            command: None,
            protection: command::Protection::default(),
            queue: queue::Queue::default(),
            invalidation: command::RegisterInvalidation::default(),
            dead: false,
            commands_stall: false,
            stays_off: false,
            silent_devices: BTreeSet::new(),
            config,
        }
    }

    /// Adds a unit to a machine and gives its number.
    pub fn add(machine: &Machine, config: Config) -> usize {
        let (coherent, write_buffer) = (config.coherent, config.write_buffer);
        machine.add(Box::new(Self::new(config)), coherent, write_buffer)
    }

    /// The unit's capabilities.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Translates an access, or returns the fault that it causes.
    fn resolve(&mut self, bus: &mut Bus<'_>, request: Request) -> Result<u64, Fault> {
        let Request { source, iova, write, .. } = request;
        let context = self.context(bus, source)?;
        let fault = |reason| Fault { reason, silent: context.no_faults };
        let (root, levels) = match context.target {
            Target::Pass if iova & !bits::below(self.config.host_width) == 0 => return Ok(iova),
            Target::Pass => return Err(fault(bits::reason::ADDRESS_WIDTH)),
            Target::Table { root, levels } => (root, levels),
        };
        let width = self.config.guest_width.min(12 + 9 * u32::from(levels));
        if iova & !bits::below(width) != 0 {
            return Err(fault(bits::reason::ADDRESS_WIDTH));
        }
        let root = Upper { table: root, level: levels, read: true, write: true };
        let Self { config, caches, .. } = self;
        translate(config, caches, bus, context.domain, root, iova, write).map_err(|why| {
            fault(match why {
                Why::Absent | Why::Forbidden if write => bits::reason::WRITE,
                Why::Absent | Why::Forbidden => bits::reason::READ,
                Why::Reserved => bits::reason::PAGE_RESERVED,
                Why::Unreadable => bits::reason::PAGE_TABLE_ACCESS,
            })
        })
    }
}

impl SoftwareUnit for Vtd {
    fn read(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8) -> u64 {
        self.read_register(bus, offset, width)
    }

    fn write(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8, value: u64) {
        self.write_register(bus, offset, width, value);
    }

    fn step(&mut self, bus: &mut Bus<'_>) -> bool {
        !self.dead && (self.step_command(bus) || self.step_queue(bus))
    }

    fn stored(&mut self, bus: &mut Bus<'_>, address: u64) {
        self.check_overwrite(bus, address);
    }

    fn translate(&mut self, bus: &mut Bus<'_>, request: Request) -> Result<u64, Denied> {
        let Request { iova, .. } = request;
        let nowhere = Denied { reason: 0, iova };
        if self.dead || INTERRUPTS.contains(&iova) {
            return Err(nowhere);
        }
        if self.protection.covers(iova) && !self.translating() {
            return Err(nowhere);
        }
        if !self.translating() {
            return Ok(iova);
        }
        match self.resolve(bus, request) {
            // Section 10.4.16: hardware may decide how protected memory behaves once translation is on.
            Ok(physical) if self.protection.covers(physical) => Err(nowhere),
            Ok(physical) => Ok(physical),
            Err(Fault { reason, silent }) => {
                if request.record && !silent {
                    self.record_fault(request, reason);
                }
                Err(Denied { reason, iova })
            }
        }
    }

    fn forces_snoop(&self, view: View<'_>, source: u16, iova: u64) -> bool {
        let binding = self.look_binding(view, source);
        let leaf = binding.and_then(|(domain, ..)| self.caches.leaf(domain, iova));
        leaf.is_some_and(|(_, leaf)| leaf.snoops)
    }

    fn reach(&self, view: View<'_>, source: u16, through: Through) -> Vec<Reach> {
        self.list_reach(view, source, through)
    }

    fn sources(&self, view: View<'_>, through: Through) -> Vec<u16> {
        self.list_sources(view, through)
    }

    fn tables(&self, view: View<'_>, through: Through) -> Vec<(u64, String)> {
        self.list_tables(view, through)
    }

    fn translating(&self) -> bool {
        self.status & bits::global::TRANSLATION != 0
    }

    fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::StallQueueAfter(count) => self.queue.left = Some(count),
            Trouble::StallCommands => self.commands_stall = true,
            Trouble::StaysOff => self.stays_off = true,
            Trouble::Dead => self.dead = true,
            Trouble::None => {
                self.queue.left = None;
                self.commands_stall = false;
                self.stays_off = false;
            }
        }
    }

    fn binding(&self, view: View<'_>, source: u16) -> Option<(u16, u64, u8)> {
        self.look_binding(view, source)
    }

    fn lookup(&self, view: View<'_>, source: u16, iova: u64) -> Option<u64> {
        let binding = if self.dead { None } else { self.look_binding(view, source) };
        let (_, table, level) = binding?;
        let root = Upper { table, level, read: true, write: true };
        if level == 0 { Some(iova) } else { look_up(&self.config, view, root, iova) }
    }

    fn cached(&self) -> Vec<Cached> {
        let entry = |(source, cached): (&u16, &CachedContext)| {
            let domain = cached.entry.ok().map(|context| context.domain);
            Cached::Entry { source: *source, domain }
        };
        self.contexts.iter().map(entry).chain(self.caches.list()).collect()
    }

    fn executed(&self) -> u64 {
        let counts = self.counts();
        counts.contexts + counts.pages + counts.waits
    }

    fn copy(&self) -> Option<Box<dyn SoftwareUnit>> {
        Some(Box::new(self.clone()))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn as_any_ref(&self) -> &dyn Any {
        self
    }
}
