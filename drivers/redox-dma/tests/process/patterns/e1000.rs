//! Rings of 16 descriptors, and arrays of 16 buffers of 16 KiB.

use iommud_tests::model::Model;
use redox_dma::dma::Dma;

use crate::platform::{Zeros, zeroed};
use crate::{address, alone, drive};

#[repr(C)]
pub(crate) struct Descriptor {
    buffer: u64,
    length: u16,
    rest: [u8; 6],
}

fn array<T: Zeros, const N: usize>() -> redox_dma::Result<[Dma<T>; N]> {
    let all = (0..N).map(|_| zeroed()).collect::<redox_dma::Result<Vec<Dma<T>>>>()?;
    Ok(all.try_into().unwrap_or_else(|_| unreachable!()))
}

struct Driver {
    received: [Dma<[u8; 16384]>; 16],
    receive: Dma<[Descriptor; 16]>,
    sent: [Dma<[u8; 16384]>; 16],
    send: Dma<[Descriptor; 16]>,
}

fn start() -> redox_dma::Result<Driver> {
    let mut driver =
        Driver { received: array()?, receive: zeroed()?, sent: array()?, send: zeroed()? };
    for (descriptor, buffer) in driver.receive.iter_mut().zip(&driver.received) {
        descriptor.buffer = buffer.physical() as u64;
    }
    for (descriptor, buffer) in driver.send.iter_mut().zip(&driver.sent) {
        descriptor.buffer = buffer.physical() as u64;
    }
    Ok(driver)
}

/// Sends the packet of a descriptor back into another one's buffer.
fn device(model: &Model, send: u64, receive: u64) {
    let read = |at, length| model.device_read(address(), at, length).unwrap();
    let at = |descriptor| u64::from_le_bytes(read(descriptor, 8).try_into().unwrap());
    let length = read(send + 8, 2);
    let packet = read(at(send), u16::from_le_bytes([length[0], length[1]]).into());
    model.device_write(address(), at(receive), &packet).unwrap();
    model.device_write(address(), receive + 8, &[length[0], length[1], 0, 0, 1]).unwrap();
    model.device_write(address(), send + 12, &[1]).unwrap();
}

#[test]
fn packets_go_round_through_every_descriptor() {
    alone("patterns::e1000::packets_go_round_through_every_descriptor", || {
        let model = Model::new();
        drive(&model);
        let mut driver = start().unwrap();
        for turn in 0..40_usize {
            let (out, back) = (turn % 16, (turn + 5) % 16);
            let length = 60 + turn * 400;
            driver.sent[out][..length].fill(turn as u8 + 1);
            driver.send[out].length = length as u16;
            driver.receive[back].rest = [0; 6];
            let (send, receive) = (driver.send.physical(), driver.receive.physical());
            device(&model, (send + 16 * out) as u64, (receive + 16 * back) as u64);
            let descriptor = &driver.receive[back];
            assert_eq!((usize::from(descriptor.length), descriptor.rest[2]), (length, 1));
            assert!(driver.received[back][..length].iter().all(|byte| *byte == turn as u8 + 1));
            assert_eq!(driver.send[out].rest[2], 1);
        }
        let end = driver
            .received
            .iter()
            .map(Dma::physical)
            .max()
            .unwrap()
            .max(driver.sent[15].physical());
        assert!(model.device_write(address(), (end + (1 << 20)) as u64, &[1]).is_err());
    });
}
