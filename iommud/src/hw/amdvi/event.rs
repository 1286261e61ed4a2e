//! Meaning of the entries of the event log and the PPR log.

use iommu_protocol::fault::FaultAccess;
use iommu_protocol::ids::RequesterId;

use super::spec::event::{self, code};
use crate::addr::{INTERRUPT_WINDOW, Iova, PAGE_SIZE};
use crate::hw::unit::HardwareFault;

/// Added to the code of an entry of the PPR log, to distinguish it from an event with the same number.
const PAGE_REQUEST_REASON: u16 = 0x100;

/// Decodes the fault that an entry of the event log reports. Events that concern no device get the requester id of
/// the unit itself. Physical addresses in events are left out.
pub(super) fn fault(entry: [u64; 2], unit: RequesterId) -> HardwareFault {
    let [first, second] = entry;
    let code = event::code_of(first);
    let of_unit = matches!(
        code,
        code::ILLEGAL_COMMAND | code::COMMAND_ERROR | code::COUNTER_ZERO | code::VIRTUAL_ERROR
    );
    let source = if of_unit { unit } else { RequesterId(event::source(first)) };
    HardwareFault {
        source,
        address: address(code, first, second),
        access: access(code, first, second),
        reason: u16::from(code),
        words: words(code, first, second),
    }
}

/// Whether two faults differ at most in the offset within the page.
pub(super) fn tells_the_same(one: &HardwareFault, other: &HardwareFault) -> bool {
    let page = |fault: &HardwareFault| fault.address.map(|address| address.0 & !(PAGE_SIZE - 1));
    let rest = |fault: &HardwareFault| (fault.source, fault.access, fault.reason, fault.words);
    page(one) == page(other) && rest(one) == rest(other)
}

/// The address that the device used. `None` if the entry has none, or holds a physical address.
fn address(code: u8, first: u64, second: u64) -> Option<Iova> {
    let at = match code {
        code::PAGE_FAULT => {
            // There are no interrupts outside of the window. QEMU marks every fault as an interrupt and reports
            // address 0, which is then left out.
            let contradictory = first & event::INTERRUPT != 0 && !in_window(second);
            return (!contradictory || second != 0).then_some(Iova(second));
        }
        code::ILLEGAL_ENTRY => second & !0x3,
        code::INVALID_REQUEST | code::OWNERSHIP_FAULT => second,
        code::INVALID_PAGE_REQUEST => second & !0xfff,
        _ => return None,
    };
    Some(Iova(at))
}

/// The access that the device tried, if the entry reports it. RW is not valid for interrupts and translation
/// requests.
fn access(code: u8, first: u64, second: u64) -> FaultAccess {
    let tells = matches!(
        code,
        code::ILLEGAL_ENTRY
            | code::PAGE_FAULT
            | code::DEVICE_TABLE_ERROR
            | code::PAGE_TABLE_ERROR
            | code::OWNERSHIP_FAULT
    );
    if !tells || first & event::TRANSLATION != 0 {
        return FaultAccess::Unknown;
    }
    match (first & event::INTERRUPT != 0, first & event::WRITE != 0) {
        (true, _) if code == code::PAGE_FAULT && in_window(second) => FaultAccess::Write,
        (true, _) => FaultAccess::Unknown,
        (false, true) => FaultAccess::Write,
        (false, false) => FaultAccess::Read,
    }
}

fn in_window(address: u64) -> bool {
    (INTERRUPT_WINDOW.first().0..=INTERRUPT_WINDOW.last().0).contains(&address)
}

