//! A machine with any number of units, and a server that takes as much memory as the machine needs.

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::Survey;
use iommud::policy::{ClientId, Config};
use iommud::server::{Budget, Caller, Server, Startup, TableState, UnitStart};
use iommud::sizing::{Facts, Need, memory_need};
use iommud::topology::firmware::{Firmware, ReservedRegion};
use iommud::topology::pci::PciFunction;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Buffers, Layout, Machine};
use iommud_tests::stack::endpoint;

use super::MIB;

/// First byte of table memory, and of buffer memory.
const TABLES: u64 = 1024 * MIB;
const BUFFERS: u64 = 1792 * MIB;

/// The configuration of a machine, before memory is taken.
pub(crate) struct Fleet<T: UnderTest> {
    pub(crate) subjects: Vec<T>,
    /// First byte and length of each range.
    pub(crate) ram: Vec<(u64, u64)>,
    pub(crate) functions: Vec<PciFunction>,
    pub(crate) reserved: Vec<ReservedRegion>,
    pub(crate) config: Config,
    /// First byte and length of memory that earlier servers left behind.
    pub(crate) left: Vec<(u64, u64)>,
}

/// A running server.
pub(crate) struct Running<T: UnderTest> {
    pub(crate) machine: Machine,
    pub(crate) server: Server<T::Unit, Buffers>,
}

fn ranges(pairs: &[(u64, u64)]) -> Vec<PhysRange> {
    pairs.iter().map(|(start, length)| PhysRange::new(PhysAddr(*start), *length).unwrap()).collect()
}

impl<T: UnderTest> Fleet<T> {
    /// One unit for each subject, with two functions behind it, on a bus of its own.
    pub(crate) fn new(subjects: Vec<T>, ram: &[(u64, u64)]) -> Self {
        let buses = 0..u8::try_from(subjects.len()).unwrap();
        let functions = buses.flat_map(|bus| [endpoint(bus, 3, 0), endpoint(bus, 4, 0)]).collect();
        let (config, reserved, left) = (Config::default(), Vec::new(), Vec::new());
        Self { subjects, ram: ram.to_vec(), functions, reserved, config, left }
    }

    /// Returns the number of the unit in front of a bus.
    fn unit_of(&self, bus: u8) -> usize {
        usize::from(bus) % self.subjects.len()
    }

    fn firmware(&self) -> Firmware {
        let devices = |unit: usize| -> Vec<RequesterId> {
            let here = |address: &PciAddress| self.unit_of(address.requester.bus()) == unit;
            let all = self.functions.iter().map(|function| function.address);
            all.filter(here).map(|address| address.requester).collect()
        };
        let last = self.subjects.len() - 1;
        let describe = |(index, subject): (usize, &T)| match index == last {
            true => subject.describe(index, None),
            false => subject.describe(index, Some(&devices(index))),
        };
        let units = self.subjects.iter().enumerate().map(describe).collect();
        Firmware { units, reserved: self.reserved.clone(), ..Firmware::default() }
    }

    /// Computes the machine's need of memory from its units' surveys.
    pub(crate) fn need(&self) -> Need {
        let machine = Machine::default();
        for subject in &self.subjects {
            subject.add(&machine);
        }
        let surveys: Vec<Option<Survey>> = self
            .subjects
            .iter()
            .enumerate()
            .map(|(index, subject)| subject.survey(&machine, index).ok())
            .collect();
        assert_eq!(machine.register_accesses().1, 0, "looking writes nothing");
        memory_need(&Facts {
            firmware: &self.firmware(),
            surveys: &surveys,
            ram: &ranges(&self.ram),
            functions: &self.functions,
            config: &self.config,
            left: &ranges(&self.left),
        })
    }

    /// Starts a server like a platform without command-line options.
    pub(crate) fn start(&self) -> Running<T> {
        let need = self.need();
        self.start_with(&need, need.table_bytes())
    }

    /// Starts a server with this many bytes of table memory.
    pub(crate) fn start_with(&self, need: &Need, tables: u64) -> Running<T> {
        let layout = Layout {
            ram: self.ram.clone(),
            tables: (TABLES, tables),
            buffers: (BUFFERS, need.buffer_bytes),
            ..Layout::default()
        };
        let machine = Machine::new(layout);
        for subject in &self.subjects {
            subject.add(&machine);
        }
        let mut memory = machine.tables();
        let units = self.subjects.iter().enumerate();
        let units = units.map(|(index, subject)| {
            let ready = subject.bring_up(&machine, index, &mut memory);
            ready.map_or_else(UnitStart::Failed, UnitStart::Ready)
        });
        let startup = Startup {
            units: units.collect(),
            config: self.config.clone(),
            table: TableState::Parsed(T::TABLE),
            firmware: self.firmware(),
            functions: self.functions.clone(),
            ram: ranges(&self.ram),
            own: own(tables, need.buffer_bytes),
            left: ranges(&self.left),
            memory,
            buffers: machine.buffers(),
            budget: budget(need, tables),
        };
        Running { server: Server::start(startup), machine }
    }
}

/// The server's own memory: one piece for tables, one for buffers, and a separate page for notes.
fn own(tables: u64, buffers: u64) -> Vec<PhysRange> {
    ranges(&[(TABLES, tables), (BUFFERS, buffers), (BUFFERS + buffers + 0x5000, 0x1000)])
}

fn budget(need: &Need, tables: u64) -> Budget {
    Budget {
        table_frames_total: tables / 4096,
        table_frames_base: need.base_frames,
        buffer_bytes_total: need.buffer_bytes,
        buffer_bytes_base: 0,
        unit_frames: need.units.clone(),
        tables_that_do: need.table_bytes() / MIB,
    }
}

impl<T: UnderTest> Running<T> {
    /// Returns the state of each unit from `status`.
    pub(crate) fn states(&mut self) -> Vec<String> {
        let caller = Caller { client: ClientId(1), uid: 0 };
        let handle = self.server.open(caller, None, "status", false).unwrap();
        let mut text = vec![0; 1 << 16];
        let length = self.server.read(handle, 0, &mut text).unwrap();
        self.server.close(handle);
        let text = String::from_utf8(text[..length].to_vec()).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("unit "));
        lines.map(|line| line.split_once(T::FAMILY).unwrap().1.trim().to_owned()).collect()
    }

    /// Frames of table memory that the server holds.
    pub(crate) fn frames(&self) -> u64 {
        u64::try_from(self.machine.table_frames()).unwrap()
    }
}
