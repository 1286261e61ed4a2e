//! Buffers are charged by the pieces of the pool that they lie in, and what outlives its client by its group.

use std::vec::Vec;

use iommu_protocol::ids::Slot;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::AllocateFlags;

use super::PAGE;
use crate::addr::PhysRange;
use crate::policy::tests::world::*;
use crate::policy::{BufferId, Event, Hold, SessionId};
use crate::topology::testing::{address, endpoint};

const PIECE: u64 = 64 << 10;

/// A pool of 64 pieces; two devices, each a group of its own.
fn bench() -> Bench {
    let mut bench = Bench::compat(&[endpoint(0, 3, 0), endpoint(0, 4, 0)]);
    bench.registry.set_buffer_pool(64 * PIECE, PIECE);
    bench
}

fn left(bench: &Bench, session: SessionId) -> u64 {
    bench.registry.memory_left(session).unwrap() / PIECE
}

/// Whole pieces that one client may have: one that is promised, and a quarter of the 62 that are common.
const SHARE: u64 = 16;

fn buffer(bench: &mut Bench, session: SessionId, segments: &[PhysRange]) -> (Slot, BufferId) {
    let event = bench.allocation(session, segments, AllocateFlags::empty());
    let (slot, _, buffer) = bench.allocated(&event).unwrap();
    (slot, buffer)
}

/// The server asks for more memory when less than a part of the pool is free.
#[test]
fn a_pool_is_low_when_less_than_a_part_of_it_is_free() {
    let mut bench = bench();
    let session = bench.claim(1, address(0, 3, 0));
    assert!(!bench.registry.pool_is_below(1), "all of it is free");
    let (slot, _) = buffer(&mut bench, session, &[phys(OWN, PIECE)]);
    assert!(bench.registry.pool_is_below(1) && !bench.registry.pool_is_below(4));
    release(&mut bench, session, slot);
    assert!(!bench.registry.pool_is_below(1));
}

fn release(bench: &mut Bench, session: SessionId, slot: Slot) {
    bench.run(&Event::Release(session, slot)).unwrap();
}

/// Four buffers in two pieces: each piece is charged once, with its first buffer, and until its last one is gone,
/// whichever that is.
#[test]
fn a_piece_is_charged_once_for_all_buffers_in_it() {
    let mut bench = bench();
    let session = bench.claim(1, address(0, 3, 0));
    assert_eq!(left(&bench, session), SHARE);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let at = |page, pages| phys(OWN + page * PAGE, pages * PAGE);
        let mut slots = Vec::new();
        let expected = [(at(1, 2), 1), (at(7, 1), 1), (at(14, 4), 2), (at(31, 1), 2)];
        for (segment, pieces) in expected {
            slots.push(buffer(&mut bench, session, &[segment]).0);
            assert_eq!(left(&bench, session), SHARE - pieces);
        }
        // Which pieces each of them touches.
        let touched: [&[u64]; 4] = [&[0], &[0], &[0, 1], &[1]];
        let mut there = [true; 4];
        for index in order {
            release(&mut bench, session, slots[index]);
            there[index] = false;
            let used = |piece| (0..4).any(|at: usize| there[at] && touched[at].contains(&piece));
            let count = [0, 1].into_iter().filter(|piece| used(*piece)).count() as u64;
            assert_eq!(left(&bench, session), SHARE - count, "{order:?}, then {index}");
        }
    }
}

/// A buffer in two segments of one piece, and one of whole pieces.
#[test]
fn a_piece_is_charged_once_for_all_segments_in_it() {
    let mut bench = bench();
    let session = bench.claim(1, address(0, 3, 0));
    let segments = [phys(OWN, PAGE), phys(OWN + 4 * PAGE, PAGE)];
    let (two, _) = buffer(&mut bench, session, &segments);
    assert_eq!(left(&bench, session), SHARE - 1);
    let (whole, _) = buffer(&mut bench, session, &[phys(OWN + 2 * PIECE, 3 * PIECE)]);
    assert_eq!(left(&bench, session), SHARE - 4);
    release(&mut bench, session, two);
    release(&mut bench, session, whole);
    assert_eq!(left(&bench, session), SHARE);
}