/// The event in words (48882 section 2.5).
fn words(code: u8, first: u64, second: u64) -> &'static str {
    match code {
        code::ILLEGAL_ENTRY if first & event::RESERVED != 0 => {
            "device table entry has reserved bits set or an invalid mode"
        }
        code::ILLEGAL_ENTRY => "device table entry does not allow this kind of request",
        code::PAGE_FAULT => page_fault_words(first, second),
        code::DEVICE_TABLE_ERROR => "hardware error reading the device table",
        code::PAGE_TABLE_ERROR => "hardware error reading a page table",
        code::ILLEGAL_COMMAND => "illegal command: the unit stopped taking commands",
        code::COMMAND_ERROR => "hardware error reading a command: the unit stopped taking commands",
        code::DEVICE_TIMEOUT => {
            "device did not answer an invalidation of its own translation cache"
        }
        code::INVALID_REQUEST => invalid_request_words(event::request_type(first)),
        code::INVALID_PAGE_REQUEST => "page request that is not allowed or malformed",
        code::COUNTER_ZERO => "event counter reached zero",
        code::GUEST_EVENT => "event could not be delivered to a guest",
        code::VIRTUAL_ERROR => "hardware error of the unit's virtualization",
        code::OWNERSHIP_FAULT => "memory belongs to someone else (reverse map table)",
        code::OWNERSHIP_ERROR => "hardware error reading the reverse map table",
        _ => "event of an unknown kind",
    }
}

fn page_fault_words(first: u64, second: u64) -> &'static str {
    if first & event::RESERVED != 0 {
        return "page table entry has reserved bits set or an invalid level";
    }
    if first & event::INTERRUPT != 0 {
        return if in_window(second) { "interrupt blocked" } else { "blocked by the page table" };
    }
    match (first & event::PRESENT != 0, first & event::PERMISSION != 0) {
        (false, _) => "page not present",
        (true, true) => "no permission",
        (true, false) => "blocked by the page table",
    }
}

/// The type of an INVALID_DEVICE_REQUEST (48882 section 2.5).
fn invalid_request_words(kind: u8) -> &'static str {
    match kind {
        0 => "read or non-posted write in the interrupt range",
        1 => "pre-translated request from a device that may not send any",
        2 => "port I/O request, which is blocked",
        3 => "system management message, which is blocked",
        4 => "read or non-posted write in the system management range",
        _ => "request to an address range that is not memory",
    }
}

/// A page request, from an entry of the PPR log. All are refused, because memory is never paged in.
pub(super) struct PageRequest {
    /// The requester.
    pub(super) source: RequesterId,
    /// The process, if the request names one.
    pub(super) process: Option<u32>,
    /// The tag for the answer.
    pub(super) tag: u16,
    /// The request as a fault, for the fault records.
    pub(super) fault: HardwareFault,
}

