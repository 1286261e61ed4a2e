//! Units that come while the server runs.

use super::*;
use crate::hw::{Nanos, UnitError};
use crate::policy::UnitIndex;
use crate::server::Refusal;
use iommu_protocol::ids::RequesterId;

const LATE: UnitIndex = UnitIndex(0);

/// A unit that was off has nothing cached: its entries are written once. One that translated for somebody else may have
/// any tag cached: its requesters are denied until it is flushed, which turning it on does.
#[test]
fn a_late_unit_opens_entries_at_once_only_if_it_was_off() {
    let [first, second] = [0x18, 0x20].map(RequesterId);
    let shut = [Done::Blocked(first), Done::Blocked(second)];
    let open = [Done::Opened(first), Done::Opened(second)];
    for translating in [false, true] {
        let mut startup = machine([UnitStart::Off]);
        startup.config.default = Mode::Off;
        let mut server = Tested::start(startup);
        let unit = FakeUnit::default();
        unit.change(|unit| unit.translating = translating);
        server.unit_arrived(LATE, unit.clone());
        let done = unit.change(|unit| unit.done.clone());
        let expected = if translating {
            [&shut[..], &[Done::On], &open].concat()
        } else {
            [&open[..], &[Done::On]].concat()
        };
        assert_eq!(done, expected, "translating: {translating}");
        assert!(server.all_units_enabled());
    }
}

/// A late unit that does not carry out a command is failed, and is tried again without the platform.
#[test]
fn a_late_unit_that_is_stuck_is_tried_again() {
    let mut server = Tested::start(machine([UnitStart::Off]));
    let state = |server: &mut Tested| {
        let text = server.text(Path::Unit(0)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("state: ")).unwrap().to_owned()
    };
    let claims = |server: &mut Tested| {
        let path = format!("devices/{}", address(0, 3));
        server.open(ROOT, None, &path, true).map(|handle| server.close(handle))
    };
    assert_eq!(
        (state(&mut server), claims(&mut server)),
        ("parsed".into(), Err(Refusal::NotReady))
    );
    let error = UnitError::Timeout { what: "its queue" };
    server.unit_stuck(LATE, FakeUnit::default(), &error);
    let failed = "failed(timed out waiting for its queue)".into();
    assert_eq!((state(&mut server), claims(&mut server)), (failed, Err(Refusal::UnitFailed)));
    for second in 0..2 {
        assert!(!server.all_units_enabled());
        assert_eq!(server.recover_units(Nanos(second * 1_000_000_000)), None);
    }
    assert_eq!((state(&mut server), claims(&mut server)), ("enabled".into(), Ok(())));
}

/// A unit without memory for the tables of policy is failed. If less was taken than was estimated, the reason says how
/// much is needed: here 3 frames, and 2 MiB for everything.
#[test]
fn a_unit_without_memory_for_its_tables_is_failed() {
    let budget = Budget { unit_frames: vec![3], tables_that_do: 2, ..Budget::default() };
    for (budget, reason) in [
        (Budget::default(), "no memory that meets the constraints"),
        (budget, "needs 12 KiB for tables; --tables 2 would do"),
    ] {
        let mut startup = machine([UnitStart::Ready(FakeUnit::default())]);
        startup.config.default = Mode::Compat;
        (startup.memory.budget, startup.budget) = (0, budget);
        let mut server = Tested::start(startup);
        let text = server.text(Path::Unit(0)).unwrap();
        assert!(text.contains(&format!("state: failed({reason})\n")), "{text}");
    }
}
