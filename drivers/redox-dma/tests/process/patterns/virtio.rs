//! A queue of descriptors, and a header, data and a status for each request, allocated for it and dropped after it.

use iommud_tests::model::Model;
use redox_dma::dma::Dma;

use crate::platform::zeroed_slice;
use crate::{address, alone, drive};

#[repr(C)]
pub(crate) struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

struct Queue {
    descriptors: Dma<[Descriptor]>,
    available: Dma<[u8]>,
    used: Dma<[u8]>,
}

/// What a descriptor says of a piece of memory, whatever its type.
fn describe<T: ?Sized>(memory: &Dma<T>) -> (u64, u32) {
    (memory.physical() as u64, size_of_val::<T>(memory) as u32)
}

impl Queue {
    fn chain(&mut self, parts: &[(u64, u32)]) {
        for (index, (address, length)) in parts.iter().copied().enumerate() {
            let flags = u16::from(index + 1 < parts.len());
            let next = index as u16 + 1;
            self.descriptors[index] = Descriptor { address, length, flags, next };
        }
        self.available[2] = self.available[2].wrapping_add(1);
    }
}

/// Walks the chain: reads the header, fills the data with the sector's number, and writes the status.
fn device(model: &Model, descriptors: u64, used: u64) {
    let read = |at, length| model.device_read(address(), at, length).unwrap();
    let mut parts = Vec::new();
    loop {
        let bytes = read(descriptors + 16 * parts.len() as u64, 16);
        let at = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        parts.push((at, length as usize));
        if bytes[12] & 1 == 0 {
            break;
        }
    }
    let [(header, 16), (data, length), (status, 1)] = parts[..] else { panic!("{parts:x?}") };
    let header = read(header, 16);
    assert_eq!(header[..8], [0; 8]);
    model.device_write(address(), data, &vec![header[8]; length]).unwrap();
    model.device_write(address(), status, &[0]).unwrap();
    model.device_write(address(), used + 2, &[header[8] + 1]).unwrap();
}

#[test]
fn requests_allocate_what_they_need() {
    alone("patterns::virtio::requests_allocate_what_they_need", || {
        let model = Model::new();
        drive(&model);
        let descriptors = zeroed_slice(256).unwrap();
        let (available, used) =
            (zeroed_slice(6 + 512).unwrap(), zeroed_slice(6 + 8 * 256).unwrap());
        let mut queue = Queue { descriptors, available, used };
        let before = model.counts().requests();
        for sector in 0..100_u64 {
            let header = Dma::new(Header { kind: 0, reserved: 0, sector }).unwrap();
            let data = zeroed_slice::<u8>(512 * (sector as usize % 9 + 1)).unwrap();
            let status = Dma::new(u8::MAX).unwrap();
            queue.chain(&[describe(&header), describe(&data), describe(&status)]);
            device(&model, queue.descriptors.physical() as u64, queue.used.physical() as u64);
            assert_eq!((*status, queue.used[2]), (0, sector as u8 + 1));
            assert!(data.iter().all(|byte| *byte == sector as u8));
            assert_eq!((header.kind, header.reserved, header.sector), (0, 0, sector));
        }
        assert_eq!((queue.available[2], model.counts().requests()), (100, before));
    });
}
