//! The interrupt by which units report that they recorded a fault.

use std::fs::{self, File};
use std::io::{self, Read, Write};

/// Numbers below this belong to legacy interrupts (kernel, scheme `irq`).
const FIRST: u8 = 16;

/// Difference between a vector and its number in the irq scheme.
const VECTOR: u8 = 32;

/// Address of interrupt messages to a processor (Intel SDM volume 3, section 12.11.1). Bits 19:12 hold the id of its
/// local APIC.
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// A vector of the first processor, reserved for this process. Interrupt remapping is off, so messages of a device
/// arrive unchanged.
pub(super) struct Vector {
    file: File,
    number: u8,
    processor: u8,
}

impl Vector {
    /// Reserves the first free vector.
    ///
    /// # Errors
    /// No vector is free, or the irq scheme refuses.
    pub(super) fn reserve() -> io::Result<Self> {
        let mut word = [0; 8];
        let length = File::open("/scheme/irq/bsp")?.read(&mut word)?;
        let processor = u8::try_from(u64::from_ne_bytes(word)).ok().filter(|_| length >= 4);
        let processor = processor.ok_or(io::ErrorKind::Unsupported)?;
        let directory = format!("/scheme/irq/cpu-{processor:02x}");
        for entry in fs::read_dir(&directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.parse::<u8>().ok());
            let Some(number) = number.filter(|number| (FIRST..u8::MAX - VECTOR).contains(number))
            else {
                continue;
            };
            let path = format!("{directory}/{number}");
            // Another process may have reserved it after the directory was read.
            match File::options().read(true).write(true).create(true).truncate(false).open(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok(Self { file: file?, number, processor }),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// The vector's number at the processor.
    pub(super) const fn vector(&self) -> u8 {
        self.number + VECTOR
    }

    /// Address and data of the message that raises the vector.
    pub(super) fn message(&self) -> (u64, u32) {
        (MESSAGE_ADDRESS | u64::from(self.processor) << 12, u32::from(self.vector()))
    }

    /// The file that becomes readable at each interrupt.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Whether the interrupt was raised since the last call that returned true. Acknowledges it.
    ///
    /// # Errors
    /// The irq scheme fails.
    pub(super) fn raised(&mut self) -> io::Result<bool> {
        let mut count = [0; 8];
        if self.file.read(&mut count)? < count.len() {
            return Ok(false);
        }
        self.file.write_all(&count).map(|()| true)
    }
}
