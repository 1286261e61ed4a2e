//! Faults on a machine whose NVMe controller 01:00.0 has domain 3: a page at 0x10000 that it may read, 64 KiB at
//! 0x200000 that it may read and write, and grants at 0x300000 of which none is in force.

use super::*;
use crate::server::domain;
use crate::tree::tests::server;

fn explained(line: &str, change: impl FnOnce(&mut Machine, &mut Vec<Domain>)) -> Explained {
    let mut machine = Machine::read(&server()).unwrap();
    let mut domains = vec![Domain::parse(domain::tests::TEXT).unwrap()];
    change(&mut machine, &mut domains);
    explain(&Fault::parse(line).unwrap(), &machine, &domains)
}

fn at(access: &str, address: u64) -> String {
    format!("#7 0000--01--00.0 {access} at iova {address:#x}: no right (reason 0x6)")
}

fn cause_of(line: &str) -> &'static str {
    explained(line, |_, _| ()).cause.name()
}

#[test]
fn an_overrun_names_the_buffer_and_the_distance() {
    let text = explained(&at("write", 0x1_1010), |_, _| ()).text();
    let expected = "\
#7 0000:01:00.0 (Non-Volatile memory controller: Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983) \
tried to write memory at 0x11010 and was stopped: no right.
   The address is 16 bytes behind the end of buffer 0 of 0000:01:00.0 (4 KiB mapped at 0x10000).
   Usually a transfer longer than its buffer. Try: compare the length in the descriptor.
";
    assert_eq!(text, expected);
}

#[test]
fn distances_begin_at_the_first_byte_outside() {
    let place = |address| explained(&at("read", address), |_, _| ()).place().unwrap();
    let buffer = "buffer 0 of 0000:01:00.0 (4 KiB mapped at 0x10000).";
    assert_eq!(place(0x1_1000), format!("The address is directly behind the end of {buffer}"));
    assert_eq!(place(0xf000), format!("The address is 4 KiB before {buffer}"));
    assert_eq!(place(0xffff), format!("The address is 1 byte before {buffer}"));
}

#[test]
fn an_address_without_an_offset_is_called_a_page() {
    let sentence = |address| explained(&at("read", address), |_, _| ()).sentence();
    let end = "tried to read memory in the page at 0x11000 and was stopped: no right.";
    assert!(sentence(0x1_1000).ends_with(end), "{}", sentence(0x1_1000));
    let end = "tried to read memory at 0x11008 and was stopped: no right.";
    assert!(sentence(0x1_1008).ends_with(end), "{}", sentence(0x1_1008));
}

#[test]
fn the_place_decides_the_cause() {
    for (line, cause) in [
        (at("write", 0x1_0800), "forbidden"),
        (at("read", 0x1_0800), "mapped-since"),
        (at("access", 0x1_0800), "forbidden"),
        (at("access", 0x20_0000), "mapped-since"),
        (at("read", 0x1_1000), "behind-mapping"),
        (at("read", 0x1f_f000), "before-mapping"),
        (at("write", 0x2_0010), "unmapped"),
        (at("write", 0x30_1fff), "not-granted"),
        (at("read", 0x30_2000), "behind-mapping"),
        (at("read", 0x4000_0000), "nowhere"),
        (at("read", 0x1_0000_0000), "above-domain"),
        (at("write", 0xfee0_1000), "interrupt-window"),
        (at("read", 0).replace("01--00.0", "09--00.0"), "unknown-device"),
        (at("read", 0x9000).replace("01--00.0", "00--1c.0"), "policy"),
    ] {
        assert_eq!(cause_of(&line), cause, "{line}");
    }
}

