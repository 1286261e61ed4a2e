//! The state of the server's thread.

use std::collections::BTreeMap;
use std::fs::File;

use iommu_protocol::Refusal;
use iommu_protocol::frame::READABLE;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::Operation;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::UnitError;
use iommud::policy::Config as Policy;
use iommud::server::{Budget, Caller, Handle, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::Firmware;

use super::memory::Shared;
use super::{DEVICES, ModelUnit};
use crate::conformance::UnderTest;
use crate::machine::{Machine, Through};
use crate::stack::endpoint;

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

/// What clients have and did.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) counts: Counts,
    /// Read position of each text.
    pub(super) offsets: BTreeMap<u32, u64>,
    pub(super) handles: Vec<Handle>,
    pub(super) clients: u32,
}

/// A machine of either vendor, as the clients and devices of a model use it.
pub(super) trait Side {
    fn ledger(&mut self) -> &mut Ledger;
    fn open(
        &mut self,
        caller: Caller,
        at: Option<Handle>,
        path: &str,
        write: bool,
    ) -> Result<Handle, Refusal>;
    fn close(&mut self, handle: Handle);
    fn read(&mut self, handle: Handle, out: &mut [u8]) -> Result<usize, Refusal>;
    fn call(&mut self, handle: Handle, bytes: &mut [u8], length: usize) -> Result<usize, Refusal>;
    fn names(&mut self, handle: Handle) -> Result<Vec<String>, Refusal>;
    fn share(&mut self, handle: Handle) -> Result<(File, u64), Refusal>;
    fn import(&mut self, session: Handle, buffer: Handle) -> Result<u32, Refusal>;
    fn readable(&mut self, handle: Handle) -> bool;
    fn kill_clients(&mut self);
    fn device_read(&self, device: PciAddress, iova: u64, length: usize) -> Result<Vec<u8>, String>;
    fn device_write(&self, device: PciAddress, iova: u64, bytes: &[u8]) -> Result<(), String>;
    fn reach(&self, device: PciAddress) -> Vec<(u64, u64)>;
    fn counts(&self) -> Counts;
}

pub(super) struct World<T: UnderTest> {
    server: Server<T::Unit, Shared>,
    machine: Machine,
    memory: Shared,
    /// The unit, if there is one.
    subject: Option<T>,
    ledger: Ledger,
}

fn range((start, length): (u64, u64)) -> PhysRange {
    PhysRange::new(PhysAddr(start), length).unwrap()
}

impl<T: UnderTest> World<T> {
    /// A machine with this unit in this state.
    pub(super) fn new(subject: T, unit: ModelUnit, policy: Policy) -> Self {
        let machine = Machine::default();
        let subject = (unit != ModelUnit::Absent).then_some(subject);
        let mut tables = machine.tables();
        let (mut firmware, mut units) = (Firmware::default(), Vec::new());
        if let Some(subject) = &subject {
            let number = subject.add(&machine);
            firmware.units.push(subject.describe(number, None));
            units.push(match unit {
                ModelUnit::Failed => UnitStart::Failed(UnitError::Dead),
                ModelUnit::LeftAlone => UnitStart::Off,
                _ => UnitStart::Ready(subject.bring_up(&machine, number, &mut tables).unwrap()),
            });
        }
        let memory = Shared::new(&machine, firmware.units.len());
        let layout = machine.layout();
        let table = subject.as_ref().map_or(TableState::Absent, |_| TableState::Parsed(T::TABLE));
        let server = Server::start(Startup {
            config: policy,
            table,
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
        Self { server, machine, memory, subject, ledger: Ledger::default() }
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
}

impl<T: UnderTest> Side for World<T> {
    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn open(
        &mut self,
        caller: Caller,
        at: Option<Handle>,
        path: &str,
        write: bool,
    ) -> Result<Handle, Refusal> {
        let handle = self.server.open(caller, at, path, write)?;
        self.ledger.handles.push(handle);
        Ok(handle)
    }

    fn close(&mut self, handle: Handle) {
        self.ledger.handles.retain(|open| *open != handle);
        self.ledger.offsets.remove(&handle.0);
        self.server.close(handle);
    }

    fn read(&mut self, handle: Handle, out: &mut [u8]) -> Result<usize, Refusal> {
        self.server.tick();
        let offset = self.ledger.offsets.entry(handle.0).or_default();
        let length = self.server.read(handle, *offset, out)?;
        *offset += u64::try_from(length).unwrap();
        Ok(length)
    }

    fn call(&mut self, handle: Handle, bytes: &mut [u8], length: usize) -> Result<usize, Refusal> {
        self.server.call(handle, bytes, length)
    }

    fn names(&mut self, handle: Handle) -> Result<Vec<String>, Refusal> {
        let mut names = Vec::new();
        self.server.names(handle, 0, &mut |name| {
            names.push(name.to_owned());
            true
        })?;
        Ok(names)
    }

    fn share(&mut self, handle: Handle) -> Result<(File, u64), Refusal> {
        self.server.share(handle)
    }

    fn import(&mut self, session: Handle, buffer: Handle) -> Result<u32, Refusal> {
        self.server.import(session, buffer)
    }

    fn readable(&mut self, handle: Handle) -> bool {
        self.server.tick();
        self.server.watch(handle, READABLE).is_ok_and(|bits| bits & READABLE != 0)
    }

    fn kill_clients(&mut self) {
        for handle in std::mem::take(&mut self.ledger.handles) {
            self.server.close(handle);
        }
    }

    fn device_read(&self, device: PciAddress, iova: u64, length: usize) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(length);
        for piece in self.pieces(device, iova, length, false) {
            let (physical, bytes) = piece?;
            let mut part = vec![0; bytes];
            self.memory.read(physical, &mut part);
            out.extend(part);
        }
        Ok(out)
    }

    fn device_write(&self, device: PciAddress, iova: u64, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        for piece in self.pieces(device, iova, bytes.len(), true) {
            let (physical, count) = piece?;
            let (now, later) = rest.split_at(count);
            self.memory.write(physical, now);
            rest = later;
        }
        Ok(())
    }

    fn reach(&self, device: PciAddress) -> Vec<(u64, u64)> {
        let Some(unit) = self.unit() else { return vec![(0, u64::MAX)] };
        let reach = self.machine.reach(unit, device.requester.0, Through::TablesAndCaches);
        reach.into_iter().map(|run| (run.iova, run.last)).collect()
    }

    fn counts(&self) -> Counts {
        let mut counts = self.ledger.counts.clone();
        if let Some(subject) = &self.subject {
            let (pages, _, waits) = subject.counts(&self.machine, 0);
            (counts.page_invalidations, counts.waits) = (pages, waits);
        }
        let (reads, writes) = self.machine.register_accesses();
        counts.register_accesses = reads + writes;
        counts
    }
}
