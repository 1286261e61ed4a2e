//! Texts, whole where they are short.

use super::calls::region;
use super::*;
use crate::policy::{Matcher, Rule};
use crate::topology::firmware::NamedDevice;
use iommu_protocol::ids::RequesterId;

#[test]
fn status_says_what_is_confined_and_what_is_kept() {
    let (mut server, unit) = one();
    let status = |server: &mut Tested| server.text(Path::Status).unwrap();
    let well = "table: DMAR parsed\n\
                unit 0: vt-d enabled\n\
                confinement: on\n\
                policy: strict\n\
                groups: 2\n\
                devices: 2\n\
                sessions: 0\n";
    assert_eq!(status(&mut server), well);
    let session = claim(&mut server, address(0, 3));
    attach(&mut server, session);
    allocate(&mut server, session, 0x4000);
    assert_eq!(status(&mut server), well.replace("sessions: 0", "sessions: 1"));
    unit.change(|unit| unit.dead = true);
    server.tick();
    server.close(session);
    let failed = "table: DMAR parsed\n\
                  unit 0: vt-d failed(registers read all ones)\n\
                  confinement: NOT CONFINED, every device reaches all memory\n\
                  policy: strict\n\
                  groups: 2\n\
                  devices: 2\n\
                  sessions: 0\n\
                  quarantine: 16384 bytes\n";
    assert_eq!(status(&mut server), failed);
}

/// A requester id behind a unit is a device of the unit's segment.
#[test]
fn a_silenced_device_is_named_with_its_segment() {
    let units = [FakeUnit::default(), FakeUnit::default()];
    let mut server = Tested::start(machine(units.clone().map(UnitStart::Ready)));
    for (unit, source) in units.iter().zip([0x20, 0x18]) {
        let storm = [(vec![fault(RequesterId(source)); 16], 0)];
        unit.change(|unit| unit.faults = storm.into());
    }
    units[1].change(|unit| unit.faults.push_back((vec![fault(RequesterId(0x48)); 16], 0)));
    server.tick();
    let status = server.text(Path::Status).unwrap();
    let silenced: Vec<_> = status.lines().filter(|line| line.starts_with("silenced")).collect();
    let expected = [
        "silenced: 0000--00--04.0 after 16 faults",
        "silenced: 0001--00--03.0 after 16 faults",
        "silenced: 0001--00--09.0 after 16 faults, no function is known there",
    ];
    assert_eq!(silenced, expected);
}

#[test]
fn a_unit_tells_what_its_named_devices_reach() {
    let unit = FakeUnit::default();
    let mut startup = machine([UnitStart::Off, UnitStart::Ready(unit.clone())]);
    let named = |name: &str, path| NamedDevice {
        unit: 1,
        start_bus: 0,
        path: vec![path],
        name: name.into(),
    };
    startup.firmware.named =
        vec![named("OPEN", (0x14, 5)), named("SHUT", (0x14, 6)), named("KNOWN", (3, 0))];
    let open = PciAddress::new(1, 0, 0x14, 5).unwrap();
    startup.config.rules = vec![Rule { matcher: Matcher::Address(open), mode: Mode::Off }];
    let mut server = Tested::start(startup);
    let text = |server: &mut Tested| server.text(Path::Unit(1)).unwrap();
    let expected = "kind: vt-d\n\
                    state: enabled\n\
                    segment: 0001\n\
                    all other devices: true\n\
                    faults: asked for\n\
                    registers: none\n\
                    devices: 2\n\
                    domains: 0\n\
                    named by firmware: OPEN, 0001--00--14.5, reaches: all memory, untranslated\n\
                    named by firmware: SHUT, 0001--00--14.6, reaches: nothing\n\
                    named by firmware: KNOWN, 0001--00--03.0, reaches: what the device of that name does\n";
    assert_eq!(text(&mut server), expected);
    unit.change(|unit| unit.dead = true);
    server.tick();
    for second in 0..2 {
        server.recover_units(crate::hw::Nanos(second * 1_000_000_000));
    }
    let text = text(&mut server);
    let failed = "kind: vt-d\n\
                  state: failed(registers read all ones)\n\
                  brought up again: 1 times\n\
                  segment: 0001\n";
    assert!(text.starts_with(failed), "{text}");
    assert_eq!(text.matches("reaches: not known: its unit is not enabled\n").count(), 3);
}

