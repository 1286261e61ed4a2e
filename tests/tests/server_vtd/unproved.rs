//! A request fails at a unit that caches what is absent: that it was undone is not proved.

use iommu_protocol::Refusal;
use iommu_protocol::wire::{Access, Allocate, AllocateFlags, AllocateResult, Operation};
use iommud::policy::Mode;
use iommud_tests::machine::Trouble;

use crate::server::devices;
use crate::server::units::two;

/// A page is mapped, and the unit stops before it is told. The unit may have looked already, so nobody else gets the
/// page, although its client has no mapping of it.
#[test]
fn a_page_that_was_to_be_mapped_is_kept() {
    let mut stack = two(Mode::Strict);
    let [_, device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let (access, flags) = (Access::all().bits(), AllocateFlags::UNMAPPED.bits());
    let request = Allocate { length: 0x1000, access, flags, ..Allocate::default() };
    let buffer: AllocateResult = stack.call(session, Operation::Allocate, &request).unwrap();
    stack.machine.set_relax(1_000_000);
    stack.machine.trouble(1, Trouble::StallQueueAfter(0));
    assert_eq!(stack.map(session, buffer.slot, 0, 0x1000), Err(Refusal::UnitFailed));
    stack.server.close(session);
    assert_eq!(stack.metric("quarantined_bytes"), 0x1000);
    assert_eq!(stack.machine.buffers_in_use().len(), 1);
    stack.machine.assert_clean();
}
