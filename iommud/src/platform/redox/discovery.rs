//! Discovers functions that come and go. It walks the buses again that were known at start.

use iommu_protocol::ids::PciAddress;

use crate::server::Discovery;
use crate::topology::pci::{ConfigSpace, PciFunction};
use crate::topology::walk::{Roots, answers, walk};

/// Finds functions on the buses that were known at start, and behind bridges on them. Without a name space it cannot
/// list functions on other buses.
pub(super) struct Buses<S> {
    pub(super) space: S,
    /// Segments and buses where a walk begins.
    pub(super) roots: Vec<(u16, u8)>,
}

impl<S: ConfigSpace> Discovery for Buses<S> {
    fn walk(&mut self) -> Option<Vec<PciFunction>> {
        Some(walk(&mut self.space, Roots::Known(&self.roots)))
    }

    /// Reads nothing of a segment that the machine does not have, because a client may name any address. Otherwise
    /// each of its buses would be remembered, and pcid would get a call for it.
    fn answers(&mut self, address: PciAddress) -> bool {
        self.roots.iter().any(|(segment, _)| *segment == address.segment)
            && answers(&mut self.space, address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Configuration space in which only device 3 of bus 0 answers, in every segment. Counts reads.
    #[derive(Default)]
    struct One(usize);

    impl ConfigSpace for One {
        fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
            self.0 += 1;
            if address.requester.0 == 0x18 && offset == 0 { 0x1234_8086 } else { u32::MAX }
        }
    }

    #[test]
    fn nothing_is_read_of_a_segment_that_is_not_there() {
        let mut buses = Buses { space: One::default(), roots: vec![(0, 0), (2, 0x40)] };
        let at = |segment, device| PciAddress::new(segment, 0, device, 0).unwrap();
        assert!(buses.answers(at(0, 3)));
        assert!(!buses.answers(at(0, 4)));
        assert_eq!(buses.space.0, 3, "two of what does not answer");
        for segment in [1, 3, u16::MAX] {
            assert!(!buses.answers(at(segment, 3)));
        }
        assert_eq!(buses.space.0, 3);
        assert!(buses.answers(at(2, 3)));
    }
}
