//! The whole server over software units: what a client does goes in as the bytes of scheme calls, what its
//! device does goes through the unit.

mod client;
mod discovery;
mod notes;
mod snapshot;

pub use client::request;
pub use discovery::Functions;
pub use notes::SharedNotes;
pub use snapshot::Snapshot;

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::UnitError;
use iommud::policy::{ClientId, Config, UnitIndex};
use iommud::server::{Budget, Caller, Driven, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::{Firmware, NamedDevice, ReservedRegion};
use iommud::topology::pci::{FunctionKind, PciFunction};

use crate::conformance::UnderTest;
pub use crate::conformance::vtd::scope;
use crate::machine::{Buffers, Layout, Machine};

/// What a stack is made of.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The policy.
    pub config: Config,
    /// The functions of the machine.
    pub functions: Vec<PciFunction>,
    /// Devices behind the first unit; all others are behind the last. One unit when empty.
    pub behind_first: Vec<PciAddress>,
    /// What firmware reserves.
    pub reserved: Vec<ReservedRegion>,
    /// Devices that firmware names and that are no functions.
    pub named: Vec<NamedDevice>,
    /// Memory of buffers is the system's until it is taken; else it is the server's from the start.
    pub take_memory: bool,
    /// Units that are left alone at start and come later.
    pub off: Vec<usize>,
    /// Memory of an earlier server.
    pub left: Vec<(u64, u64)>,
    /// What memory there is.
    pub layout: Layout,
}

/// An endpoint integrated in the root complex: a group of its own.
///
/// # Panics
/// When there is no such address.
#[must_use]
pub fn endpoint(bus: u8, device: u8, function: u8) -> PciFunction {
    PciFunction {
        address: PciAddress::new(0, bus, device, function).unwrap(),
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00_ff00,
        kind: FunctionKind::RootComplexEndpoint,
        multifunction: false,
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    }
}

/// A machine with a running server.
pub struct Stack<T: UnderTest> {
    /// The machine.
    pub machine: Machine,
    /// The server.
    pub server: Server<T::Unit, Buffers>,
    /// The setup it was started with.
    pub setup: Setup,
    registers: Vec<PhysRange>,
    /// What the server notes for the next one.
    pub notes: SharedNotes,
}

fn ranges(pairs: &[(u64, u64)]) -> Vec<PhysRange> {
    pairs.iter().map(|(start, length)| PhysRange::new(PhysAddr(*start), *length).unwrap()).collect()
}

/// What firmware says of the units of a setup.
fn firmware<T: UnderTest>(subjects: &[T], setup: &Setup) -> Firmware {
    let subject = |index| subjects.get(index).or(subjects.last()).unwrap();
    let mut units = Vec::new();
    if !setup.behind_first.is_empty() {
        let devices: Vec<_> = setup.behind_first.iter().map(|device| device.requester).collect();
        units.push(subject(0).describe(0, Some(&devices)));
    }
    units.push(subject(units.len()).describe(units.len(), None));
    Firmware {
        units,
        reserved: setup.reserved.clone(),
        named: setup.named.clone(),
        ..Firmware::default()
    }
}

impl<T: UnderTest> Stack<T> {
    /// Starts a server on a machine of this setup, with one subject a unit (the last is repeated).
    #[must_use]
    pub fn start(subjects: &[T], setup: Setup) -> Self {
        Self::start_prepared(subjects, setup, |_| ())
    }

    /// As [`Stack::start`], after something was done to the machine.
    ///
    /// # Panics
    /// When there are more units than subjects, and none.
    #[must_use]
    pub fn start_prepared(subjects: &[T], setup: Setup, prepare: impl FnOnce(&Machine)) -> Self {
        Self::start_noted(subjects, setup, |machine, _| prepare(machine))
    }

    /// As [`Stack::start_prepared`], with notes of servers before it.
    ///
    /// # Panics
    /// As [`Stack::start_prepared`].
    #[must_use]
    pub fn start_noted(
        subjects: &[T],
        setup: Setup,
        prepare: impl FnOnce(&Machine, &SharedNotes),
    ) -> Self {
        let machine = Machine::new(setup.layout.clone());
        let units = 1 + usize::from(!setup.behind_first.is_empty());
        for index in 0..units {
            subjects.get(index).or(subjects.last()).unwrap().add(&machine);
        }
        let notes = SharedNotes::default();
        prepare(&machine, &notes);
        let server = Self::serve(subjects, &setup, &machine, &notes);
        let units = firmware(subjects, &setup).units.into_iter();
        let registers = units.filter_map(|unit| unit.registers.ok()).collect();
        Self { machine, server, setup, registers, notes }
    }

