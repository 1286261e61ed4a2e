//! Queues of cells that both sides write, a buffer of 2 MiB and the list of its pages.

use std::cell::{RefCell, UnsafeCell};

use iommud_tests::model::Model;
use redox_dma::dma::Dma;

use crate::platform::{look, put, zeroed, zeroed_slice};
use crate::{address, alone, drive};

const BUFFER: usize = 512 * 4096;

/// 64 bytes: opcode and id, two addresses of data, a length in pages (here in the word that commands have for it).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Command {
    head: [u32; 6],
    data: [u64; 2],
    tail: [u32; 6],
}

/// 16 bytes: the last word has the command's id and the phase.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Completion([u32; 4]);

struct Driver {
    submissions: Dma<[UnsafeCell<Command>]>,
    completions: Dma<[UnsafeCell<Completion>]>,
    buffer: RefCell<Dma<[u8; BUFFER]>>,
    list: RefCell<Dma<[u64; 512]>>,
}

fn start() -> redox_dma::Result<Driver> {
    let driver = Driver {
        submissions: zeroed_slice(64)?,
        completions: zeroed_slice(256)?,
        buffer: RefCell::new(zeroed()?),
        list: RefCell::new(zeroed()?),
    };
    for (index, entry) in driver.list.borrow_mut().iter_mut().enumerate() {
        *entry = (driver.buffer.borrow().physical() + index * 4096) as u64;
    }
    Ok(driver)
}

/// Reads words where a command lies, follows its list, fills the pages, and completes it.
fn device(model: &Model, submission: u64, completion: u64) {
    let bytes = model.device_read(address(), submission, 64).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let list = model.device_read(address(), word(32), 512 * 8).unwrap();
    for (index, entry) in list.chunks(8).enumerate() {
        let page = u64::from_le_bytes(entry.try_into().unwrap());
        model.device_write(address(), page, &[index as u8; 4096]).unwrap();
    }
    assert_eq!(word(24), u64::from_le_bytes(list[..8].try_into().unwrap()));
    let id = bytes[2..4].to_vec();
    model.device_write(address(), completion + 12, &[id[0], id[1], 1, 0]).unwrap();
}

#[test]
fn a_read_of_2_mib_goes_through_queues_of_cells() {
    alone("patterns::nvme::a_read_of_2_mib_goes_through_queues_of_cells", || {
        let model = Model::new();
        drive(&model);
        let driver = start().unwrap();
        for turn in 0..3 {
            let data = [driver.buffer.borrow().physical(), driver.list.borrow().physical()];
            let head = [2 | (0x50 + turn as u32) << 16, 0, 0, 0, 0, 0];
            let command = Command { head, data: data.map(|at| at as u64), tail: [0; 6] };
            put(&driver.submissions[turn], command);
            let submission = driver.submissions.physical() + 64 * turn;
            let completion = driver.completions.physical() + 16 * turn;
            assert_eq!(look(&driver.completions[turn]).0, [0; 4]);
            device(&model, submission as u64, completion as u64);
            assert_eq!(look(&driver.completions[turn]).0[3], 0x1_0050 + turn as u32);
            let mut buffer = driver.buffer.borrow_mut();
            assert!(buffer.chunks(4096).enumerate().all(|(n, page)| page == [n as u8; 4096]));
            buffer.fill(0);
        }
        let tail = model.device_read(address(), driver.submissions.physical() as u64 + 40, 24);
        assert_eq!(tail, Ok(vec![0; 24]));
        assert_eq!(look(&driver.submissions[1]).tail, [0; 6]);
    });
}
