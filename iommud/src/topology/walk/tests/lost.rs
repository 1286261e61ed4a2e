//! Functions that stop answering during the walk.

use super::super::answers;
use super::*;

/// A function with ACS that reads all ones at some reads.
struct Flickering {
    reads: usize,
    lost: core::ops::Range<usize>,
}

impl ConfigSpace for Flickering {
    fn read(&mut self, at: PciAddress, offset: u16) -> u32 {
        if at != address(0, 3, 0) {
            return u32::MAX;
        }
        self.reads += 1;
        match offset {
            _ if self.lost.contains(&self.reads) => u32::MAX,
            0 => 0x11e8_1234,
            0x04 => 0x0010_0000,
            0x08 => 0x0200_0001,
            0x0c => 0x0080_0000,
            0x34 => 0x40,
            0x40 => 0x0002_0010,
            0x100 => 0x0001_000d,
            0x104 => 0x001d_005f,
            _ => 0,
        }
    }
}

fn found(lost: core::ops::Range<usize>) -> (Vec<PciFunction>, usize) {
    let mut space = Flickering { reads: 0, lost };
    (walk(&mut space, ROOT), space.reads)
}

#[test]
fn a_function_that_is_lost_in_the_middle_of_a_look_is_not_described_as_another() {
    let (whole, reads) = found(0..0);
    assert_eq!((whole.len(), whole[0].acs), (1, Some(0x1d)));
    for at in 1..=reads {
        for end in [at + 1, at + 2, usize::MAX] {
            let (seen, _) = found(at..end);
            assert!(seen.is_empty() || seen == whole, "{at}..{end}: {seen:x?}");
        }
    }
}

/// Extended configuration space may be out of reach. The function is not lost then.
#[test]
fn a_register_that_always_reads_all_ones_is_part_of_the_description() {
    let mut config = Fake::default();
    let at = address(0, 1, 0);
    root_port(&mut config, at, 5, 0x1d);
    config.put(at, &[(0x100, u32::MAX)]);
    let found = walk(&mut config, ROOT);
    assert_eq!((found.len(), found[0].acs), (1, None));
}

#[test]
fn a_virtual_function_answers_without_a_vendor() {
    let mut config = Fake::default();
    let at = address(0, 4, 1);
    config.put(at, &[(0, u32::MAX), (4, 0x0010_0000)]);
    assert!(answers(&mut config, at));
    edu(&mut config, address(0, 4, 0));
    assert!(answers(&mut config, address(0, 4, 0)));
    assert!(!answers(&mut config, address(0, 4, 2)));
}
