//! Fault records: how units are asked for them, by whom they are sent, and what is said of storms.

use super::*;
use crate::server::tests::lines::logged;
use iommu_protocol::ids::RequesterId;

/// The message of an interrupt: address and data.
const MESSAGE: (u64, u32) = (0xfee0_1000, 0x31);

/// Sixteen faults of a requester, which silence it, for one call.
fn storm(source: u16) -> (Vec<crate::hw::HardwareFault>, u32) {
    (vec![fault(RequesterId(source)); 16], 0)
}

#[test]
fn a_unit_is_asked_again_only_after_a_requester_was_silenced() {
    let (mut server, unit) = one();
    let tick = |server: &mut Tested| {
        unit.change(|unit| unit.asked = 0);
        (server.tick(), unit.change(|unit| unit.asked))
    };
    assert_eq!(tick(&mut server), (0, 1), "it has none");
    let one = |source| (vec![fault(RequesterId(source))], 0);
    unit.change(|unit| unit.faults = [one(0x18), one(0x20)].into());
    assert_eq!(tick(&mut server), (1, 1));
    assert_eq!(tick(&mut server), (1, 1));
    unit.change(|unit| unit.faults = [storm(0x18), one(0x20), one(0x20)].into());
    assert_eq!(tick(&mut server), (17, 2), "the other's are found at once");
    assert_eq!(metric(&mut server, "silenced"), 1);
    assert_eq!(tick(&mut server), (1, 1));
    // Four times at most.
    unit.change(|unit| unit.faults = [0x100, 0x101, 0x102, 0x103, 0x104].map(storm).into());
    assert_eq!(tick(&mut server), (64, 4));
    assert_eq!(metric(&mut server, "silenced"), 5);
}

#[test]
fn faults_that_units_lost_are_added_up() {
    let (mut server, unit) = one();
    for (lost, sum) in [(3, 3), (0, 3), (2, 5)] {
        unit.change(|unit| unit.faults.push_back((Vec::new(), lost)));
        server.tick();
        assert_eq!(metric(&mut server, "faults_lost_in_hardware"), sum);
    }
}

/// 64 ids of no function can be silenced. A device that makes up more is logged once, not for each of them.
#[test]
fn a_device_that_makes_up_ids_does_not_fill_the_log() {
    let (mut server, unit) = one();
    unit.change(|unit| unit.faults = (0x100..0x148).map(storm).collect());
    let lines = logged(|| while server.tick() > 0 {});
    let silenced = lines.iter().filter(|line| line.contains(": silenced: 16 faults"));
    assert_eq!(silenced.count(), 64);
    let lines: Vec<_> = lines.iter().filter(|line| line.contains("goes on")).collect();
    let expected =
        "WARN unit 0: 01:08.0 has too many faults, and goes on: a quota of this client is reached";
    assert_eq!(lines, [expected]);
    assert_eq!(metric(&mut server, "silenced"), 64);
    assert_eq!(metric(&mut server, "faults"), 72 * 16);
}

/// The first unit sends messages. The second cannot. The third is not up, and so is not asked.
#[test]
fn units_that_translate_send_a_message_for_faults() {
    let units: Vec<FakeUnit> = (0..3).map(|_| FakeUnit::default()).collect();
    units[0].change(|unit| unit.sends = true);
    units[2].change(|unit| unit.sends = true);
    let ready = |unit: &FakeUnit| UnitStart::Ready(unit.clone());
    let told = |server: &mut Tested, unit| {
        let text = server.text(Path::Unit(unit)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("faults: ")).unwrap().to_owned()
    };
    let mut server = Tested::start(machine([ready(&units[0]), ready(&units[1]), UnitStart::Off]));
    assert!(!server.enable_fault_interrupt(MESSAGE.0, MESSAGE.1), "the second cannot");
    let sent = || [0, 1, 2].map(|unit: usize| units[unit].change(|unit| unit.messages.clone()));
    assert_eq!(sent(), [vec![MESSAGE], vec![], vec![]]);
    let words = [0, 1, 2].map(|unit| told(&mut server, unit));
    assert_eq!(words, ["by interrupt", "asked for", "asked for"]);

    let mut server = Tested::start(machine([ready(&units[0]), UnitStart::Off]));
    assert!(server.enable_fault_interrupt(MESSAGE.0, MESSAGE.1), "all that translate do");
    let found = [(vec![fault(RequesterId(0x18)); 2], 0), (Vec::new(), 0)];
    units[0].change(|unit| unit.faults = found.into());
    assert_eq!(server.fault_interrupt(), 2);
    assert_eq!(metric(&mut server, "fault_interrupts"), 1);
    assert_eq!(server.fault_interrupt(), 0);
    assert_eq!(metric(&mut server, "fault_interrupts"), 2);
}

/// A unit that was revived reports by message again.
#[test]
fn a_unit_that_is_back_gets_its_message_again() {
    let (mut server, unit) = one();
    unit.change(|unit| unit.sends = true);
    assert!(server.enable_fault_interrupt(MESSAGE.0, MESSAGE.1));
    unit.change(|unit| unit.dead = true);
    server.tick();
    unit.change(|unit| unit.dead = false);
    for second in 0..2 {
        assert_eq!(server.recover_units(crate::hw::Nanos(second * 1_000_000_000)), None);
    }
    assert!(server.all_units_enabled());
    assert_eq!(unit.change(|unit| unit.messages.clone()), [MESSAGE; 2]);
    assert_eq!(metric(&mut server, "units_recovered"), 1);
}
