//! Fault records and reasons (sections 5.1.4.1, 7.1.3 and 11.4.7.6).

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;

use crate::addr::Iova;
use crate::hw::fields::{byte, half};
use crate::hw::unit::HardwareFault;

/// Bytes of a fault recording register.
pub(crate) const RECORD: u32 = 16;

/// F, bit 63 of the high word, write 1 to clear: the record holds a fault.
pub(crate) const FAULT: u64 = 1 << 63;

/// F in the topmost of the record's four doublewords, whose offset is 12.
pub(crate) const CLEAR: u32 = 1 << 31;

/// T1 (bit 62 of the high word) and T2 (bit 28): 00 write, 01 page request, 10 read, 11 atomic.
const T1: u64 = 1 << 62;
const T2: u64 = 1 << 28;

/// The fault in a record: FI 63:12 of the low word; SID 15:0 and FR 39:32 of the high word.
pub(crate) const fn decode(low: u64, high: u64) -> HardwareFault {
    let reason = byte(high, 32) as u16;
    let translation = !matches!(reason, 0x20..=0x2f);
    HardwareFault {
        source: RequesterId(half(high, 0)),
        address: if translation { Some(Iova(low & !0xfff)) } else { None },
        access: match (translation, high & T1 != 0, high & T2 != 0) {
            (true, false, false) => FaultAccess::Write,
            (true, true, false) => FaultAccess::Read,
            _ => FaultAccess::Unknown,
        },
        reason,
        words: words(reason),
    }
}

/// A fault reason in words. Tables 15 (20h to 2Bh) and 30.
pub(crate) const fn words(reason: u16) -> &'static str {
    match reason {
        0x01..=0x0e => legacy(reason),
        0x20..=0x2b => interrupt(reason),
        0x30..=0x34 => mode(reason),
        0x38..=0x49 => scalable_context(reason),
        0x50..=0x60 => scalable_pasid(reason),
        0x70..=0x77 | 0x90 | 0x91 => first_stage(reason),
        0x78..=0x7d => second_stage(reason),
        0x80..=0x89 => scalable_general(reason),
        0xa0..=0xa5 => host_permission(reason),
        _ => UNKNOWN,
    }
}

const UNKNOWN: &str = "a reason that the specification reserves";

const fn legacy(reason: u16) -> &'static str {
    match reason {
        0x01 => "the bus has no context table (root entry not present)",
        0x02 => "the device is blocked (context entry not present)",
        0x03 => "the context entry is programmed wrongly",
        0x04 => "the address is beyond what the unit translates",
        0x05 => "no right to write at this address",
        0x06 => "no right to read at this address",
        0x07 => "a page table could not be read",
        0x08 => "the root table could not be read",
        0x09 => "the context table could not be read",
        0x0a => "a reserved bit is set in the root entry",
        0x0b => "a reserved bit is set in the context entry",
        0x0c => "a reserved bit is set in a page table entry",
        0x0d => "the context entry blocks requests of device TLBs",
        _ => "the address translates into the interrupt window",
    }
}

const fn interrupt(reason: u16) -> &'static str {
    match reason {
        0x20 => "interrupt: a reserved bit is set in the request",
        0x21 => "interrupt: the index is beyond the remapping table",
        0x22 => "interrupt: the remapping entry is not present",
        0x23 => "interrupt: the remapping table could not be read",
        0x24 => "interrupt: a reserved bit is set in the remapping entry",
        0x25 => "interrupt: requests in compatibility format are blocked",
        0x26 => "interrupt: the source is not the one the remapping entry names",
        0x27 => "interrupt: the posted interrupt descriptor could not be accessed",
        0x28 => "interrupt: a reserved bit is set in the posted interrupt descriptor",
        0x29 => "an access to the interrupt window that is not an interrupt",
        0x2a => "interrupt: the unit requires extended interrupt mode",
        _ => "interrupt: the unit requires interrupt remapping",
    }
}

const fn mode(reason: u16) -> &'static str {
    match reason {
        0x30 => "the root table address register is programmed wrongly",
        0x31 => "a request with PASID in legacy mode",
        0x32 => "a page request in legacy mode",
        0x33 => "all requests are blocked (abort-DMA mode)",
        _ => "a request with PASID asks for execute permission",
    }
}