#[test]
fn what_stopped_the_request_comes_before_the_place() {
    let line =
        |reason| format!("#1 0000--01--00.0 access at an unknown iova: w (reason {reason:#x})");
    for (reason, cause) in [
        (0x00, "notice"),
        (0x02, "before-attach"),
        (0x05, "no-address"),
        (0x08, "tables"),
        (0x0d, "device-cache"),
        (0x22, "interrupt"),
    ] {
        assert_eq!(cause_of(&line(reason)), cause, "{reason:#x}");
    }
    let amd = |machine: &mut Machine| machine.status.units[0].kind = "amd-vi".to_owned();
    let event = |reason| explained(&line(reason), |machine, _| amd(machine));
    assert_eq!(event(0x5).cause, Cause::Unit);
    assert_eq!(event(0x101).cause, Cause::DeviceCache);
    assert!(event(0x5).sentence().ends_with("): w."), "{}", event(0x5).sentence());
    let interrupt = explained(&line(0x22), |_, _| ()).sentence();
    assert!(interrupt.ends_with(" tried to raise an interrupt and was stopped: w."), "{interrupt}");
    let notice = line(0).replace("01--00.0", "09--00.0");
    assert_eq!(cause_of(&notice), "notice", "also of a device that is not known");
}

#[test]
fn a_write_to_read_only_memory_is_called_one() {
    let inside = explained(&at("write", 0x1_0800), |_, _| ());
    assert_eq!(
        inside.place().unwrap(),
        "The address is inside buffer 0 of 0000:01:00.0 (4 KiB mapped at 0x10000): read only."
    );
}

/// The last range that had the address counts.
#[test]
fn a_use_after_unmap_says_when_and_who() {
    let told = explained(&at("write", 0x2_0800), |_, _| ());
    let told = Explained { owner: Some("process 12 (nvmed)".to_owned()), ..told };
    let words = "4 KiB at 0x20000 were mapped there, unmapped 3 ms ago by process 12 (nvmed).";
    assert_eq!(told.place().unwrap(), words);
    assert!(told.advice().starts_with("Usually a use after unmap"), "{}", told.advice());
    let older = explained(&at("write", 0x2_f000), |_, _| ()).place().unwrap();
    assert!(
        older.starts_with("64 KiB at 0x20000 were mapped there, unmapped 70 ms ago by process 12")
    );
}

#[test]
fn another_owner_s_buffer_is_named() {
    let foreign = explained(&at("write", 0x4000_0000), |_, domains| {
        let mut other = domains[0].clone();
        other.index = 9;
        (other.mappings[1].first, other.mappings[1].last) = (0x4000_0000, 0x4000_ffff);
        domains.push(other);
    });
    assert_eq!(
        foreign.place().unwrap(),
        "In domain 9, another owner's, the address is in buffer 1 of 0000:01:00.0 (64 KiB mapped at 0x40000000)."
    );
}

#[test]
fn a_device_that_is_not_attached_still_runs() {
    let cause = explained(&at("write", 0x1000), |machine, _| {
        machine.devices.iter_mut().for_each(|device| device.attached = false);
    });
    assert_eq!(cause.cause, Cause::NotAttached);
    let ended = "nothing: its owner ended while it was attached";
    let cause = explained(&at("write", 0x1000), |machine, _| {
        for device in &mut machine.devices {
            (device.owner, device.attached, device.domain) = (None, false, None);
            device.reaches = ended.to_owned();
        }
    });
    assert_eq!(cause.cause, Cause::NotAttached);
}

#[test]
fn advice_fits_the_policy() {
    let advice = |policy: &str| {
        let line = at("read", 0x9000).replace("01--00.0", "00--1c.0");
        let change = |machine: &mut Machine, _: &mut Vec<Domain>| {
            machine.devices.iter_mut().for_each(|device| device.policy = policy.to_owned());
        };
        explained(&line, change).advice()
    };
    assert!(advice("strict").ends_with("or policy compat for it."), "{}", advice("strict"));
    assert!(!advice("compat").contains("or policy compat"), "{}", advice("compat"));
}

#[test]
fn a_fault_under_a_bridge_s_id_is_of_a_device_behind_it() {
    let line = at("write", 0x1_0800).replace("01--00.0", "05--00.0");
    let told = explained(&line, |machine, _| {
        machine
            .devices
            .iter_mut()
            .for_each(|device| device.requester_ids.push("05:00.0".to_owned()));
    });
    assert_eq!(told.cause.name(), "forbidden");
    assert!(told.sentence().contains("(a bridge in front of 0000:01:00.0)"), "{}", told.sentence());
}
