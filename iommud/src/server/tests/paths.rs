//! Paths and handles: directories, rights, readiness.

use super::*;
use crate::server::{Refusal, join};
use iommu_protocol::ids::RequesterId;

#[test]
fn a_path_below_a_directory() {
    let joined = [
        (Path::Root, "", ""),
        (Path::Root, "units/0", "units/0"),
        (Path::Units, "", "units"),
        (Path::Units, "0", "units/0"),
        (Path::Devices, "0000--00--03.0", "devices/0000--00--03.0"),
    ];
    for (base, rest, path) in joined {
        assert_eq!(join(base, rest), path);
    }
}

#[test]
fn directories_list_what_there_is() {
    let mut server =
        Tested::start(machine([UnitStart::Ready(FakeUnit::default()), UnitStart::Off]));
    let session = claim(&mut server, address(0, 4));
    let root = [
        "status", "units", "groups", "devices", "domains", "faults", "metrics", "activity",
        "rescan",
    ];
    assert_eq!(server.entries(Path::Root), root);
    assert_eq!(server.entries(Path::Units), ["0", "1"]);
    assert_eq!(server.entries(Path::Groups), ["0", "1", "2", "3"]);
    let devices = ["0000--00--03.0", "0000--00--04.0", "0001--00--03.0", "0001--00--04.0"];
    assert_eq!(server.entries(Path::Devices), devices);
    assert_eq!(server.entries(Path::Domains).len(), 1, "the one of the session");
    assert!(server.entries(Path::Status).is_empty());
    server.close(session);
    assert!(server.entries(Path::Domains).is_empty());
}

/// A device below a session is claimed by opening it for writing, and by nothing else.
#[test]
fn a_device_below_a_session_is_not_claimed_for_reading() {
    let (mut server, _) = one();
    let session = claim(&mut server, address(0, 3));
    let path = format!("devices/{}", address(0, 4));
    assert_eq!(server.open(ROOT, Some(session), &path, false), Err(Refusal::Permission));
    assert_eq!(metric(&mut server, "sessions"), 1);
    let below = server.open(ROOT, Some(session), &path, true).unwrap();
    assert_eq!(metric(&mut server, "sessions"), 2);
    server.close(below);
}

#[test]
fn only_what_administrators_write_to_is_a_control() {
    let (mut server, _) = one();
    for (path, write, control) in [
        ("units/0", true, true),
        ("groups/0", true, true),
        ("rescan", true, true),
        ("devices/0000--00--03.0", true, false),
        ("units/0", false, false),
        ("units", false, false),
    ] {
        let handle = server.open(ROOT, None, path, write).unwrap();
        assert_eq!(server.is_control(handle), control, "{path}");
        server.close(handle);
        assert!(!server.is_control(handle), "closed");
    }
}

/// A handle is announced only to those who asked to be told that it is readable. Other bits mean nothing.
#[test]
fn only_readiness_to_read_is_watched() {
    let (mut server, unit) = one();
    let session = claim(&mut server, address(0, 3));
    attach(&mut server, session);
    let text = server.open(ROOT, None, "status", false).unwrap();
    let answers = [0, 1, 2, 3, u64::MAX].map(|bits| server.watch(text, bits));
    assert_eq!(answers, [Ok(0), Ok(1), Ok(0), Ok(1), Ok(1)]);
    let fault = || unit.change(|unit| unit.faults = [(vec![fault(RequesterId(0x18))], 0)].into());
    for (bits, announced) in [(0, None), (1, Some(session)), (2, None), (3, Some(session))] {
        assert_eq!(server.watch(session, bits), Ok(0), "nothing to read yet");
        fault();
        server.tick();
        assert_eq!(server.next_ready(), announced, "{bits}");
        assert_eq!(server.next_ready(), None);
        assert_eq!(server.watch(session, bits), Ok(bits & 1));
        assert_eq!(server.read(session, 0, &mut [0; 128]), Ok(128));
    }
}