const fn scalable_context(reason: u16) -> &'static str {
    match reason {
        0x38 => "the scalable-mode root table could not be read",
        0x39 => "the bus has no context table (scalable-mode root entry not present)",
        0x3a => "a reserved bit is set in the scalable-mode root entry",
        0x40 => "the scalable-mode context table could not be read",
        0x41 => "the device is blocked (scalable-mode context entry not present)",
        0x42 => "a reserved bit is set in the scalable-mode context entry",
        0x43 => "the scalable-mode context entry is programmed wrongly",
        0x44 => "the context entry blocks requests of device TLBs",
        0x45 => "the context entry blocks requests with PASID",
        0x46 => "the PASID is beyond the PASID directory",
        0x47 => "the context entry blocks page requests",
        0x48 => "the PASID is the one of requests without PASID",
        0x49 => "the context entry blocks translated requests with PASID",
        _ => UNKNOWN,
    }
}

const fn scalable_pasid(reason: u16) -> &'static str {
    match reason {
        0x50 => "the PASID directory could not be read",
        0x51 => "the PASID directory entry is not present",
        0x52 => "a reserved bit is set in the PASID directory entry",
        0x58 => "the PASID table could not be read",
        0x59 => "the PASID table entry is not present",
        0x5a => "a reserved bit is set in the PASID table entry",
        0x5b => "the PASID table entry is programmed wrongly",
        0x5c => "execute requests are not supported",
        0x5d => "the PASID table entry blocks privileged requests",
        0x60 => "the translated address is beyond the host permission table",
        _ => UNKNOWN,
    }
}

const fn first_stage(reason: u16) -> &'static str {
    match reason {
        0x70 => "a first-stage page table could not be read",
        0x71 => "nothing is mapped at this address (first stage)",
        0x72 => "a reserved bit is set in a first-stage entry",
        0x73 => "the first-stage root could not be read",
        0x74 => "a first-stage entry points beyond what the second stage translates",
        0x75 => "the second stage allows no read of the first-stage root",
        0x76 => "the second stage allows no read of a first-stage table",
        0x77 => "the second stage allows no write of a first-stage table",
        0x90 => "accessed or dirty bits of an unsnooped first-stage entry need an update",
        _ => "accessed or dirty bits of a first-stage entry could not be updated",
    }
}

const fn second_stage(reason: u16) -> &'static str {
    match reason {
        0x78 => "a second-stage page table could not be read",
        0x79 => "nothing is mapped at this address (second stage)",
        0x7a => "a reserved bit is set in a second-stage entry",
        0x7b => "the second-stage root could not be read",
        0x7c => "accessed or dirty bits of an unsnooped second-stage entry need an update",
        _ => "accessed or dirty bits of a second-stage entry could not be updated",
    }
}

const fn scalable_general(reason: u16) -> &'static str {
    match reason {
        0x80 => "the address is not canonical",
        0x81 => "a user request to a supervisor page",
        // Revision 3; reserved since.
        0x82 => "no right to execute at this address",
        0x83 => "the address is beyond the host address width",
        0x84 => "the address is beyond what the unit translates",
        0x85 => "no right to write at this address",
        0x86 => "no right to read at this address",
        0x87 => "the address translates into the interrupt window",
        0x89 => "the PASID is wider than the unit supports",
        _ => UNKNOWN,
    }
}

