//! Buffers of 2 MiB and more are mapped by large leaves, and the texts say how many leaves there are.

use iommu_protocol::wire::{BufferRequest, BufferResult, Operation};
use iommud::policy::Mode;
use iommud_tests::machine::Layout;

use super::{Bed, devices, matrix, setup};
use crate::vendor;

const MIB: u64 = 1 << 20;

/// A machine whose buffer memory is in one piece, from 64 MiB on. A client's share of it has room for 6 MiB.
fn bed() -> Bed {
    let mut given = setup(Mode::Strict);
    given.layout = Layout {
        ram: vec![(0, 192 * MIB)],
        buffers: (64 * MIB, 96 * MIB),
        segment: 96 * MIB,
        ..given.layout
    };
    Bed::start(&[matrix().remove(0)], given)
}

/// The value of a key of a text.
fn value(text: &str, key: &str) -> String {
    let mut found = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    found.next().unwrap_or_else(|| panic!("no {key}: {text}")).to_owned()
}

/// Checks the footprint in every text and reply that has it.
fn check_footprint(stack: &mut Bed, session: iommud::server::Handle, slot: u32, expected: &str) {
    let [device, ..] = devices();
    let text = stack.text(&format!("devices/{device}"));
    let text = stack.text(&format!("domains/{}", value(&text, "domain")));
    assert_eq!(value(&text, "iotlb entries"), expected);
    let total = expected.split(':').next().unwrap();
    let metrics = stack.text("metrics");
    assert!(metrics.lines().any(|line| line == format!("iotlb_entries {total}")), "{metrics}");
    let request = BufferRequest { slot, reserved: 0 };
    let told: BufferResult = stack.call(session, Operation::QueryBuffer, &request).unwrap();
    assert_eq!(told.iotlb_entries.to_string(), total);
}

/// 2 MiB at a multiple of 2 MiB are one entry, at level 2.
#[test]
fn two_mib_are_one_leaf() {
    let mut stack = bed();
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 2 * MIB).unwrap();
    assert!(buffer.iova.is_multiple_of(2 * MIB));
    for at in [0, 0x1000, 2 * MIB - 1] {
        let found = vendor::leaf(&stack, device, buffer.iova + at);
        assert_eq!(found, (vendor::LEAF_OF_2_MIB, 2), "{at:#x}");
    }
    check_footprint(&mut stack, session, buffer.slot, "1: 1 of 2 MiB");
    stack.unmap(session, buffer.iova, 2 * MIB).unwrap();
    check_footprint(&mut stack, session, buffer.slot, "0");
}

/// 6 MiB and 12 KiB: large leaves, and small ones for the rest.
#[test]
fn the_rest_behind_large_leaves_is_mapped_by_small_ones() {
    let mut stack = bed();
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 6 * MIB + 0x3000).unwrap();
    for (slot, entry) in (0..).zip(vendor::LEAVES_OF_6_MIB) {
        let found = vendor::leaf(&stack, device, buffer.iova + slot * 2 * MIB);
        assert_eq!(found, (entry, 2), "2 MiB number {slot}");
    }
    for (page, entry) in (0..).zip(vendor::LEAVES_OF_12_KIB) {
        let found = vendor::leaf(&stack, device, buffer.iova + 6 * MIB + page * 0x1000);
        assert_eq!(found, (entry, 1), "page number {page}");
    }
    check_footprint(&mut stack, session, buffer.slot, vendor::FOOTPRINT);
}

/// The addresses of such a buffer begin at a multiple of 2 MiB, whatever was allocated before.
#[test]
fn large_buffers_have_addresses_at_multiples_of_2_mib() {
    let mut stack = bed();
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let mut kept = Vec::new();
    for length in [2 * MIB, 0x1000, 2 * MIB + 0x1000, 0x5000, 3 * MIB, 0x1000, 2 * MIB] {
        let buffer = stack.allocate(session, length).unwrap();
        assert!(length < 2 * MIB || buffer.iova.is_multiple_of(2 * MIB), "{length:#x}");
        kept.push((buffer, length));
        if kept.len() == 4 {
            // Where small ones were, large ones come.
            for (buffer, _) in kept.drain(..2) {
                stack.release(session, buffer.slot).unwrap();
            }
        }
    }
    assert!(kept.iter().all(|(buffer, length)| {
        stack.device_write(device, buffer.iova + length - 1, &[1]).is_ok()
    }));
}
