//! Table memory, buffer memory and tags are divided into shares. No client, nor any three together, can make another
//! one's claim, attach, end, or allocation within its share fail.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Access, Map, MapFlags, MapResult, Operation};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::Mode;
use iommud::server::Handle;
use iommud::topology::firmware::ReservedRegion;

use super::{Bed, FAMILY, setup, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::Layout;
use iommud_tests::stack::{Setup, endpoint, scope};

const LARGE: u64 = 2 << 20;

/// Maps a page every 2 MiB until refused, at most `most` times. Returns the number of mappings.
pub(super) fn scatter(stack: &mut Bed, session: Handle, most: u64) -> u64 {
    let buffer = stack.allocate(session, 0x1000).unwrap();
    let (access, flags) = (Access::all().bits(), MapFlags::FIXED.bits());
    for at in 0..most {
        let iova = (8 << 30) + at * LARGE;
        let length = 0x1000;
        let map = Map { slot: buffer.slot, access, flags, iova, length, ..Map::default() };
        match stack.call::<MapResult>(session, Operation::Map, &map) {
            Ok(_) => {}
            Err(refusal) => {
                assert!(
                    matches!(refusal, Refusal::Quota | Refusal::Full | Refusal::NoMemory),
                    "{refusal:?}"
                );
                return at;
            }
        }
    }
    most
}

/// Allocates buffers until refused. Returns their total bytes.
fn allocate_all(stack: &mut Bed, session: Handle, size: u64) -> u64 {
    let mut count = 0;
    loop {
        match stack.allocate(session, size) {
            Ok(_) => count += size,
            Err(refusal) => {
                assert!(
                    matches!(refusal, Refusal::Quota | Refusal::Full | Refusal::NoMemory),
                    "{refusal:?}"
                );
                return count;
            }
        }
    }
}

fn device(at: u8) -> PciAddress {
    PciAddress::new(0, 1, at, 0).unwrap()
}

/// Starts a machine with eight devices, 8 MiB for buffers and 4 MiB for tables, besides the space for AMD-Vi's device
/// table.
fn each(test: impl Fn(&mut Bed)) {
    each_under(Mode::Strict, &[], test);
}

fn each_under(mode: Mode, reserved: &[ReservedRegion], test: impl Fn(&mut Bed)) {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = Setup { reserved: reserved.to_vec(), ..setup(mode) };
        setup.functions = (0..8).map(|at| endpoint(1, at, 0)).collect();
        setup.layout = Layout {
            ram: vec![(0, 64 << 20)],
            tables: (16 << 20, 6 << 20),
            buffers: (32 << 20, 8 << 20),
            ..Layout::default()
        };
        let mut stack = Bed::start(&[subject], setup);
        test(&mut stack);
        stack.machine.assert_clean();
    }
}

/// Drivers whose devices have regions that firmware reserved, under compat: their ends make domains of policy, which
/// have tables of their own.
#[test]
fn a_driver_behind_a_reserved_region_lives_and_dies_beside_three_others() {
    let regions = (0..8).map(|at| {
        let range = PhysRange::new(PhysAddr(0x0380_0000 + u64::from(at) * 0x1000), 0x1000).unwrap();
        let scopes = vec![scope(device(at).requester)];
        let (read, write, exclusion) = (true, true, false);
        ReservedRegion { segment: 0, range, read, write, exclusion, scopes, entries: Vec::new() }
    });
    let regions: Vec<ReservedRegion> = regions.collect();
    each_under(Mode::Compat, &regions, |stack| {
        let greedy: Vec<_> =
            (0..3).map(|at| stack.claim(1 + u32::from(at), device(at)).unwrap()).collect();
        for session in &greedy {
            stack.attach(*session).unwrap();
            scatter(stack, *session, u64::MAX);
            allocate_all(stack, *session, 0x8000);
        }
        for at in 3..8 {
            let session = stack.claim(10 + u32::from(at), device(at)).unwrap();
            stack.attach(session).unwrap();
            let buffer = stack.allocate(session, 0x1000).unwrap();
            stack.device_write(device(at), buffer.iova, b"works").unwrap();
            stack.server.close(session);
            assert!(stack.device_write(device(at), buffer.iova, &[1]).is_err());
            let own = 0x0380_0000 + u64::from(at) * 0x1000;
            stack.device_write(device(at), own, b"firmware's").unwrap();
        }
        for session in greedy {
            stack.server.close(session);
        }
    });
}