const fn host_permission(reason: u16) -> &'static str {
    match reason {
        0xa0 => "a host permission table could not be read",
        0xa1 => "a reserved bit is set in a host permission entry",
        0xa2 => "the host permission root could not be read",
        0xa3 => "the host permission table has nothing for this address",
        0xa4 => "the host permission table allows no write",
        _ => "the host permission table allows no read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 11.4.7.6. QEMU writes the same: `VTD_FRCD_F` 1 << 63, `VTD_FRCD_T` 1 << 62 for a read, the
    /// reason at bit 32, the source in bits 15:0.
    #[test]
    fn literal_records() {
        let read = decode(0x0000_0001_2345_6000, 0xc000_0006_0000_0310);
        assert_eq!(read.source, RequesterId::new(3, 2, 0).unwrap());
        assert_eq!((read.address, read.access), (Some(Iova(0x1_2345_6000)), FaultAccess::Read));
        assert_eq!((read.reason, read.words), (6, "no right to read at this address"));
        let write = decode(0xfffff, 0x8000_0005_0000_00f8);
        assert_eq!((write.address, write.access), (Some(Iova(0xff000)), FaultAccess::Write));
        assert_eq!(write.reason, 5);
        let atomic = decode(0x1000, 0xc000_0085_1000_0008);
        assert_eq!((atomic.access, atomic.reason), (FaultAccess::Unknown, 0x85));
        let page_request = decode(0x1000, 0x8000_0032_1000_0008);
        assert_eq!(page_request.access, FaultAccess::Unknown);
        // FI of interrupt faults is an index, not an address.
        let interrupt = decode(0x0017_0000_0000_0000, 0x8000_0022_0000_00f8);
        assert_eq!((interrupt.address, interrupt.access), (None, FaultAccess::Unknown));
    }

    /// All reasons of tables 15 and 30, with two of earlier revisions; all others are reserved.
    #[test]
    fn every_reason_has_words_that_fit_a_record() {
        let reasons = (0x01..=0x0e)
            .chain(0x20..=0x2b)
            .chain(0x30..=0x34)
            .chain(0x38..=0x3a)
            .chain(0x40..=0x49)
            .chain(0x50..=0x52)
            .chain(0x58..=0x5d)
            .chain([0x60])
            .chain(0x70..=0x7d)
            .chain(0x80..=0x87)
            .chain([0x89, 0x90, 0x91])
            .chain(0xa0..=0xa5);
        let known: Vec<u16> = reasons.collect();
        for reason in 0..=0x1ff {
            assert_eq!(words(reason) != UNKNOWN, known.contains(&reason), "{reason:#x}");
            assert!(words(reason).len() <= iommu_protocol::fault::WORDS_SIZE, "{reason:#x}");
        }
    }

    /// Some reasons of scalable mode are those of legacy mode under other numbers. No other two share their words.
    #[test]
    fn no_two_reasons_share_their_words() {
        let shared = [(0x04, 0x84), (0x05, 0x85), (0x06, 0x86), (0x0d, 0x44), (0x0e, 0x87)];
        for first in 0..=0xff {
            for second in first + 1..=0xff {
                let same = words(first) == words(second) && words(first) != UNKNOWN;
                assert_eq!(same, shared.contains(&(first, second)), "{first:#x} {second:#x}");
            }
        }
    }

    /// The first and the last reason of each kind, and those that clients' devices cause.
    #[test]
    fn reasons_are_those_of_the_specification() {
        let table = [
            (0x01, "the bus has no context table (root entry not present)"),
            (0x02, "the device is blocked (context entry not present)"),
            (0x04, "the address is beyond what the unit translates"),
            (0x05, "no right to write at this address"),
            (0x06, "no right to read at this address"),
            (0x0e, "the address translates into the interrupt window"),
            (0x20, "interrupt: a reserved bit is set in the request"),
            (0x25, "interrupt: requests in compatibility format are blocked"),
            (0x2b, "interrupt: the unit requires interrupt remapping"),
            (0x30, "the root table address register is programmed wrongly"),
            (0x34, "a request with PASID asks for execute permission"),
            (0x38, "the scalable-mode root table could not be read"),
            (0x49, "the context entry blocks translated requests with PASID"),
            (0x50, "the PASID directory could not be read"),
            (0x60, "the translated address is beyond the host permission table"),
            (0x70, "a first-stage page table could not be read"),
            (0x77, "the second stage allows no write of a first-stage table"),
            (0x78, "a second-stage page table could not be read"),
            (0x7d, "accessed or dirty bits of a second-stage entry could not be updated"),
            (0x80, "the address is not canonical"),
            (0x89, "the PASID is wider than the unit supports"),
            (0x91, "accessed or dirty bits of a first-stage entry could not be updated"),
            (0xa0, "a host permission table could not be read"),
            (0xa5, "the host permission table allows no read"),
            (0xff, "a reason that the specification reserves"),
        ];
        for (reason, expected) in table {
            assert_eq!(words(reason), expected, "{reason:#x}");
        }
    }
}