/// What a device of segment 0, and one of segment 1, are said to reach.
#[test]
fn a_device_tells_what_it_reaches() {
    let unit = FakeUnit::default();
    let mut startup = machine([UnitStart::Ready(unit.clone()), UnitStart::Off]);
    let open = Matcher::Address(address(0, 4));
    startup.config.rules = vec![Rule { matcher: open, mode: Mode::Off }];
    let mut server = Tested::start(startup);
    let reaches = |server: &mut Tested| {
        [address(0, 3), address(0, 4), address(1, 3)].map(|device| {
            let text = server.text(Path::Device(device)).unwrap();
            text.lines().find_map(|line| line.strip_prefix("reaches: ")).unwrap().to_owned()
        })
    };
    let (open, off) = ("all memory, untranslated", "what it reached before iommud, NOT CONFINED");
    assert_eq!(reaches(&mut server), ["nothing", open, off]);
    let session = claim(&mut server, address(0, 3));
    attach(&mut server, session);
    assert_eq!(reaches(&mut server), ["what its session maps", open, off]);
    server.close(session);
    let cut = "nothing: its owner ended while it was attached";
    assert_eq!(reaches(&mut server), [cut, open, off]);
    unit.change(|unit| unit.dead = true);
    server.tick();
    let failed = "not known: its unit failed";
    assert_eq!(reaches(&mut server), [failed, failed, off]);
}

/// Two functions of one device: the one without a driver is named in `status`, and its own text says why.
#[test]
fn a_member_without_a_driver_is_named_beside_an_attached_one() {
    let mut startup = machine([UnitStart::Ready(FakeUnit::default())]);
    startup.config.default = Mode::Compat;
    let [driven, other] = [0, 1].map(|number| PciAddress::new(0, 0, 3, number).unwrap());
    startup.functions =
        [driven, other].map(|at| PciFunction { multifunction: true, ..endpoint(at) }).to_vec();
    let mut server = Tested::start(startup);
    let line = "left out: 0000--00--03.1 reaches nothing: another device of its group is attached, and no driver has \
                claimed this one\n";
    let said = |server: &mut Tested| {
        let device = server.text(Path::Device(other)).unwrap();
        let status = server.text(Path::Status).unwrap();
        let reaches = line.replace("left out: 0000--00--03.1 reaches", "reaches:");
        (status.contains(line), device.contains(&reaches))
    };
    let session = claim(&mut server, driven);
    assert_eq!(said(&mut server), (false, false));
    attach(&mut server, session);
    assert_eq!(said(&mut server), (true, true));
    server.close(session);
    assert_eq!(said(&mut server), (false, false));
}

/// 257 regions of firmware, and the interrupt window: two more than are listed.
#[test]
fn a_domain_of_many_regions_says_how_many_it_leaves_out() {
    for (regions, left_out) in [(254, None), (255, None), (257, Some("2"))] {
        let mut startup = machine([UnitStart::Ready(FakeUnit::default())]);
        startup.firmware.reserved =
            (0..regions).map(|at| region(0x10_0000 + 0x2000 * at)).collect();
        let mut server = Tested::start(startup);
        claim(&mut server, address(0, 3));
        let names = server.entries(Path::Domains);
        let text = server.text(Path::Domain(names[0].parse().unwrap())).unwrap();
        let listed = text.lines().filter(|line| line.starts_with("reserved: ")).count() as u64;
        assert_eq!(listed, (regions + 1).min(256));
        let prefix = "reserved regions not listed: ";
        assert_eq!(text.lines().find_map(|line| line.strip_prefix(prefix)), left_out);
    }
}
