//! The driver on a machine in this process: the whole server over a software unit, and the device in software.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected must stop")]

use edud::engine::{Registers, dma};
use edud::{Direction, MOST};
use iommu_client::{BufferOptions, Device};
use iommud_tests::model::{Model, Vendor};

/// The device: its registers, its buffer, and the machine in which it masters the bus.
struct Software<'machine> {
    model: &'machine Model,
    device: &'machine Device,
    registers: [u64; 4],
    buffer: Vec<u8>,
}

impl Registers for Software<'_> {
    fn read(&self, offset: u64) -> Option<u64> {
        // A DMA ends with the write that starts it.
        (offset == 0x98).then_some(0)
    }

    fn write(&mut self, offset: u64, value: u64) -> Option<()> {
        let index = usize::try_from(offset.checked_sub(0x80)? / 8).ok()?;
        *self.registers.get_mut(index)? = value;
        let [source, destination, count, command] = self.registers;
        let (address, length) = (self.device.address(), usize::try_from(count).ok()?);
        if offset == 0x98 && command == 1 && destination == 0x40000 {
            // A device whose DMA is blocked goes on with what it has.
            if let Ok(bytes) = self.model.device_read(address, source, length) {
                self.buffer = bytes;
            }
        }
        if offset == 0x98 && command == 3 && source == 0x40000 {
            let _ = self.model.device_write(address, destination, self.buffer.get(..length)?);
        }
        Some(())
    }
}

fn with_device(check: impl Fn(&mut Software<'_>, &Device)) {
    for vendor in Vendor::ALL {
        let model = Model::of(vendor);
        let (device, permission) = model.attached();
        let buffer = vec![0; 4096];
        check(&mut Software { model: &model, device: &device, registers: [0; 4], buffer }, &device);
        device.detach(permission).unwrap();
    }
}

#[test]
fn a_pattern_comes_back() {
    with_device(|edu, device| {
        let mut memory = device.allocate(4096, BufferOptions::default()).unwrap();
        let pattern: Vec<u8> = (0..MOST).map(|n| u8::try_from(n % 251).unwrap()).collect();
        memory.write(0, &pattern).unwrap();
        dma(edu, memory.iova(), MOST, Direction::FromMemory).unwrap();
        memory.write(0, &vec![0xee; pattern.len()]).unwrap();
        dma(edu, memory.iova(), MOST, Direction::ToMemory).unwrap();
        assert_eq!(memory.snapshot_bytes(0, pattern.len()).unwrap().to_vec(), pattern);
        assert!(device.next_fault().unwrap().is_none());
    });
}

#[test]
fn an_address_that_was_not_granted_is_blocked_and_reported() {
    with_device(|edu, device| {
        let memory = device.allocate(4096, BufferOptions::default()).unwrap();
        let behind = memory.iova() + 4096;
        dma(edu, behind, 16, Direction::ToMemory).unwrap();
        assert_eq!(device.next_fault().unwrap().unwrap().address, Some(behind));
    });
}
