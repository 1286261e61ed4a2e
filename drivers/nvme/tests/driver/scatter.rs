//! The data pointers of commands, byte by byte: addresses of pages, or one descriptor where the controller has scatter-gather lists
//! (Base Specification 2.0c, 3.3.3.1 and 4.1.2).

use iommu_client::DmaBlock;
use iommud_tests::model::{Model, Vendor};
use nvme::Operation;

use super::software::{BLOCK, Manner};
use super::{Lab, SOON, bytes, lab, lab_on, request};

fn with(sgls: u32) -> Manner {
    Manner { sgls, ..Manner::default() }
}

/// Bytes 24 to 39 of a command.
fn pointer(address: u64, rest: [u8; 8]) -> Vec<u8> {
    [address.to_le_bytes(), rest].concat()
}

/// Writes a pattern of this length to the second namespace, reads it back, and compares. Returns the write's command.
fn there_and_back(lab: &mut Lab<DmaBlock>, length: usize) -> (Vec<u8>, u64) {
    let mut data = lab.pool.take(length as u64).unwrap();
    let pattern = bytes(length as u64, length);
    data.write(0, &pattern).unwrap();
    let blocks = (length / BLOCK[1]) as u64;
    let mut data = lab.nvme.run(request(2, Operation::Write, 9, blocks), data, SOON).unwrap();
    let command = lab.software.take_commands().remove(0);
    assert_eq!(lab.software.disk(2, 9 * BLOCK[1], length), pattern);
    data.fill(0xee);
    let data = lab.nvme.run(request(2, Operation::Read, 9, blocks), data, SOON).unwrap();
    assert!(data.to_vec() == pattern);
    lab.software.take_commands();
    (command, data.iova())
}

/// Up to two pages are addresses of pages. More are one data block (type 0), whatever the length, and no list.
#[test]
fn a_transfer_over_two_pages_is_one_descriptor() {
    // SGLS: no limits; words of 4 bytes; no limits and other features.
    for (vendor, sgls) in Vendor::ALL.into_iter().flat_map(|v| [1, 2, 0x0015_0001].map(|s| (v, s)))
    {
        let mut lab = lab_on::<DmaBlock>(Model::of(vendor), with(sgls), 4);
        assert!(lab.nvme.info().sgl);
        let (command, iova) = there_and_back(&mut lab, 4096);
        assert_eq!(command[..8], [0x01, 0, 0, 0, 2, 0, 0, 0], "PSDT 0");
        assert_eq!(command[24..40], pointer(iova, [0; 8]));
        let (command, iova) = there_and_back(&mut lab, 8192);
        assert_eq!(command[..2], [0x01, 0x00]);
        assert_eq!(command[24..40], pointer(iova, (iova + 4096).to_le_bytes()));
        for (length, bytes) in [(12288, [0, 0x30, 0, 0]), (4 << 20, [0, 0, 0x40, 0])] {
            let (command, iova) = there_and_back(&mut lab, length);
            // PSDT is 01b, in bits 15:14.
            assert_eq!(command[..8], [0x01, 0x40, 0, 0, 2, 0, 0, 0]);
            let [a, b, c, d] = bytes;
            assert_eq!(command[24..40], pointer(iova, [a, b, c, d, 0, 0, 0, 0x00]));
        }
        assert_eq!(lab.software.troubles(), (0, 0));
    }
}

/// A controller without them, or with a value that is not defined, gets addresses of pages.
#[test]
fn other_controllers_get_addresses_of_pages() {
    for sgls in [0, 3, 0x0015_0000] {
        let mut lab = lab::<DmaBlock>(with(sgls), 4);
        assert!(!lab.nvme.info().sgl);
        for length in [8192, 12288, 1 << 20] {
            let (command, iova) = there_and_back(&mut lab, length);
            assert_eq!(command[..2], [0x01, 0x00]);
            assert_eq!(command[24..32], iova.to_le_bytes());
        }
    }
}