    /// Ends the server without a word, as a crash does, and starts another one on the machine as it is.
    #[must_use]
    pub fn restart(self, subjects: &[T]) -> Self {
        let Self { machine, server, setup, registers, notes } = self;
        drop(server);
        let server = Self::serve(subjects, &setup, &machine, &notes);
        Self { machine, server, setup, registers, notes }
    }

    /// Ends the server without a word and starts another one in its place; what the first one's memory holds
    /// stays as it is.
    pub fn reboot(&mut self, subjects: &[T]) {
        self.server = Self::serve(subjects, &self.setup, &self.machine, &self.notes);
    }

    /// As [`Stack::reboot`], but the new server dies at its next action after so many: false when it got to serving
    /// before. What it has done to memory and units stays.
    ///
    /// # Panics
    /// As the server does.
    pub fn reboot_dying(&mut self, subjects: &[T], after: u64) -> bool {
        let Self { machine, setup, notes, .. } = self;
        let served = machine.dying_after(after, || Self::serve(subjects, setup, machine, notes));
        let died = served.is_none();
        if let Some(server) = served {
            self.server = server;
        }
        died
    }

    /// A unit that was left alone comes up.
    ///
    /// # Errors
    /// The backend's: it does not.
    pub fn arrive(&mut self, subject: &T, unit: usize) -> Result<(), UnitError> {
        let index = UnitIndex(u32::try_from(unit).unwrap());
        let prepared = subject.prepare(&self.machine, unit, self.server.bring_up_memory(index));
        let mut hardware =
            prepared.inspect_err(|error| self.server.unit_not_arrived(index, error))?;
        match subject.take_over(&mut hardware, self.server.table_memory()) {
            Ok(()) => self.server.unit_arrived(index, hardware),
            Err(error) => {
                self.server.unit_stuck(index, hardware, &error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets the server look for functions among these, which begin as those of the setup.
    pub fn discover(&mut self) -> Functions {
        let functions = Functions::of(self.setup.functions.clone());
        self.server.discover_with(Box::new(functions.clone()));
        functions
    }

    /// An administrator writes to a file of the scheme.
    ///
    /// # Errors
    /// The server's.
    pub fn write(&mut self, path: &str, bytes: &[u8]) -> Result<usize, Refusal> {
        let caller = Caller { client: ClientId(u32::MAX), uid: 0 };
        let handle = self.server.open(caller, None, path, true)?;
        let written = self.server.write(handle, bytes);
        self.server.close(handle);
        written
    }

    fn serve(
        subjects: &[T],
        setup: &Setup,
        machine: &Machine,
        notes: &SharedNotes,
    ) -> Server<T::Unit, Buffers> {
        let firmware = firmware(subjects, setup);
        let mut memory = machine.tables();
        let units = (0..firmware.units.len())
            .map(|index| {
                if setup.off.contains(&index) {
                    return UnitStart::Off;
                }
                let subject = subjects.get(index).or(subjects.last()).unwrap();
                let mut unit = match subject.prepare(machine, index, &mut memory) {
                    Ok(unit) => unit,
                    Err(error) => return UnitStart::Failed(error),
                };
                match subject.take_over(&mut unit, &mut memory) {
                    Ok(()) => UnitStart::Ready(unit),
                    Err(error) => UnitStart::Stuck(unit, error),
                }
            })
            .collect();
        let mut own = vec![setup.layout.tables];
        if !setup.take_memory {
            own.push(setup.layout.buffers);
        }
        let startup = Startup {
            config: setup.config.clone(),
            table: TableState::Parsed(T::TABLE),
            firmware,
            units,
            functions: setup.functions.clone(),
            ram: ranges(&setup.layout.ram),
            own: ranges(&own),
            left: ranges(&setup.left),
            memory,
            buffers: machine.buffers(),
            budget: Budget::default(),
        };
        let driven = Driven::new(notes.noted(), Box::new(notes.clone())).after(notes.tags());
        Server::start_after(startup, driven)
    }

    /// First byte and length of the registers of each unit.
    #[must_use]
    pub fn registers(&self) -> Vec<(u64, u64)> {
        let of = |range: PhysRange| (range.first().0, range.length());
        self.registers.iter().copied().map(of).collect()
    }

    /// The unit in front of a device.
    #[must_use]
    pub fn unit_of(&self, device: PciAddress) -> usize {
        let first = self.setup.behind_first.contains(&device);
        usize::from(!first && !self.setup.behind_first.is_empty())
    }
}