/// Lives a client's whole life: claim, attach, a buffer of 256 KiB, transfers, mappings of its own, the end.
fn live(stack: &mut Bed, client: u32, device: PciAddress) {
    let session = stack.claim(client, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 256 << 10).unwrap();
    stack.device_write(device, buffer.iova, b"works").unwrap();
    assert_eq!(scatter(stack, session, 8), 8, "mappings of its own");
    stack.detach(session).unwrap();
    stack.attach(session).unwrap();
    stack.server.close(session);
    assert!(stack.device_write(device, buffer.iova, &[1]).is_err());
}

#[test]
fn one_client_cannot_take_the_tables_of_others() {
    each(|stack| {
        let greedy = stack.claim(1, device(0)).unwrap();
        stack.attach(greedy).unwrap();
        let count = scatter(stack, greedy, u64::MAX);
        println!("one client: {count} mappings 2 MiB apart");
        assert!(count >= 64, "a share is worth something: {count}");
        for at in 1..8 {
            live(stack, 10 + u32::from(at), device(at));
        }
        stack.server.close(greedy);
        live(stack, 1, device(0));
    });
}

#[test]
fn three_clients_together_cannot_take_the_tables_of_others() {
    each(|stack| {
        let greedy: Vec<_> =
            (0..3).map(|at| stack.claim(1 + u32::from(at), device(at)).unwrap()).collect();
        for session in &greedy {
            stack.attach(*session).unwrap();
            let count = scatter(stack, *session, u64::MAX);
            println!("one of three: {count} mappings 2 MiB apart");
        }
        for at in 3..8 {
            live(stack, 10 + u32::from(at), device(at));
        }
        // The same with all of them at the same time.
        let others: Vec<_> =
            (3..8).map(|at| stack.claim(20 + u32::from(at), device(at)).unwrap()).collect();
        for session in &others {
            stack.attach(*session).unwrap();
            let buffer = stack.allocate(*session, 0x4000).unwrap();
            stack.map(*session, buffer.slot, 0, 0x4000).unwrap();
        }
        for session in others.into_iter().chain(greedy) {
            stack.server.close(session);
        }
        assert_eq!(stack.metric("clients"), 0);
    });
}

/// A fourth client gets its share although three others use theirs, and no client exceeds its share.
#[test]
fn a_share_is_there_when_three_others_have_theirs() {
    each(|stack| {
        let share = stack.metric("table_frames_share");
        println!("a share: {share} frames");
        // 16 frames for each of eight groups are promised; a quarter of the rest is for one client.
        let all = stack.metric("table_frames_free");
        assert_eq!(share, 16 + (all - 8 * 16) / 4);
        let sessions: Vec<_> =
            (0..4).map(|at| stack.claim(1 + u32::from(at), device(at)).unwrap()).collect();
        for session in &sessions {
            stack.attach(*session).unwrap();
            let count = scatter(stack, *session, u64::MAX);
            println!("{count} mappings 2 MiB apart");
            // Besides the page tables counted here: a root, and at most one more table for each level and GiB.
            assert!(count < share && count + 8 >= share, "{count} of {share}");
        }
    });
}

/// All clients but one take as much as they can. The last one still gets its promised share.
#[test]
fn what_is_promised_is_kept_when_everybody_is_greedy() {
    each(|stack| {
        let greedy: Vec<_> =
            (0..7).map(|at| stack.claim(1 + u32::from(at), device(at)).unwrap()).collect();
        for session in &greedy {
            stack.attach(*session).unwrap();
            scatter(stack, *session, u64::MAX);
            allocate_all(stack, *session, 0x8000);
        }
        let (free, promised) =
            (stack.metric("table_frames_free"), stack.metric("table_frames_promised"));
        assert!(promised >= 16 && free >= promised, "{free} {promised}");
        let last = stack.claim(9, device(7)).unwrap();
        stack.attach(last).unwrap();
        let buffer = stack.allocate(last, 64 << 10).unwrap();
        stack.device_write(device(7), buffer.iova, b"works").unwrap();
        stack.map(last, buffer.slot, 0, 64 << 10).unwrap();
        without_order(stack, greedy, last);
    });
}

