//! Rings with a link to their start, a table of contexts, scratchpads: allocated through functions that are generic.

use iommud_tests::model::Model;
use redox_dma::dma::Dma;

use crate::platform::{Zeros, zeroed, zeroed_slice};
use crate::{address, alone, drive};

#[repr(C)]
pub(crate) struct Trb {
    data: u64,
    status: u32,
    control: u32,
}

#[repr(C)]
pub(crate) struct Segment {
    address: u64,
    length: u32,
    reserved: u32,
}

#[repr(C, align(64))]
pub(crate) struct Context([[u32; 8]; 32]);

struct Ring {
    blocks: Dma<[Trb]>,
    next: usize,
    cycle: bool,
}

impl Ring {
    fn new(length: usize) -> redox_dma::Result<Self> {
        Ok(Self { blocks: zeroed_slice(length)?, next: 0, cycle: true })
    }

    fn push(&mut self, data: u64) {
        if self.next == self.blocks.len() - 1 {
            let start = self.blocks.physical() as u64;
            let link = 6 << 10 | 1 << 1 | u32::from(self.cycle);
            self.blocks[self.next] = Trb { data: start, status: 0, control: link };
            (self.next, self.cycle) = (0, !self.cycle);
        }
        let control = 9 << 10 | u32::from(self.cycle);
        self.blocks[self.next] = Trb { data, status: 0, control };
        self.next += 1;
    }
}

fn boxed<T: Zeros>(count: usize) -> redox_dma::Result<Box<[Dma<T>]>> {
    (0..count).map(|_| zeroed::<T>()).collect()
}

/// Follows a ring from `at`, and returns the data of its blocks until the cycle bit says that there are none.
fn device(model: &Model, mut at: u64) -> Vec<u64> {
    let (mut found, mut cycle) = (Vec::new(), 1);
    loop {
        let block = model.device_read(address(), at, 16).unwrap();
        let control = u32::from_le_bytes(block[12..].try_into().unwrap());
        let data = u64::from_le_bytes(block[..8].try_into().unwrap());
        if control & 1 != cycle {
            return found;
        }
        if control >> 10 == 6 {
            (at, cycle) = (data, cycle ^ (control >> 1 & 1));
        } else {
            found.push(data);
            at += 16;
        }
    }
}

#[test]
fn rings_contexts_and_scratchpads_are_where_their_tables_say() {
    alone("patterns::xhci::rings_contexts_and_scratchpads_are_where_their_tables_say", || {
        let model = Model::new();
        drive(&model);
        let mut table: Dma<[u64; 256]> = zeroed().unwrap();
        let contexts = boxed::<Context>(64).unwrap();
        for (entry, context) in table.iter_mut().skip(1).zip(&contexts) {
            *entry = context.physical() as u64;
        }
        let pads: Vec<Dma<[u8; 4096]>> = boxed(31).unwrap().into();
        let mut array = zeroed_slice::<u64>(pads.len()).unwrap();
        for (entry, pad) in array.iter_mut().zip(&pads) {
            *entry = pad.physical() as u64;
        }
        table[0] = array.physical() as u64;
        let mut segments = zeroed_slice::<Segment>(1).unwrap();
        let events = zeroed_slice::<Trb>(256).unwrap();
        segments[0] = Segment { address: events.physical() as u64, length: 256, reserved: 0 };
        let mut commands = Ring::new(16).unwrap();
        (0..20).for_each(|n| commands.push(n));

        let word = |at: u64| {
            let bytes = model.device_read(address(), at, 8).unwrap();
            u64::from_le_bytes(bytes.try_into().unwrap())
        };
        let start = commands.blocks.physical() as u64;
        // The first of the second lap have overwritten those of the first.
        assert_eq!(
            device(&model, start + 5 * 16)[..],
            [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
        );
        let base = table.physical() as u64;
        for slot in 1..=64 {
            model.device_write(address(), word(base + 8 * slot) + 32, &[slot as u8]).unwrap();
        }
        for pad in 0..31 {
            model.device_write(address(), word(word(base) + 8 * pad), &[pad as u8; 4096]).unwrap();
        }
        let event = word(segments.physical() as u64);
        model.device_write(address(), event + 12, &[0x21]).unwrap();
        assert!(contexts.iter().enumerate().all(|(n, context)| context.0[1][0] == n as u32 + 1));
        assert!(pads.iter().enumerate().all(|(n, pad)| **pad == [n as u8; 4096]));
        assert_eq!((events[0].control, events[1].control), (0x21, 0));
        assert_eq!((segments[0].length, segments[0].reserved), (256, 0));
        assert_eq!(segments[0].address, event);
        assert_eq!((commands.blocks[0].data, commands.blocks[0].status), (15, 0));
    });
}
