//! Configuration space of a function, through its file in sysfs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Offset of the command register (PCI Local Bus Specification 3.0, section 6.2.2).
const COMMAND: u64 = 4;
/// Command register: the function answers accesses to its memory.
pub(super) const MEMORY_SPACE: u16 = 1 << 1;
/// Command register: the function may master the bus.
pub(super) const BUS_MASTER: u16 = 1 << 2;
/// Command register: the function does not assert its interrupt line.
pub(super) const INTERRUPT_OFF: u16 = 1 << 10;

/// Lets a function assert its interrupt line again.
pub(super) fn unmask(config: &File) -> io::Result<()> {
    change_command(config, 0, INTERRUPT_OFF)
}

/// Sets and clears bits of the command register.
pub(super) fn change_command(config: &File, set: u16, clear: u16) -> io::Result<()> {
    let command = read_config(config, COMMAND)? & !clear | set;
    config.write_all_at(&command.to_le_bytes(), COMMAND)
}

/// Reads 16 bits of configuration space.
pub(super) fn read_config(config: &File, offset: u64) -> io::Result<u16> {
    let mut bytes = [0; 2];
    config.read_exact_at(&mut bytes, offset)?;
    Ok(u16::from_le_bytes(bytes))
}
