//! An AMD-Vi unit in software: registers, caches that stay stale until invalidated, command ring, event log, log of
//! page requests. Written from the specification alone, independent of the code under test.
//!
//! ```text
//! registers.rs  reads and writes       command.rs  the ring            event_log.rs  events, page requests
//! walk.rs       decoding entries       reach.rs    all that a requester can reach
//! firmware.rs   tables of a previous owner, written bit by bit
//! ```

pub mod bits;
mod command;
mod config;
mod event_log;
pub mod firmware;
mod reach;
mod registers;
mod walk;

use std::any::Any;

pub use command::Counts;
pub use config::Config;

use crate::machine::{
    Bus, Cached, Denied, Machine, Map, Reach, Request, SoftwareUnit, Through, Trouble, View,
};
use crate::paging::{Caches, Upper, Why, below, look_up, shift, translate};
use bits::event;
use walk::{Device, Target};

/// First and last address of the interrupt window (section 2.1.2).
const INTERRUPTS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// An AMD-Vi unit.
#[derive(Clone)]
pub struct Amdvi {
    config: Config,
    /// Cached device table entries: every entry ever read, whatever its content.
    devices: Map<u16, Device>,
    caches: Caches,
    /// The device table register: address, and the number of frames minus one in bits 8:0.
    table: u64,
    control: u64,
    exclusion: (u64, u64),
    ring: command::Ring,
    events: event_log::Log,
    requests: event_log::Log,
    /// When rings follow the control register, and which of them were turned on since the last time.
    switch_due: Option<u64>,
    starts: u64,
    switches_stall: bool,
    /// Translation does not come on.
    stays_off: bool,
    dead: bool,
    /// Page requests answered: source, tag, code.
    answers: Vec<(u16, u16, u8)>,
}

/// A denied access: code and flags of the event, and its domain.
struct Fault {
    code: u16,
    flags: u64,
    domain: u16,
    silent: bool,
}

impl Amdvi {
    /// A unit after reset: off, caches empty.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            devices: Map::default(),
            caches: Caches::default(),
            table: 0,
            control: 0,
            exclusion: (0, 0),
            ring: command::Ring::default(),
            events: event_log::Log::default(),
            requests: event_log::Log::default(),
            switch_due: None,
            starts: 0,
            switches_stall: false,
            stays_off: false,
            dead: false,
            answers: Vec::new(),
        }
    }

    /// Adds a unit to a machine and gives its number.
    pub fn add(machine: &Machine, config: Config) -> usize {
        let coherent = config.coherent;
        machine.add(Box::new(Self::new(config)), coherent, false)
    }

    /// The unit's capabilities.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Page requests answered so far: source, tag, code.
    #[must_use]
    pub fn answers(&self) -> &[(u16, u16, u8)] {
        &self.answers
    }

    fn enabled(&self) -> bool {
        self.control & bits::control::ENABLE != 0
    }

    /// Whether the exclusion range lets an access of `device` pass untranslated (section 2.2.2.1, EX).
    fn excludes(&self, device: Device, iova: u64) -> bool {
        let (base, limit) = self.exclusion;
        let holds = device.excluded || base & bits::exclusion::ALL_DEVICES != 0;
        let range = base & bits::ADDRESS..=limit & bits::ADDRESS | 0xfff;
        base & bits::exclusion::ENABLE != 0 && holds && range.contains(&iova)
    }

    /// Translates an access, or returns the event that it causes.
    fn resolve(&mut self, bus: &mut Bus<'_>, request: Request) -> Result<u64, Fault> {
        let Request { source, iova, write, .. } = request;
        let device = self.device(bus, source);
        let Device { domain, silent, .. } = device;
        let fault = |code, flags| Fault { code, flags, domain, silent };
        if device.target != Target::Pass && bits::HYPERTRANSPORT.contains(&iova) {
            return Err(fault(event::INVALID_REQUEST, 0));
        }
        if self.excludes(device, iova) {
            return Ok(iova);
        }
        let (root, level) = match device.target {
            Target::Pass => {
                let may = if write { device.write } else { device.read };
                let flags = event::PRESENT | event::PERMISSION;
                return if may { Ok(iova) } else { Err(fault(event::PAGE_FAULT, flags)) };
            }
            Target::Illegal => return Err(fault(event::ILLEGAL_ENTRY, event::RESERVED)),
            Target::Unreadable => return Err(fault(event::DEVICE_TABLE_ERROR, 0)),
            Target::Table { root, levels } => (root, levels),
        };
        if iova & !below(shift(level + 1)) != 0 {
            return Err(fault(event::PAGE_FAULT, 0));
        }
        let root = Upper { table: root, level, read: true, write: true };
        let Self { config, caches, .. } = self;
        let forbidden = event::PRESENT | event::PERMISSION;
        match translate(config, caches, bus, domain, root, iova, write) {
            Ok(physical) if if write { device.write } else { device.read } => Ok(physical),
            Ok(_) | Err(Why::Forbidden) => Err(fault(event::PAGE_FAULT, forbidden)),
            Err(Why::Absent) => Err(fault(event::PAGE_FAULT, 0)),
            Err(Why::Reserved) => Err(fault(event::PAGE_FAULT, event::PRESENT | event::RESERVED)),
            Err(Why::Unreadable) => Err(fault(event::PAGE_TABLE_ERROR, 0)),
        }
    }
}

impl SoftwareUnit for Amdvi {
    fn read(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8) -> u64 {
        self.read_register(bus, offset, width)
    }

    fn write(&mut self, bus: &mut Bus<'_>, offset: u32, width: u8, value: u64) {
        self.write_register(bus, offset, width, value);
    }

    fn step(&mut self, bus: &mut Bus<'_>) -> bool {
        !self.dead && (self.step_switch(bus) || self.step_logs(bus) || self.step_ring(bus))
    }

    fn stored(&mut self, bus: &mut Bus<'_>, address: u64) {
        self.check_overwrite(bus, address);
    }

    fn translate(&mut self, bus: &mut Bus<'_>, request: Request) -> Result<u64, Denied> {
        let Request { iova, .. } = request;
        if self.dead || INTERRUPTS.contains(&iova) {
            return Err(Denied { reason: 0, iova });
        }
        if !self.enabled() {
            return Ok(iova);
        }
        self.resolve(bus, request).map_err(|Fault { code, flags, domain, silent }| {
            if request.record && !(silent && code == event::PAGE_FAULT) {
                self.record(bus.now, request, code, domain, flags);
            }
            Denied { reason: code, iova }
        })
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
        if self.enabled() { self.list_sources(view, through) } else { Vec::new() }
    }

    fn tables(&self, view: View<'_>, through: Through) -> Vec<(u64, String)> {
        self.list_tables(view, through)
    }

    fn translating(&self) -> bool {
        self.enabled()
    }

    fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::StallQueueAfter(count) => self.ring.left = Some(count),
            Trouble::StallCommands => self.switches_stall = true,
            Trouble::StaysOff => self.stays_off = true,
            Trouble::Dead => self.dead = true,
            Trouble::None => {
                self.ring.left = None;
                self.switches_stall = false;
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
        let entry = |(source, device): (&u16, &Device)| {
            let domain = device.opens().then_some(device.domain);
            Cached::Entry { source: *source, domain }
        };
        self.devices.iter().map(entry).chain(self.caches.list()).collect()
    }

    fn executed(&self) -> u64 {
        let counts = self.counts();
        counts.devices + counts.pages + counts.all + counts.waits
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
