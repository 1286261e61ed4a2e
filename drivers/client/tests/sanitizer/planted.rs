//! Drivers with one bug each. `line!()` is on the line of the call that it names.

use std::cell::RefCell;
use std::rc::Rc;

use iommu_client::{
    Access, Batch, BufferOptions, Direction, DmaBuffer, DmaPool, Exposure, Placement, PoolOptions,
    TransferOptions, TransferQueue,
};
use iommud_tests::model::{Model, Vendor};

use super::{Lab, lab};

const UNMAPPED: BufferOptions = BufferOptions {
    access: Access::READ.union(Access::WRITE),
    alignment: 0,
    boundary: 0,
    above_4g: false,
    unmapped: true,
};

/// Runs a driver on the unit of each vendor.
fn on_both(driver: fn(Lab)) {
    Vendor::ALL.into_iter().for_each(|vendor| driver(lab(Model::of(vendor))));
}

/// Bug 1: it ends a mapping while the device is at work.
#[test]
fn use_after_unmap() {
    on_both(|lab| {
        let buffer = lab.device.allocate(8192, BufferOptions::default()).unwrap();
        let (slot, access, anywhere) = (buffer.slot(), Access::WRITE, Placement::Anywhere);
        let (map, mapping) = (line!(), slot.map(4096..8192, access, anywhere).unwrap());
        let iova = mapping.iova();
        assert!(lab.writes(iova, &[1]) && lab.faults() == 0);
        let unmap = (line!(), mapping.unmap().unwrap()).0;
        assert_eq!(lab.reports(), [""; 0]);
        assert!(!lab.writes(iova + 4095, &[1]));
        assert_eq!(lab.faults(), 1);
        let at = reported(iova + 4095, &lab);
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: use after unmap: the device wrote at iova {at:#x}, unmapped at \
                 <{unmap}>; 4096 bytes at iova {iova:#x} were granted at <{map}>"
            )]
        );
        // A drop has no place.
        let (map, grant) = (line!(), slot.map(0..4096, access, anywhere).unwrap());
        let iova = grant.iova();
        drop(grant);
        assert!(!lab.writes(iova, &[1]) && lab.faults() == 1);
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: use after unmap: the device wrote at iova {iova:#x}, unmapped by a \
                 drop; 4096 bytes at iova {iova:#x} were granted at <{map}>"
            )]
        );
    });
}

/// The address that a fault at `iova` has: VT-d reports the page (VT-d 11.4.14.1, FI: bits 63:12), AMD-Vi every bit
/// (AMD-Vi 2.5.3).
fn reported(iova: u64, lab: &Lab) -> u64 {
    if lab.model.vendor() == Vendor::Intel { iova & !0xfff } else { iova }
}

/// The same in a queue: it hands a transfer in before the device has finished it.
#[test]
fn a_transfer_that_is_handed_in_too_early() {
    on_both(|lab| {
        let options = TransferOptions { exposure: Exposure::Bytes, ..TransferOptions::default() };
        let mut queue = TransferQueue::new(&lab.device, options).unwrap();
        let slot = queue.take(512).unwrap();
        let grant = (line!(), queue.grant(slot, Direction::FromDevice).unwrap()).0;
        queue.flush().unwrap();
        let granted = queue.granted().unwrap();
        let iova = granted.iova();
        queue.finished(granted).unwrap();
        let flush = (line!(), queue.flush().unwrap()).0;
        assert!(!lab.writes(iova, &[1]) && lab.faults() == 1);
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: use after unmap: the device wrote at iova {iova:#x}, unmapped at \
                 <{flush}>; 4096 bytes at iova {iova:#x} were granted at <{grant}>"
            )]
        );
    });
}

/// Bug 2: it drops a buffer of which a batch has mapped and granted parts.
#[test]
fn freed_while_mapped() {
    on_both(|lab| {
        let buffer = lab.device.allocate(8192, UNMAPPED).unwrap();
        let iova = buffer.iova() + 4096;
        let batch = Batch::new().grant(buffer.slot(), 4096..8192, Access::READ);
        let grant = (line!(), batch.run(&lab.device).unwrap()).0;
        assert_eq!(lab.reports(), [""; 0]);
        drop(buffer);
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: freed while mapped: the buffer was dropped; 4096 bytes at iova \
                 {iova:#x} were granted at <{grant}>"
            )]
        );
    });
}

/// Bug 3: it grants the wrong direction.
#[test]
fn wrong_direction() {
    on_both(|lab| {
        let buffer = lab.device.allocate(4096, UNMAPPED).unwrap();
        let (line, grant) = (line!(), buffer.grant(0..4096, Access::READ).unwrap());
        let iova = grant.iova();
        assert!(lab.reads(iova) && !lab.writes(iova, &[1]) && lab.faults() == 1);
        let expected = |verb| {
            format!(
                "0000--00--04.0: wrong direction: the device {verb} at iova {iova:#x}, granted the \
                 other way; 4096 bytes at iova {iova:#x} were granted at <{line}>"
            )
        };
        assert_eq!(lab.reports(), [expected("wrote")]);
        // The fault may be read after the grant has ended.
        drop(grant);
        let (line, grant) = (line!(), buffer.grant(0..4096, Access::WRITE).unwrap());
        assert!(!lab.reads(iova));
        drop(grant);
        assert_eq!(lab.faults(), 1);
        let late = lab.reports();
        assert!(late[0].contains("wrong direction: the device read"), "{late:?}");
        assert!(late[0].ends_with(&format!("granted at <{line}>")), "{late:?}");
    });
}