/// Pieces that the client has are no reason to refuse; another one is.
#[test]
fn who_has_its_share_may_fill_its_pieces() {
    let mut bench = bench();
    let session = bench.claim(1, address(0, 3, 0));
    buffer(&mut bench, session, &[phys(OWN, (SHARE - 1) * PIECE)]);
    buffer(&mut bench, session, &[phys(OWN + SHARE * PIECE, PAGE)]);
    assert_eq!(bench.registry.admit_buffer(session, PAGE).err(), Some(Refusal::Quota));
    assert!(bench.registry.admit_within(session, PAGE).is_ok());
    buffer(&mut bench, session, &[phys(OWN + SHARE * PIECE + PAGE, PAGE)]);
    let other = [phys(OWN + 40 * PIECE, PAGE)];
    let event = bench.allocation(session, &other, AllocateFlags::empty());
    assert_eq!(bench.refused(&event), Refusal::Quota);
}

/// A buffer that outlives its client is charged to the next owner of the group, and to nobody else; it is so until the
/// last handle is closed.
#[test]
fn what_is_left_behind_is_charged_to_the_group() {
    let mut bench = bench();
    let session = bench.claim(1, address(0, 3, 0));
    let (slot, kept) = buffer(&mut bench, session, &[phys(OWN, 3 * PAGE)]);
    bench.run(&Hold(session, slot)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    let other = bench.claim(2, address(0, 4, 0));
    assert_eq!(left(&bench, other), SHARE, "of another group");
    let next = bench.claim(3, address(0, 3, 0));
    assert_eq!(left(&bench, next), SHARE - 1);
    bench.run(&Event::Close(next)).unwrap();
    let next = bench.claim(4, address(0, 3, 0));
    assert_eq!(left(&bench, next), SHARE - 1, "still");
    bench.run(&Event::Drop(kept)).unwrap();
    assert_eq!(left(&bench, next), SHARE);
}

/// 32 pieces for 16 groups: one is promised to each, and 16 are common. Three clients of five devices have 5 + 16/4
/// pieces each, and give up `given_up` devices, but no memory.
fn three_leave_all_they_have(given_up: u8) -> Bench {
    let functions: Vec<_> = (3..19).map(|device| endpoint(0, device, 0)).collect();
    let mut bench = Bench::compat(&functions);
    bench.registry.set_buffer_pool(32 * PIECE, PIECE);
    for client in 1..=3_u8 {
        let device = |number| address(0, client * 5 + number - 2, 0);
        let first = bench.claim(client.into(), device(0));
        let others: Vec<_> =
            (1..5).map(|number| bench.claim(client.into(), device(number))).collect();
        for number in 0..9 {
            let piece = u64::from(client - 1) * 9 + number;
            let (slot, _) = buffer(&mut bench, first, &[phys(OWN + piece * PIECE, PAGE)]);
            bench.run(&Hold(first, slot)).unwrap();
        }
        assert_eq!(bench.registry.admit_buffer(first, PAGE).err(), Some(Refusal::Quota));
        let ends = [first].into_iter().chain(others).take(usize::from(given_up));
        ends.for_each(|session| bench.run(&Event::Close(session)).unwrap());
    }
    bench
}

/// What clients of several devices leave behind is charged to all groups that they gave up. So five pieces are left,
/// and a group that nobody had before has one of them, whatever owners of the others take.
#[test]
fn what_is_left_behind_is_charged_to_every_group() {
    for given_up in [5, 4] {
        let mut bench = three_leave_all_they_have(given_up);
        let mut next = 27;
        for client in 4..=6_u8 {
            let session = bench.claim(client.into(), address(0, client * 5 - 17, 0));
            while bench.registry.admit_buffer(session, PAGE).is_ok() {
                buffer(&mut bench, session, &[phys(OWN + next * PIECE, PAGE)]);
                next += 1;
            }
        }
        assert_eq!(next, 31, "of groups that were given up");
        let session = bench.claim(7, address(0, 18, 0));
        buffer(&mut bench, session, &[phys(OWN + next * PIECE, PAGE)]);
    }
}

/// A client that claims its device again has what it had.
#[test]
fn a_device_that_is_claimed_again_was_not_given_up() {
    let mut bench = bench();
    let session = bench.claim(1, address(0, 3, 0));
    let (slot, _) = buffer(&mut bench, session, &[phys(OWN, SHARE * PIECE)]);
    bench.run(&Hold(session, slot)).unwrap();
    bench.run(&Event::Close(session)).unwrap();
    let session = bench.claim(1, address(0, 3, 0));
    assert_eq!(left(&bench, session), 0);
    let other = bench.claim(2, address(0, 4, 0));
    assert_eq!(left(&bench, other), SHARE);
}

/// However few pieces there are, each client may have one as long as there is one.
#[test]
fn a_pool_of_few_pieces_is_used() {
    for pieces in 1..=3 {
        let mut bench = bench();
        bench.registry.set_buffer_pool(pieces * PIECE, PIECE);
        let session = bench.claim(1, address(0, 3, 0));
        assert_eq!(left(&bench, session), 1);
        buffer(&mut bench, session, &[phys(OWN, PAGE)]);
        assert_eq!(bench.registry.admit_buffer(session, PIECE).err(), Some(Refusal::Quota));
        let other = bench.claim(2, address(0, 4, 0));
        assert_eq!(bench.registry.admit_buffer(other, PAGE).is_ok(), pieces > 1);
    }
}

/// A client that gave a device up when it had no more than its share left nothing behind with it, whatever becomes of
/// its share later. 32 pieces, 8 groups: a share of 1 + 24/4; when four more functions appear, of 1 + 20/4.
#[test]
fn a_share_that_shrinks_charges_nobody_else() {
    let functions: Vec<_> = (3..11).map(|device| endpoint(0, device, 0)).collect();
    let mut bench = Bench::compat(&functions);
    bench.registry.set_buffer_pool(32 * PIECE, PIECE);
    let first = bench.claim(1, address(0, 3, 0));
    let clean = bench.claim(1, address(0, 10, 0));
    bench.run(&Event::Close(clean)).unwrap();
    for number in 0..7 {
        buffer(&mut bench, first, &[phys(OWN + number * PIECE, PAGE)]);
    }
    let next = bench.claim(2, address(0, 10, 0));
    assert_eq!(left(&bench, next), 7);
    for device in 11..15 {
        bench.run(&Event::FunctionAdded(endpoint(0, device, 0))).unwrap();
    }
    assert_eq!((left(&bench, first), left(&bench, next)), (0, 6));
}

/// A session whose device is gone has its promise beside those of the groups that are left. 128 pieces, 8 groups: five
/// clients of one device each, of which one has lost another one, and three groups that nobody has.
#[test]
fn a_session_without_a_device_takes_no_promise_of_a_group() {
    let functions: Vec<_> = (3..12).map(|device| endpoint(0, device, 0)).collect();
    let mut bench = Bench::compat(&functions);
    bench.registry.set_buffer_pool(128 * PIECE, PIECE);
    let lost = bench.claim(1, address(0, 11, 0));
    bench.run(&Event::FunctionRemoved(address(0, 11, 0))).unwrap();
    let mut next = 0;
    for device in 3..7_u8 {
        let session = bench.claim(u32::from(device - 2), address(0, device, 0));
        while bench.registry.admit_buffer(session, PAGE).is_ok() {
            buffer(&mut bench, session, &[phys(OWN + next * PIECE, PAGE)]);
            next += 1;
        }
    }
    for device in 7..11_u8 {
        let session = bench.claim(u32::from(device), address(0, device, 0));
        buffer(&mut bench, session, &[phys(OWN + next * PIECE, PAGE)]);
        next += 1;
    }
    bench.run(&Event::Close(lost)).unwrap();
    assert!(next <= 128);
}

/// Where the pool has no piece for each group, the many domains of one client take none of the others' pieces. Four
/// clients have a piece each.
#[test]
fn clients_with_many_devices_leave_others_their_piece() {
    const LARGE: u64 = 2 << 20;
    let functions: Vec<_> = (3..16).map(|device| endpoint(0, device, 0)).collect();
    for pieces in [4, 5, 6, 7, 8, 12, 16, 24] {
        let mut bench = Bench::compat(&functions);
        bench.registry.set_buffer_pool(pieces * LARGE, LARGE);
        let mut next = 0;
        for client in 1..=3 {
            let device = |number| address(0, u8::try_from(client * 4 + number - 1).unwrap(), 0);
            for number in 0..4 {
                let session = bench.claim(client, device(number));
                while bench.registry.admit_buffer(session, PAGE).is_ok() {
                    buffer(&mut bench, session, &[phys(OWN + next * LARGE, PAGE)]);
                    next += 1;
                }
            }
        }
        assert!((3..pieces).contains(&next), "{next} of {pieces} pieces are taken");
        let session = bench.claim(4, address(0, 15, 0));
        let share = bench.registry.memory_left(session).unwrap() / LARGE;
        assert!(share > 0, "{pieces} pieces");
        for _ in 0..share {
            assert!(bench.registry.admit_buffer(session, PAGE).is_ok(), "{next} of {pieces}");
            buffer(&mut bench, session, &[phys(OWN + next * LARGE, PAGE)]);
            next += 1;
        }
    }
}
