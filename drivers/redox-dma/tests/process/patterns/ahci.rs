//! A port: a list of 32 commands, a table of 1 MiB for each, a buffer; as arrays of memory, passed by reference.

use iommud_tests::model::Model;
use redox_dma::dma::Dma;

use crate::platform::zeroed;
use crate::{address, alone, drive, reached};

#[repr(C)]
pub(crate) struct Header {
    flags: u16,
    entries: u16,
    done: u32,
    table: u64,
    reserved: [u32; 4],
}

#[repr(C)]
pub(crate) struct Table {
    command: [u8; 128],
    entries: [[u64; 2]; 65_535],
}

type List = Dma<[Header; 32]>;
type Tables = [Dma<Table>; 32];
type Buffer = Dma<[u8; 256 * 512]>;

struct Port {
    list: List,
    tables: Tables,
    received: Dma<[u8; 256]>,
    buffer: Buffer,
}

fn port() -> redox_dma::Result<Port> {
    let mut list: List = zeroed()?;
    let tables = (0..32).map(|_| zeroed()).collect::<redox_dma::Result<Vec<Dma<Table>>>>()?;
    let tables: Tables = tables.try_into().unwrap_or_else(|_| unreachable!());
    for (header, table) in list.iter_mut().zip(&tables) {
        (header.table, header.flags, header.reserved) = (table.physical() as u64, 5, [0; 4]);
    }
    Ok(Port { list, tables, received: zeroed()?, buffer: zeroed()? })
}

fn issue(slot: usize, list: &mut List, tables: &mut Tables, buffer: &mut Buffer) {
    list[slot].entries = 2;
    tables[slot].command[0] = 0x27;
    let (at, half) = (buffer.physical() as u64, 128 * 512_u64);
    tables[slot].entries[0] = [at, (half - 1) << 32];
    tables[slot].entries[1] = [at + half, (half - 1) << 32];
}

/// Follows a slot's header to the table, and its entries to the buffer.
fn device(model: &Model, list: u64, slot: u64, received: u64) {
    let read = |at, length| model.device_read(address(), at, length).unwrap();
    let word = |at| u64::from_le_bytes(read(at, 8).try_into().unwrap());
    let header = list + 32 * slot;
    let (table, entries) = (word(header + 8), word(header) >> 16 & 0xffff);
    assert_eq!(read(table, 1), [0x27]);
    for entry in 0..entries {
        let at = table + 128 + 16 * entry;
        let length = (word(at + 8) >> 32) + 1;
        let bytes = vec![slot as u8 + entry as u8; length as usize];
        model.device_write(address(), word(at), &bytes).unwrap();
    }
    model.device_write(address(), header + 4, &(256 * 512_u32).to_le_bytes()).unwrap();
    model.device_write(address(), received + 64, &[0x34]).unwrap();
}

#[test]
fn two_ports_of_32_tables_each_transfer() {
    alone("patterns::ahci::two_ports_of_32_tables_each_transfer", || {
        let model = Model::new();
        drive(&model);
        let mut ports = [port().unwrap(), port().unwrap()];
        for (number, port) in ports.iter_mut().enumerate() {
            let slot = 31 - number;
            issue(slot, &mut port.list, &mut port.tables, &mut port.buffer);
            let (list, received) = (port.list.physical(), port.received.physical());
            device(&model, list as u64, slot as u64, received as u64);
            assert_eq!((port.list[slot].done, port.received[64]), (256 * 512, 0x34));
            let (first, second) = port.buffer.split_at(128 * 512);
            assert!(first.iter().all(|byte| *byte == slot as u8));
            assert!(second.iter().all(|byte| *byte == slot as u8 + 1));
        }
        drop(ports);
        assert_eq!(reached(&model), 64 * 4096);
    });
}