/// Bug 4: it writes to memory that it has lent to the device for writing.
#[test]
fn written_while_granted() {
    on_both(|lab| {
        let mut queue = TransferQueue::new(&lab.device, TransferOptions::default()).unwrap();
        let memory = Rc::new(RefCell::new(lab.device.allocate(8192, UNMAPPED).unwrap()));
        let iova = memory.borrow().iova();
        let lend = (line!(), queue.lend(&memory, 0..4096, Direction::FromDevice).unwrap()).0;
        queue.flush().unwrap();
        memory.borrow_mut().write(4096, &[1; 4096]).unwrap();
        assert_eq!(lab.reports(), [""; 0]);
        let write = (line!(), memory.borrow_mut().store_at(4092, 7_u32).unwrap()).0;
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: written while granted: the driver wrote at <{write}> to memory \
                 granted for writing; 4096 bytes at iova {iova:#x} were granted at <{lend}>"
            )]
        );
    });
}

/// Bug 5: it checks a length in shared memory, and then reads it again to use it.
#[test]
fn read_twice() {
    on_both(|lab| {
        let device = &lab.device;
        let (line, ring) = (line!(), DmaBuffer::<[u32]>::zeroed_slice(device, 1024).unwrap());
        let iova = ring.iova();
        assert!(lab.writes(iova + 4, &[64, 0, 0, 0]));
        let (first, length) = (line!(), ring.get(1).unwrap());
        assert!(length <= 64 && lab.reports().is_empty());
        // The device changes its mind, and the second read overruns.
        assert!(lab.writes(iova + 4, &[255, 0, 0, 0]));
        let (again, length) = (line!(), ring.load_at::<u32>(4).unwrap());
        assert_eq!(length, 255);
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: read twice: at <{first}> and at <{again}>, without a snapshot; 4096 \
                 bytes at iova {iova:#x} were granted at <{line}>"
            )]
        );
        // A look at the memory after a snapshot of it is a second look.
        let snapshot = (line!(), ring.snapshot_at::<u32>(8).unwrap()).0;
        let again = (line!(), ring.get(2).unwrap()).0;
        let expected = format!("read twice: at <{snapshot}> and at <{again}>, without a snapshot");
        assert!(lab.reports()[0].contains(&expected));
    });
}

/// The same in a block of a pool.
#[test]
fn a_block_that_is_read_twice() {
    on_both(|lab| {
        let pool = DmaPool::new(&lab.device, PoolOptions::default()).unwrap();
        let (take, block) = (line!(), pool.take(100).unwrap());
        let iova = block.iova();
        let first = (line!(), block.load_at::<u32>(0).unwrap()).0;
        let again = (line!(), block.to_vec()).0;
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: read twice: at <{first}> and at <{again}>, without a snapshot; 100 \
                 bytes at iova {iova:#x} were granted at <{take}>"
            )]
        );
    });
}

/// Bug 6: it gives a block back while the device is at work. That shows on a machine without a unit, too.
#[test]
fn written_after_free() {
    let driver = |lab: Lab| {
        let pool = DmaPool::new(&lab.device, PoolOptions::default()).unwrap();
        let (take, block) = (line!(), pool.take(2000).unwrap());
        let iova = block.iova();
        drop(block);
        assert!(lab.writes(iova + 100, &[1, 2, 3]));
        assert_eq!(lab.reports(), [""; 0]);
        let block = pool.take(2000).unwrap();
        assert_eq!(block.iova(), iova, "another block");
        assert_eq!(
            lab.reports(),
            [format!(
                "0000--00--04.0: written after free: the device wrote at iova {:#x} after the block \
                 was given back; 2048 bytes at iova {iova:#x} were granted at <{take}>",
                iova + 100
            )]
        );
    };
    on_both(driver);
    driver(lab(Model::without_unit()));
}

/// Bug 7: it gives the device a wrong length.
#[test]
fn out_of_bounds() {
    on_both(|lab| {
        let buffer = lab.device.allocate(16384, UNMAPPED).unwrap();
        let (line, grant) = (line!(), buffer.grant(4096..8192, Access::READ).unwrap());
        let iova = grant.iova();
        for at in [iova + 4096, iova - 4096] {
            assert!(!lab.reads(at) && lab.faults() == 1);
            let reports = lab.reports();
            let expected = format!(
                "0000--00--04.0: out of bounds: the device read at iova {at:#x}, next to its \
                 memory; 4096 bytes at iova {iova:#x} were granted at <{line}>"
            );
            // The same bug at the same place is reported once.
            assert_eq!(reports, if at > iova { vec![expected] } else { vec![] });
        }
        assert!(!lab.reads(iova + 8192) && lab.faults() == 1);
        assert_eq!(lab.reports(), [""; 0], "not next to it: of no memory that is known");
    });
}
