//! Clients keep their promised resources, whatever happens to groups, units and other clients.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Access, Empty, Grant, Map, MapFlags, MapResult, Operation};
use iommud::policy::{ClientId, Mode};
use iommud::server::Caller;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Layout, Trouble};
use iommud_tests::stack::endpoint;

use super::budgets::scatter;
use super::{Bed, Subject, devices, pair, setup, subjects};

fn device(at: u8) -> PciAddress {
    PciAddress::new(0, 1, at, 0).unwrap()
}

/// A machine of eight devices with 6 MiB of tables.
fn eight(subject: Subject) -> Bed {
    let mut setup = setup(Mode::Strict);
    setup.functions = (0..8).map(|at| endpoint(1, at, 0)).collect();
    setup.layout = Layout {
        ram: vec![(0, 64 << 20)],
        tables: (16 << 20, 6 << 20),
        buffers: (32 << 20, 8 << 20),
        ..Layout::default()
    };
    Bed::start(&[subject], setup)
}

/// Three clients have used their shares when 64 functions are added, for which nothing is left.
#[test]
fn groups_that_come_later_take_nothing_from_what_was_promised_before() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut stack = eight(subject);
        let functions = stack.discover();
        for (client, at) in (1..).zip(0..3) {
            let session = stack.claim(client, device(at)).unwrap();
            stack.attach(session).unwrap();
            scatter(&mut stack, session, u64::MAX);
        }
        for number in 0..64_u8 {
            functions.plug(endpoint(2, number / 8, number % 8));
        }
        stack.server.rescan();
        assert!(stack.metric("table_frames_free") < stack.metric("table_frames_promised"));
        let session = stack.claim(9, device(5)).unwrap();
        stack.attach(session).unwrap();
        stack.allocate(session, 0x1000).unwrap();
        stack.machine.assert_clean();
    }
}

/// A driver that has used its share of tables dies after its unit failed. The tables are kept and its account is
/// closed. The next client is not charged for them.
#[test]
fn a_newcomer_does_not_pay_for_the_tables_of_a_dead_client() {
    let mut setup = setup(Mode::Strict);
    setup.behind_first = vec![devices()[0]];
    let mut stack = Bed::start(&pair(), setup);
    let [device, other, third, ..] = devices();
    let friend = stack.claim(50, other).unwrap();
    let buffer = stack.allocate(friend, 0x1000).unwrap();
    let caller = Caller { client: ClientId(50), uid: 0 };
    let path = format!("buffers/{}", buffer.slot);
    let handle = stack.server.open(caller, Some(friend), &path, true).unwrap();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let slot = stack.server.bring(session, handle).unwrap();
    let (access, flags) = (Access::all().bits(), MapFlags::FIXED.bits());
    let mut mapped = 0;
    let mut map = |stack: &mut Bed| {
        let iova = (8 << 30) + mapped * (2 << 20);
        let map = Map { slot, access, flags, iova, length: 0x1000, ..Map::default() };
        mapped += 1;
        stack.call::<MapResult>(session, Operation::Map, &map).is_ok()
    };
    while map(&mut stack) {}
    let share = stack.metric("table_frames_share");
    stack.machine.set_relax(10_000_000);
    stack.machine.trouble(0, Trouble::StallQueueAfter(0));
    assert_eq!(stack.detach(session), Err(Refusal::UnitFailed));
    stack.server.close(session);
    let next = stack.claim(2, third).unwrap();
    stack.attach(next).unwrap();
    let got = scatter(&mut stack, next, u64::MAX);
    assert!(got + 16 > mapped.min(share), "{got} of {share}; the dead client had {mapped}");
}

/// Without a unit a revocation's offset is checked before it is added to an address.
#[test]
fn a_revocation_far_outside_is_not_mapped() {
    for subject in subjects() {
        let mut setup = setup(Mode::Compat);
        // The only unit has no device behind it: the functions are in another segment.
        setup.functions.iter_mut().for_each(|function| function.address.segment = 1);
        let mut stack = Bed::start(&[subject], setup);
        let session = stack.claim(1, PciAddress { segment: 1, ..devices()[0] }).unwrap();
        let buffer = stack.allocate(session, 0x1000).unwrap();
        for offset in [!0xfff - 0x1000, !0xfff, 1 << 63] {
            let far = Grant { slot: buffer.slot, offset, length: 0x1000, ..Grant::default() };
            let refused = stack.call::<Empty>(session, Operation::Revoke, &far);
            assert_eq!(refused.err(), Some(Refusal::NotMapped), "{offset:#x}");
        }
    }
}
