//! Fault records: taken in order, within a limit, and none hidden or made up.

use super::*;

/// Faults of the sources 0, 1, 2 and 3. The first one is in record `first` of `count`.
fn with_faults(first: u8, count: u8) -> (Fake, TestMemory, TestUnit) {
    let many = u64::from(count - 1) << 40;
    let (fake, memory, unit) = translating(|fake| {
        fake.0.borrow_mut().capability |= many;
        fake.0.borrow_mut().records = vec![[0; 2]; count.into()];
    });
    for n in 0..4 {
        let record = [0x1000 * u64::from(n), 0xc000_0006_0000_0000 | u64::from(n)];
        fake.0.borrow_mut().records[usize::from((first + n) % count)] = record;
    }
    fake.0.borrow_mut().fault_status = u32::from(first) << 8;
    (fake, memory, unit)
}

fn take(unit: &mut TestUnit, memory: &mut TestMemory, limit: usize) -> (Vec<HardwareFault>, u32) {
    let mut faults = Vec::new();
    let lost = unit.take_faults(memory, limit, &mut |fault| faults.push(fault)).unwrap();
    (faults, lost)
}

#[test]
fn faults_are_taken_oldest_first_around_the_end() {
    let (fake, mut memory, mut unit) = with_faults(6, 8);
    fake.0.borrow_mut().fault_status |= 1;
    let (faults, lost) = take(&mut unit, &mut memory, 100);
    assert_eq!(lost, 1, "the overflow");
    assert_eq!(faults.len(), 4);
    for (n, fault) in (0u16..).zip(&faults) {
        let address = Iova(0x1000 * u64::from(n));
        assert_eq!((fault.source.0, fault.address), (n, Some(address)));
        assert_eq!((fault.access, fault.reason), (FaultAccess::Read, 6));
    }
    let writes: Vec<_> = fake.acts();
    let freed = [0x28c, 0x29c, 0x22c, 0x23c].map(|offset| W32(offset, 0x8000_0000));
    assert_eq!(writes, [&freed[..], &[W32(0x34, 1)]].concat(), "records first, then the overflow");
    assert_eq!(take(&mut unit, &mut memory, 100), (vec![], 0));
}

#[test]
fn a_limit_leaves_the_rest_for_the_next_call() {
    let (fake, mut memory, mut unit) = with_faults(6, 8);
    fake.0.borrow_mut().fault_status |= 1;
    let taken = |result: &(Vec<HardwareFault>, u32)| {
        (result.0.iter().map(|fault| fault.source.0).collect::<Vec<_>>(), result.1)
    };
    assert_eq!(taken(&take(&mut unit, &mut memory, 0)), (vec![], 0));
    assert_eq!(taken(&take(&mut unit, &mut memory, 3)), (vec![0, 1, 2], 0));
    assert_eq!(fake.0.borrow().fault_status & 1, 1, "recording resumes when all are free");
    // FRI is still 6, although that record is free by now.
    assert_eq!(taken(&take(&mut unit, &mut memory, 3)), (vec![3], 1));
    assert_eq!(taken(&take(&mut unit, &mut memory, 3)), (vec![], 0));
}

#[test]
fn one_record_takes_one_fault_a_call() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    for n in 0..3u16 {
        let high = 0x8000_0005_0000_0000 | u64::from(n);
        fake.0.borrow_mut().records[0] = [0x9000, high];
        let (faults, lost) = take(&mut unit, &mut memory, 8);
        assert_eq!((faults.len(), faults[0].source.0, lost), (1, n, 0));
        assert_eq!(faults[0].access, FaultAccess::Write);
    }
}

#[test]
fn an_answer_nobody_waits_for_is_cleared_with_the_faults() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().fault_status = 0x20;
    assert_eq!(take(&mut unit, &mut memory, 8), (vec![], 0));
    assert_eq!(fake.acts(), [W32(0x34, 0x20)]);
}

#[test]
fn a_record_of_ones_is_no_fault() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().records[0] = [u64::MAX; 2];
    let result = unit.take_faults(&mut memory, 8, &mut |_| panic!("a fault"));
    assert_eq!(result, Err(UnitError::Dead));
}

#[test]
fn the_fault_interrupt_is_programmed_while_masked() {
    let (fake, _, mut unit) = translating(|_| ());
    unit.program_fault_interrupt(0x1_fee0_1000, 0x41);
    let expected =
        [W32(0x38, 1 << 31), W32(0x3c, 0x41), W32(0x40, 0xfee0_1000), W32(0x44, 1), W32(0x38, 0)];
    assert_eq!(fake.acts(), expected);
    unit.mask_fault_interrupt(true);
    assert_eq!(fake.acts(), [W32(0x38, 1 << 31)]);
    Unit::enable_fault_interrupt(&mut unit, 0x1_fee0_1000, 0x41).unwrap();
    assert_eq!(fake.acts(), expected);
}

#[test]
fn a_wrong_index_of_the_first_fault_hides_none() {
    let (fake, mut memory, mut unit) = with_faults(3, 8);
    fake.0.borrow_mut().fault_status = 0x0600;
    let sources = |taken: (Vec<HardwareFault>, u32)| -> Vec<u16> {
        taken.0.iter().map(|fault| fault.source.0).collect()
    };
    assert_eq!(sources(take(&mut unit, &mut memory, 100)), [3], "record 6, then an empty one");
    assert_eq!(sources(take(&mut unit, &mut memory, 100)), [0, 1, 2], "the others are still there");
    let (fake, mut memory, mut unit) = with_faults(3, 8);
    fake.0.borrow_mut().fault_status = 0x0100;
    let all = sources(take(&mut unit, &mut memory, 100));
    assert_eq!(all, [0, 1, 2, 3], "two empty records come first");
}

/// Section 7.2.1: the unit drops faults until PFO is cleared.
#[test]
fn an_overflow_ends_in_the_call_that_takes_the_last_fault() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    fake.0.borrow_mut().records[0] = [0x9000, 0x8000_0005_0000_0008];
    fake.0.borrow_mut().fault_status = 1;
    let (faults, lost) = take(&mut unit, &mut memory, 8);
    assert_eq!((faults.len(), lost), (1, 1));
    assert_eq!(fake.acts(), [W32(0x22c, 1 << 31), W32(0x34, 1)]);
}

/// In a virtual machine, each read of a register is an exit.
#[test]
fn no_register_is_read_in_vain() {
    let (fake, mut memory, mut unit) = with_faults(6, 8);
    fake.reads();
    take(&mut unit, &mut memory, 100);
    // The status; each record, from the word with F on; the empty record behind them.
    let expected = [0x34, 0x288, 0x280, 0x298, 0x290, 0x228, 0x220, 0x238, 0x230, 0x248];
    assert_eq!(fake.reads(), expected);
    take(&mut unit, &mut memory, 100);
    assert_eq!(fake.reads(), [0x34]);
}

#[test]
fn error_bits_are_read_once_the_memory_was_looked_at_in_vain() {
    let (fake, mut memory, mut unit) = translating(|_| ());
    unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false).unwrap();
    fake.0.borrow_mut().stalled = true;
    fake.reads();
    let result = unit.invalidate_pages(&mut memory, DomainTag(1), pages(0x1000, 1), false);
    assert_eq!(result, Err(UnitError::Timeout { what: "an invalidation" }));
    // The clock moves by 10 ms at each wait, up to one second: the memory is looked at once, a hundred times, and once
    // after the deadline. The first seven looks read no register.
    assert_eq!(fake.reads(), [0x34; 95]);
}
