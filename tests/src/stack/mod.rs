//! Runs the whole server over software units. Clients send the bytes of scheme calls; their devices access memory
//! through the unit.

mod client;
mod discovery;
mod facts;
mod notes;
mod snapshot;
mod table;
mod trace;

pub use client::request;
pub use discovery::Functions;
pub use facts::SharedFacts;
pub use notes::SharedNotes;
pub use snapshot::Snapshot;
pub use table::table;

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::UnitError;
use iommud::policy::{ClientId, Config, UnitIndex};
use iommud::server::{Budget, Caller, Driven, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::{Firmware, NamedDevice, ReservedRegion};
use iommud::topology::pci::{FunctionKind, PciFunction};
use iommud::trace::Recorder;

use crate::conformance::UnderTest;
pub use crate::conformance::vtd::scope;
use crate::machine::{Buffers, Layout, Machine};

/// The configuration of a stack.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The policy.
    pub config: Config,
    /// The functions of the machine.
    pub functions: Vec<PciFunction>,
    /// Devices behind the first unit; all others are behind the last. When empty, there is one unit.
    pub behind_first: Vec<PciAddress>,
    /// Regions that firmware reserves.
    pub reserved: Vec<ReservedRegion>,
    /// Devices that firmware names but that are not functions.
    pub named: Vec<NamedDevice>,
    /// Buffer memory belongs to the system until the server takes it. When false, the server owns it from the start.
    pub take_memory: bool,
    /// Units that are off when the server starts, and come up later.
    pub off: Vec<usize>,
    /// Memory that an earlier server left behind.
    pub left: Vec<(u64, u64)>,
    /// The memory of the machine.
    pub layout: Layout,
    /// The server records what it does: see [`Stack::trace`]. Firmware's table is then read from its bytes.
    pub recorded: bool,
    /// The text of the policy, which `config` is parsed from, for a setup that is recorded.
    pub policy: &'static str,
}

/// An endpoint integrated in the root complex: a group of its own.
///
/// # Panics
/// When the address is out of range.
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
    /// The notes of the server for its successor.
    pub notes: SharedNotes,
    /// The facts of the server for its successor.
    pub facts: SharedFacts,
}

fn ranges(pairs: &[(u64, u64)]) -> Vec<PhysRange> {
    pairs.iter().map(|(start, length)| PhysRange::new(PhysAddr(*start), *length).unwrap()).collect()
}

/// Builds firmware's description of the units of a setup.
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
    /// Starts a server on a machine of this setup, with one subject for each unit (the last one is repeated).
    #[must_use]
    pub fn start(subjects: &[T], setup: Setup) -> Self {
        Self::start_prepared(subjects, setup, |_| ())
    }

    /// Starts a server like [`Stack::start`], after `prepare` has changed the machine.
    ///
    /// # Panics
    /// When `subjects` is empty.
    #[must_use]
    pub fn start_prepared(subjects: &[T], setup: Setup, prepare: impl FnOnce(&Machine)) -> Self {
        Self::start_noted(subjects, setup, |machine, _| prepare(machine))
    }

    /// Starts a server like [`Stack::start_prepared`]. `prepare` also gets the notes, to enter those of earlier
    /// servers.
    ///
    /// # Panics
    /// When `subjects` is empty.
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
        let facts = SharedFacts::default();
        let server = Self::serve(subjects, &setup, &machine, (&notes, &facts));
        let units = firmware(subjects, &setup).units.into_iter();
        let registers = units.filter_map(|unit| unit.registers.ok()).collect();
        Self { machine, server, setup, registers, notes, facts }
    }

    /// Kills the server, like a crash, and starts another one on the unchanged machine.
    #[must_use]
    pub fn restart(self, subjects: &[T]) -> Self {
        let Self { machine, server, setup, registers, notes, facts } = self;
        drop(server);
        let server = Self::serve(subjects, &setup, &machine, (&notes, &facts));
        Self { machine, server, setup, registers, notes, facts }
    }

    /// Kills the server and starts another one in its place. The content of the first one's memory stays.
    pub fn reboot(&mut self, subjects: &[T]) {
        let kept = (&self.notes, &self.facts);
        self.server = Self::serve(subjects, &self.setup, &self.machine, kept);
    }

    /// Reboots like [`Stack::reboot`], but the new server dies after `after` actions of the CPU. Returns false when
    /// it came to serve before that. Its effects on memory and units stay.
    ///
    /// # Panics
    /// Passes on any other panic of the server.
    pub fn reboot_dying(&mut self, subjects: &[T], after: u64) -> bool {
        let Self { machine, setup, notes, facts, .. } = self;
        let serve = || Self::serve(subjects, setup, machine, (notes, facts));
        let served = machine.dying_after(after, serve);
        let died = served.is_none();
        if let Some(server) = served {
            self.server = server;
        }
        died
    }

    /// Brings up a unit that was off.
    ///
    /// # Errors
    /// The backend's error; the unit stays unavailable.
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

    /// Lets the server rescan for functions. The returned list starts with the functions of the setup.
    pub fn discover(&mut self) -> Functions {
        let functions = Functions::of(self.setup.functions.clone());
        self.server.discover_with(Box::new(functions.clone()));
        functions
    }

    /// Writes to a file of the scheme as an administrator.
    ///
    /// # Errors
    /// The server's refusal.
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
        (notes, facts): (&SharedNotes, &SharedFacts),
    ) -> Server<T::Unit, Buffers> {
        let described = firmware(subjects, setup);
        let (firmware, recorder) = match setup.recorded {
            true => trace::recorded::<T>(setup, &described),
            false => (described, Recorder::default()),
        };
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
        let startup = Startup {
            config: setup.config.clone(),
            table: TableState::Parsed(T::TABLE),
            firmware,
            units,
            functions: setup.functions.clone(),
            ram: ranges(&setup.layout.ram),
            own: ranges(&trace::own(setup)),
            left: ranges(&setup.left),
            memory,
            buffers: machine.buffers(),
            budget: Budget::default(),
        };
        let driven = Driven::new(notes.noted(), Box::new(notes.clone())).after(notes.tags());
        let mut server = Server::start_recorded(startup, driven, recorder);
        server.keep_facts(Box::new(facts.clone()));
        server
    }

    /// First byte and length of the registers of each unit.
    #[must_use]
    pub fn registers(&self) -> Vec<(u64, u64)> {
        let of = |range: PhysRange| (range.first().0, range.length());
        self.registers.iter().copied().map(of).collect()
    }

    /// Returns the number of the unit in front of a device.
    #[must_use]
    pub fn unit_of(&self, device: PciAddress) -> usize {
        let first = self.setup.behind_first.contains(&device);
        usize::from(!first && !self.setup.behind_first.is_empty())
    }
}
