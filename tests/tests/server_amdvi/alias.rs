//! Device settings that only an IVRS gives: the id on their requests, and the interrupts that pass.

use iommu_protocol::ids::RequesterId;
use iommud::hw::RegisterIo;
use iommud::policy::Mode;
use iommud::topology::firmware::EntryRange;
use iommud_tests::machine::{Reach, Through};

use crate::server::{Bed, compat, devices, matrix, reach, setup};

/// Another id that requests of the first device may carry.
const ALIAS: RequesterId = RequesterId(0x0100);

fn start(mode: Mode) -> Bed {
    let device = devices()[0].requester;
    let mut subject = matrix().remove(0);
    // Data setting 97h: INITPass, EIntPass, NMIPass, SysMgt 1, LINT1Pass (48882 section 5.2.2.2).
    subject.entries =
        vec![EntryRange { first: device, last: device, alias: Some(ALIAS), settings: 0x97 }];
    Bed::start(&[subject], setup(mode))
}

fn by_alias(stack: &Bed) -> Vec<Reach> {
    stack.machine.reach(0, ALIAS.0, Through::TablesAndCaches)
}

#[test]
fn an_alias_reaches_what_its_device_does() {
    for mode in [Mode::Compat, Mode::Strict] {
        let mut stack = start(mode);
        let [device, other, ..] = devices();
        let policy = if mode == Mode::Compat { compat(&stack) } else { Vec::new() };
        assert_eq!((by_alias(&stack), reach(&stack, other)), (policy.clone(), policy.clone()));
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x4000).unwrap();
        let granted = reach(&stack, device);
        assert!(!granted.is_empty());
        assert_eq!(by_alias(&stack), granted);
        let written = stack.machine.device_write(0, ALIAS.0, buffer.iova, b"by the alias");
        written.unwrap();
        let share = stack.share(1, session, buffer.slot).unwrap();
        assert_eq!(stack.machine.share_read(&share, 0, 12), b"by the alias");
        stack.release(session, buffer.slot).unwrap();
        assert_eq!(by_alias(&stack), []);
        stack.give_back(session);
        assert_eq!(by_alias(&stack), policy);
        stack.machine.assert_clean();
    }
}

/// A fault under the alias is reported to the owner of the device.
#[test]
fn a_fault_of_an_alias_is_its_devices() {
    let mut stack = start(Mode::Strict);
    let session = stack.claim(1, devices()[0]).unwrap();
    stack.attach(session).unwrap();
    stack.machine.access(0, ALIAS.0, 0x6666_0000, 1, true).unwrap_err();
    stack.machine.pass_time(1_000_000);
    let faults = stack.faults(session);
    assert_eq!(faults.len(), 1);
    // The record has the id that was on the bus.
    assert_eq!((faults[0].source.requester, faults[0].address), (ALIAS, Some(0x6666_0000)));
    stack.machine.assert_clean();
}

/// Words 1 and 2 of both entries keep firmware's settings, whatever happens to the rest: SysMgt in bits 41:40 of word
/// 1, the passes in bits 58:56 and 63:62 of word 2 (48882 section 2.2.2.1).
#[test]
fn settings_of_firmware_stay_in_both_entries() {
    let mut stack = start(Mode::Compat);
    let device = devices()[0];
    let table = stack.machine.registers(0).read64(0) & 0x000f_ffff_ffff_f000;
    let words = |stack: &Bed, source: u16, word: u64| {
        let at = table + 32 * u64::from(source) + 8 * word;
        stack.machine.with_memory(|memory| memory.cpu_load(at))
    };
    let check = |stack: &Bed| {
        for source in [device.requester.0, ALIAS.0] {
            assert_eq!(words(stack, source, 1) & !0xffff, 0x0000_0100_0000_0000);
            assert_eq!(words(stack, source, 2), 0x8700_0000_0000_0000);
        }
    };
    check(&stack);
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    check(&stack);
    stack.server.close(session);
    check(&stack);
    let other = devices()[1].requester.0;
    assert_eq!((words(&stack, other, 1) >> 16, words(&stack, other, 2)), (0, 0));
    stack.machine.assert_clean();
}
