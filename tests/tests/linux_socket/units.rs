//! A server with all devices behind one software unit.

use iommud::platform::linux::memory::{HugeBuffers, Taken};
use iommud::platform::linux::transport::{Transport, WireLog};
use iommud::policy::{Config, UnitIndex};
use iommud::server::{Budget, Server, Startup, TableState, UnitStart};
use iommud::topology::firmware::Firmware;
use iommud_tests::conformance::{UnderTest, vtd};
use iommud_tests::machine::{Layout, Machine};

use crate::harness::{Pages, functions, take};

pub(crate) type Unit = <vtd::Subject as UnderTest>::Unit;
pub(crate) type Loop = Transport<Unit, HugeBuffers<Pages>>;

/// Starts a server with all devices behind one unit that is not up.
pub(crate) fn late() -> (Loop, Machine, vtd::Subject) {
    with_unit(UnitStart::Off)
}

/// Starts a server with all devices behind one unit.
pub(crate) fn with_unit(unit: UnitStart<Unit>) -> (Loop, Machine, vtd::Subject) {
    let subject = vtd::matrix().remove(0);
    let machine = Machine::new(Layout::default());
    subject.add(&machine);
    let Taken { buffers, ranges, .. } = take();
    let firmware = Firmware { units: vec![subject.describe(0, None)], ..Firmware::default() };
    let server = Server::start(Startup {
        config: Config::default(),
        table: TableState::Parsed("DMAR"),
        firmware,
        units: vec![unit],
        functions: functions(),
        ram: Vec::new(),
        own: ranges,
        left: Vec::new(),
        memory: machine.tables(),
        buffers,
        budget: Budget::default(),
    });
    (Transport::new(server, WireLog::off()).unwrap(), machine, subject)
}

pub(crate) fn arrive(looped: &mut Loop, machine: &Machine, subject: &vtd::Subject) {
    let unit = subject.bring_up(machine, 0, looped.server().table_memory()).unwrap();
    looped.server().unit_arrived(UnitIndex(0), unit);
}