/// The page request in an entry of the PPR log; `None` for entries of other kinds.
pub(super) fn page_request(entry: [u64; 2]) -> Option<PageRequest> {
    let [first, second] = entry;
    if event::code_of(first) != event::PAGE_REQUEST {
        return None;
    }
    let source = RequesterId(event::source(first));
    Some(PageRequest {
        source,
        process: event::request_process(first),
        tag: event::request_tag(first),
        fault: HardwareFault {
            source,
            address: Some(Iova(second & !0xfff)),
            access: FaultAccess::Unknown,
            reason: PAGE_REQUEST_REASON | u16::from(event::PAGE_REQUEST),
            words: "page request refused: memory is never paged in",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: RequesterId = RequesterId(0x0002);

    /// Builds an entry from its 32-bit words, as specifications and drivers show them.
    fn entry(words: [u32; 4]) -> [u64; 2] {
        let [a, b, c, d] = words.map(u64::from);
        [a | b << 32, c | d << 32]
    }

    fn decode(words: [u32; 4]) -> HardwareFault {
        fault(entry(words), UNIT)
    }

    // Field positions: FreeBSD amd_reg.h struct amdiommu_event_*, VirtualBox iommu-amd.h EVT_*_T, which agree.
    // Codes: Linux EVENT_TYPE_*, Xen IOMMU_EVENT_*, FreeBSD AMDIOMMU_EV_*, in bits 31:28 of the second 32-bit word;
    // flags in its bits 27:16 (Linux EVENT_FLAGS_SHIFT, Xen IOMMU_EVENT_FLAGS_MASK).

    #[test]
    fn page_faults() {
        // As Linux logs it: "IO_PAGE_FAULT device=be:15.5 domain=0x1234 address=0xfedcba9876543000 flags=0x0020".
        let written = decode([0x0000_bead, 0x2020_1234, 0x7654_3000, 0xfedc_ba98]);
        assert_eq!(
            written,
            HardwareFault {
                source: RequesterId(0xbead),
                address: Some(Iova(0xfedc_ba98_7654_3000)),
                access: FaultAccess::Write,
                reason: 2,
                words: "page not present",
            }
        );
        let read = decode([0x0000_bead, 0x2000_1234, 0x1000, 0]);
        assert_eq!((read.access, read.words), (FaultAccess::Read, "page not present"));
        // flags=0x0070: PR, RW, PE.
        let denied = decode([0x0000_bead, 0x2070_1234, 0x1000, 0]);
        assert_eq!((denied.access, denied.words), (FaultAccess::Write, "no permission"));
        // PR without PE, and PE without PR.
        assert_eq!(decode([1, 0x2010_0000, 0x1000, 0]).words, "blocked by the page table");
        assert_eq!(decode([1, 0x2040_0000, 0x1000, 0]).words, "page not present");
        // RZ.
        assert!(decode([1, 0x2090_0000, 0, 0]).words.contains("reserved bits"));
        // TR: a translation request reports no access.
        assert_eq!(decode([1, 0x2120_0000, 0x1000, 0]).access, FaultAccess::Unknown);
    }

    #[test]
    fn interrupts() {
        let blocked = decode([0x0018, 0x2008_0000, 0xfee0_1004, 0]);
        assert_eq!(blocked.words, "interrupt blocked");
        assert_eq!(
            (blocked.access, blocked.address),
            (FaultAccess::Write, Some(Iova(0xfee0_1004)))
        );
        // QEMU 10.2 and later: I on every fault, address 0, the access in the bits of GN and NX.
        let emulated = decode([0x0018, 0x200a_0000, 0, 0]);
        assert_eq!((emulated.access, emulated.address), (FaultAccess::Unknown, None));
        assert_eq!(emulated.words, "blocked by the page table");
        assert_eq!(emulated.source, RequesterId(0x18));
    }

    #[test]
    fn illegal_entries() {
        let illegal = decode([0x0000_0100, 0x10a0_0000, 0x1234_5677, 0x1]);
        assert_eq!(
            illegal,
            HardwareFault {
                source: RequesterId(0x0100),
                address: Some(Iova(0x1_1234_5674)),
                access: FaultAccess::Write,
                reason: 1,
                words: "device table entry has reserved bits set or an invalid mode",
            }
        );
        let other = decode([0x0000_0100, 0x1000_0000, 0, 0]);
        assert_eq!(other.words, "device table entry does not allow this kind of request");
    }

    #[test]
    fn hardware_errors_hide_physical_addresses() {
        for (words, code) in [
            ([0x0100, 0x3020_0000, 0x1234_5670, 0x9], 3),
            ([0x0100, 0x4020_0000, 0x1234_5670, 0x9], 4),
            ([0x0100, 0x7000_0000, 0x1234_5670, 0x9], 7),
        ] {
            let fault = decode(words);
            assert_eq!((fault.source, fault.address), (RequesterId(0x100), None), "code {code}");
            assert_eq!(fault.reason, code);
        }
        assert_eq!(decode([0x0100, 0x3020_0000, 0, 0]).access, FaultAccess::Write);
        assert_eq!(decode([0x0100, 0x7000_0000, 0, 0]).access, FaultAccess::Unknown);
    }

    #[test]
    fn events_of_the_unit() {
        for (words, code) in [
            ([0, 0x5000_0000, 0x1234_5670, 0x9], 5),
            ([0, 0x6000_0000, 0x1234_5670, 0x9], 6),
            ([0, 0xa000_0000, 0x1, 0x2], 0xa),
        ] {
            let fault = decode(words);
            assert_eq!((fault.source, fault.address, fault.reason), (UNIT, None, code));
        }
    }

    #[test]
    fn invalid_requests() {
        // Seen on a real machine: flags=0x0a00, type 5.
        let special = decode([0, 0x8a00_0000, 0xf800_0000, 0xffff_fffd]);
        assert_eq!(special.words, "request to an address range that is not memory");
        assert_eq!((special.reason, special.access), (8, FaultAccess::Unknown));
        assert_eq!(special.address, Some(Iova(0xffff_fffd_f800_0000)));
        // Type 1, bits 59:57.
        let translated = decode([0x0300, 0x8200_0000, 0x5000, 0]);
        assert_eq!(translated.words, "pre-translated request from a device that may not send any");
    }

    /// 48882 section 2.5, INVALID_DEVICE_REQUEST: the type is in bits 59:57.
    #[test]
    fn types_of_invalid_requests() {
        let words = [
            "read or non-posted write in the interrupt range",
            "pre-translated request from a device that may not send any",
            "port I/O request, which is blocked",
            "system management message, which is blocked",
            "read or non-posted write in the system management range",
            "request to an address range that is not memory",
            "request to an address range that is not memory",
            "request to an address range that is not memory",
        ];
        for (kind, words) in (0u32..).zip(words) {
            assert_eq!(decode([0x0300, 0x8000_0000 | kind << 25, 0, 0]).words, words, "{kind}");
        }
    }

    /// Linux EVENT_TYPE_INV_PPR_REQ 9 (address in the last two words, tag in bits 9:0 of the second),
    /// EVENT_TYPE_RMP_FAULT 0xd (guest's address there), EVENT_TYPE_RMP_HW_ERR 0xe (an address of memory there);
    /// EVENT_TYPE_GUEST_EVENT_FAULT 0xb and EVENT_TYPE_VIOMMU_HW_ERR 0xc. The last two never occur, because the
    /// features that they belong to are never turned on.
    #[test]
    fn events_of_what_is_off() {
        let request = decode([0x4321_bead, 0x9100_3dff, 0x7654_3abc, 0xfedc_ba98]);
        assert_eq!((request.source, request.reason), (RequesterId(0xbead), 9));
        assert_eq!(request.address, Some(Iova(0xfedc_ba98_7654_3000)));
        assert_eq!(request.access, FaultAccess::Unknown);
        let owner = decode([0x0021_bead, 0xd020_1234, 0x7654_3abc, 0x98]);
        assert_eq!((owner.source, owner.reason), (RequesterId(0xbead), 0xd));
        assert_eq!(owner.address, Some(Iova(0x98_7654_3abc)));
        assert_eq!(owner.access, FaultAccess::Write);
        let error = decode([0x0000_bead, 0xe020_1234, 0x7654_3ab8, 0x98]);
        assert_eq!((error.source, error.reason, error.address), (RequesterId(0xbead), 0xe, None));
        let guest = decode([0x0000_bead, 0xb000_0000, 0x1000, 0]);
        assert_eq!((guest.reason, guest.address), (0xb, None));
        let unit = decode([0x0000_bead, 0xc000_0000, 0x1000, 0]);
        assert_eq!((unit.source, unit.reason, unit.address), (UNIT, 0xc, None));
    }

    #[test]
    fn every_code_has_words_of_its_own() {
        let words: Vec<_> =
            (0..16u32).map(|code| decode([0x0100, code << 28, 0, 0]).words).collect();
        assert_eq!([words[0], words[15]], ["event of an unknown kind"; 2]);
        let mut known = words[1..15].to_vec();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), 14);
        assert!(!known.contains(&words[0]));
    }

    #[test]
    fn page_requests() {
        // Linux PPR_DEVID bits 15:0, PPR_PASID1 31:16, PPR_TAG 41:32, PPR_PASID2 45:42, PPR_FLAG_GN in bit 56,
        // PPR_REQ_TYPE 63:60.
        let [first, second] = entry([0x4321_bead, 0x1100_3dff, 0x7654_3abc, 0xfedc_ba98]);
        let request = page_request([first, second]).unwrap();
        assert_eq!(request.source, RequesterId(0xbead));
        assert_eq!(request.process, Some(0xf_4321));
        assert_eq!(request.tag, 0x1ff);
        assert_eq!(request.fault.address, Some(Iova(0xfedc_ba98_7654_3000)));
        assert_eq!(request.fault.reason, 0x101);
        assert_eq!(page_request(entry([0xbead, 0x1000_0001, 0, 0])).unwrap().process, None);
        assert!(page_request(entry([0xbead, 0x2000_0001, 0, 0])).is_none());
    }
}
