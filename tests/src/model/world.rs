//! The state of the server's thread.

use std::collections::BTreeMap;

use iommu_protocol::frame::READABLE;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::Operation;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::UnitError;
use iommud::hw::vtd::VtdUnit;
use iommud::policy::Config as Policy;
use iommud::server::{Budget, Handle, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::{Firmware, UnitDescription, UnitKind};

use super::memory::Shared;
use super::{DEVICES, ModelUnit};
use crate::conformance::UnderTest;
use crate::conformance::vtd::Subject;
use crate::machine::{Machine, Registers, SoftClock, Tables, Through};
use crate::stack::endpoint;
use crate::vtd::Config;

/// Address of the unit's registers in the firmware description.
const REGISTERS: u64 = 0xfed9_0000;

/// Counts of the actions of clients and the unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handles opened.
    pub opens: u64,
    /// Handles closed.
    pub closes: u64,
    /// Reads of texts and fault records.
    pub reads: u64,
    /// Buffers mapped into a client.
    pub maps: u64,
    /// Other requests: waiting, directories, imports.
    pub others: u64,
    /// Calls by operation code.
    pub calls: BTreeMap<u16, u64>,
    /// Page invalidations that the unit has executed.
    pub page_invalidations: u64,
    /// Waits that the unit has executed.
    pub waits: u64,
    /// Register reads and writes of the server.
    pub register_accesses: u64,
}

impl Counts {
    /// All requests from clients to the server.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let calls: u64 = self.calls.values().sum();
        self.opens + self.closes + self.reads + self.maps + self.others + calls
    }

    /// Calls of one operation.
    #[must_use]
    pub fn of(&self, operation: Operation) -> u64 {
        self.calls.get(&operation.code()).copied().unwrap_or(0)
    }
}

pub(super) struct World {
    pub(super) server: Server<VtdUnit<Registers, SoftClock, Tables>, Shared>,
    machine: Machine,
    memory: Shared,
    subject: Option<Subject>,
    pub(super) counts: Counts,
    /// Read position of each text.
    pub(super) offsets: BTreeMap<u32, u64>,
    pub(super) handles: Vec<Handle>,
    pub(super) clients: u32,
}

fn range((start, length): (u64, u64)) -> PhysRange {
    PhysRange::new(PhysAddr(start), length).unwrap()
}

impl World {
    pub(super) fn new(unit: ModelUnit, policy: Policy) -> Self {
        let machine = Machine::default();
        let described = unit != ModelUnit::Absent;
        let subject = described.then(|| Subject { name: "model", config: Config::default() });
        let mut tables = machine.tables();
        let (mut firmware, mut units) = (Firmware::default(), Vec::new());
        if let Some(subject) = &subject {
            let number = subject.add(&machine);
            firmware.units.push(UnitDescription {
                kind: UnitKind::Vtd,
                segment: 0,
                registers: Ok(range((REGISTERS, 0x1000))),
                include_all: true,
                scopes: Vec::new(),
                entries: Vec::new(),
            });
            units.push(match unit {
                ModelUnit::Failed => UnitStart::Failed(UnitError::Dead),
                ModelUnit::LeftAlone => UnitStart::Off,
                _ => UnitStart::Ready(subject.bring_up(&machine, number, &mut tables).unwrap()),
            });
        }
        let memory = Shared::new(&machine, firmware.units.len());
        let layout = machine.layout();
        let server = Server::start(Startup {
            config: policy,
            table: if described { TableState::Parsed("DMAR") } else { TableState::Absent },
            firmware,
            units,
            functions: [3, 4, 5].map(|device| endpoint(0, device, 0)).to_vec(),
            ram: layout.ram.iter().copied().map(range).collect(),
            own: vec![range(layout.tables), range(layout.buffers)],
            left: Vec::new(),
            memory: tables,
            buffers: memory.clone(),
            budget: Budget::default(),
        });
        assert_eq!(DEVICES.len(), 3);
        Self {
            server,
            machine,
            memory,
            subject,
            counts: Counts::default(),
            offsets: BTreeMap::new(),
            handles: Vec::new(),
            clients: 0,
        }
    }

    pub(super) fn end(self) {
        self.machine.assert_clean();
    }

    fn unit(&self) -> Option<usize> {
        self.subject.as_ref().map(|_| 0)
    }

    fn pieces(
        &self,
        device: PciAddress,
        iova: u64,
        length: usize,
        write: bool,
    ) -> Vec<Result<(u64, usize), String>> {
        let mut out = Vec::new();
        let (mut at, mut left) = (iova, u64::try_from(length).unwrap());
        while left > 0 {
            let piece = left.min(4096 - at % 4096);
            match self.machine.access(self.unit(), device.requester.0, at, piece, write) {
                Ok(found) => out.extend(
                    found.into_iter().map(|(to, bytes)| Ok((to, usize::try_from(bytes).unwrap()))),
                ),
                Err(denied) => {
                    out.push(Err(format!("{denied:?}")));
                    break;
                }
            }
            (at, left) = (at.wrapping_add(piece), left - piece);
        }
        out
    }

    pub(super) fn device_read(
        &mut self,
        device: PciAddress,
        iova: u64,
        length: usize,
    ) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(length);
        for piece in self.pieces(device, iova, length, false) {
            let (physical, bytes) = piece?;
            let mut part = vec![0; bytes];
            self.memory.read(physical, &mut part);
            out.extend(part);
        }
        Ok(out)
    }

    pub(super) fn device_write(
        &mut self,
        device: PciAddress,
        iova: u64,
        bytes: &[u8],
    ) -> Result<(), String> {
        let mut rest = bytes;
        for piece in self.pieces(device, iova, bytes.len(), true) {
            let (physical, count) = piece?;
            let (now, later) = rest.split_at(count);
            self.memory.write(physical, now);
            rest = later;
        }
        Ok(())
    }

    pub(super) fn reach(&mut self, device: PciAddress) -> Vec<(u64, u64)> {
        let Some(unit) = self.unit() else { return vec![(0, u64::MAX)] };
        let reach = self.machine.reach(unit, device.requester.0, Through::TablesAndCaches);
        reach.into_iter().map(|run| (run.iova, run.last)).collect()
    }

    pub(super) fn kill_clients(&mut self) {
        for handle in std::mem::take(&mut self.handles) {
            self.server.close(handle);
        }
    }

    pub(super) fn readable(&mut self, handle: Handle) -> bool {
        self.server.tick();
        self.server.watch(handle, READABLE).is_ok_and(|bits| bits & READABLE != 0)
    }

    pub(super) fn counts(&mut self) -> Counts {
        let mut counts = self.counts.clone();
        if let Some(subject) = &self.subject {
            let (pages, _, waits) = subject.counts(&self.machine, 0);
            (counts.page_invalidations, counts.waits) = (pages, waits);
        }
        let (reads, writes) = self.machine.register_accesses();
        counts.register_accesses = reads + writes;
        counts
    }
}