/// Ends all sessions, newest first.
fn without_order(stack: &mut Bed, greedy: Vec<Handle>, last: Handle) {
    stack.server.close(last);
    for session in greedy.into_iter().rev() {
        stack.server.close(session);
    }
    assert_eq!(stack.metric("clients"), 0);
    assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
}

/// The buffers that one client may have: 64 KiB of eight that are promised, and a quarter of the rest. Three quarters of
/// 8 MiB are the pool, see [`iommud_tests::machine::Buffers`].
const SHARE: u64 = (64 << 10) + ((6 << 20) - 8 * (64 << 10)) / 4;

#[test]
fn a_fourth_client_has_its_whole_share_of_buffers() {
    each(|stack| {
        let sessions: Vec<_> =
            (0..4).map(|at| stack.claim(1 + u32::from(at), device(at)).unwrap()).collect();
        for session in &sessions {
            assert_eq!(allocate_all(stack, *session, 0x8000), SHARE);
        }
    });
}

/// Three clients have many devices each, and there is too little memory for a promise to each of 52 groups.
#[test]
fn clients_with_many_devices_take_no_others_share() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = setup(Mode::Strict);
        setup.functions = (0..52).map(|at| endpoint(1 + at / 32, at % 32, 0)).collect();
        setup.layout = Layout {
            ram: vec![(0, 64 << 20)],
            // An AMD-Vi unit takes 2 MiB of it for its device table.
            tables: (16 << 20, if FAMILY == "amd-vi" { 4 << 20 } else { 2 << 20 }),
            buffers: (32 << 20, 1 << 20),
            ..Layout::default()
        };
        let mut stack = Bed::start(&[subject], setup);
        let device = |at: u8| PciAddress::new(0, 1 + at / 32, at % 32, 0).unwrap();
        let free = stack.metric("table_frames_free");
        assert!((400..600).contains(&free), "{free} frames: too few for 16 to each domain");
        let mut domains = 0;
        for client in 0..3 {
            for at in 0..16 {
                let session = stack.claim(1 + u32::from(client), device(client * 16 + at));
                // Some are refused when it has its share.
                let Ok(session) = session else { continue };
                if stack.attach(session).is_err() {
                    continue;
                }
                domains += 1;
                if stack.allocate(session, 0x1000).is_ok() {
                    scatter(&mut stack, session, 600);
                }
            }
        }
        println!("{domains} domains, {} frames are left", stack.metric("table_frames_free"));
        for at in 48..52 {
            let session = stack.claim(9, device(at)).unwrap();
            stack.attach(session).unwrap();
            let buffer = stack.allocate(session, 0x4000).unwrap();
            stack.device_write(device(at), buffer.iova, b"works").unwrap();
            stack.map(session, buffer.slot, 0, 0x4000).unwrap();
            stack.server.close(session);
        }
        stack.machine.assert_clean();
    }
}

#[test]
fn three_clients_together_cannot_take_the_buffers_of_others() {
    each(|stack| {
        let greedy: Vec<_> =
            (0..3).map(|at| stack.claim(1 + u32::from(at), device(at)).unwrap()).collect();
        for session in &greedy {
            stack.attach(*session).unwrap();
            let bytes = allocate_all(stack, *session, 0x8000);
            println!("one of three: {} KiB of buffers", bytes >> 10);
            assert_eq!(bytes, SHARE);
        }
        for at in 3..8 {
            live(stack, 10 + u32::from(at), device(at));
        }
        for session in greedy {
            stack.server.close(session);
        }
    });
}

/// A client that ends with its whole share in use returns all of it.
#[test]
fn a_greedy_client_dies_and_all_comes_back() {
    each(|stack| {
        let before = stack.snapshot();
        let greedy = stack.claim(1, device(0)).unwrap();
        stack.attach(greedy).unwrap();
        let first = scatter(stack, greedy, u64::MAX);
        allocate_all(stack, greedy, 0x8000);
        stack.detach(greedy).unwrap();
        stack.server.close(greedy);
        stack.snapshot().assert_same(&before, "after a greedy client");
        let greedy = stack.claim(1, device(0)).unwrap();
        assert_eq!(scatter(stack, greedy, u64::MAX), first);
        stack.server.close(greedy);
    });
}
