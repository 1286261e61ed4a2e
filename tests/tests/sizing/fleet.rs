//! A machine with any number of units, and a server on it.

use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::Config;
use iommud::server::{Caller, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::Firmware;
use iommud::topology::pci::PciFunction;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Buffers, Layout, Machine};
use iommud_tests::stack::endpoint;

use super::MIB;

/// What a machine is made of, before memory is taken.
pub(crate) struct Fleet<T: UnderTest> {
    subjects: Vec<T>,
    ram: Vec<(u64, u64)>,
    functions: Vec<PciFunction>,
    config: Config,
}

/// A server that has started.
pub(crate) struct Running<T: UnderTest> {
    pub(crate) machine: Machine,
    pub(crate) server: Server<T::Unit, Buffers>,
}

fn ranges(pairs: &[(u64, u64)]) -> Vec<PhysRange> {
    pairs.iter().map(|(start, length)| PhysRange::new(PhysAddr(*start), *length).unwrap()).collect()
}

impl<T: UnderTest> Fleet<T> {
    /// One unit a subject; two functions behind each, on a bus of its own.
    pub(crate) fn new(subjects: Vec<T>, ram: &[(u64, u64)]) -> Self {
        let buses = 0..u8::try_from(subjects.len()).unwrap();
        let functions = buses.flat_map(|bus| [endpoint(bus, 3, 0), endpoint(bus, 4, 0)]).collect();
        Self { subjects, ram: ram.to_vec(), functions, config: Config::default() }
    }

    fn firmware(&self) -> Firmware {
        let last = self.subjects.len() - 1;
        let devices = |unit: usize| -> Vec<_> {
            let on = |address: &PciAddress| usize::from(address.requester.bus()) == unit;
            let all = self.functions.iter().map(|function| function.address);
            all.filter(on).map(|address| address.requester).collect()
        };
        let describe = |(index, subject): (usize, &T)| match index == last {
            true => subject.describe(index, None),
            false => subject.describe(index, Some(&devices(index))),
        };
        Firmware {
            units: self.subjects.iter().enumerate().map(describe).collect(),
            ..Firmware::default()
        }
    }

    /// Starts a server as a platform does.
    pub(crate) fn start(&self) -> Running<T> {
        let layout = Layout {
            ram: self.ram.clone(),
            tables: (1024 * MIB, 4 * MIB),
            buffers: (1792 * MIB, 8 * MIB),
            ..Layout::default()
        };
        let machine = Machine::new(layout.clone());
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
            own: ranges(&[layout.tables, layout.buffers]),
            left: Vec::new(),
            memory,
            buffers: machine.buffers(),
        };
        Running { server: Server::start(startup), machine }
    }
}

impl<T: UnderTest> Running<T> {
    /// The state of each unit, as `status` says it.
    pub(crate) fn states(&mut self) -> Vec<String> {
        let caller = Caller { client: iommud::policy::ClientId(1), uid: 0 };
        let handle = self.server.open(caller, None, "status", false).unwrap();
        let mut text = vec![0; 1 << 16];
        let length = self.server.read(handle, 0, &mut text).unwrap();
        let text = String::from_utf8(text[..length].to_vec()).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("unit "));
        lines.map(|line| line.split_once(T::FAMILY).unwrap().1.trim().to_owned()).collect()
    }
}
