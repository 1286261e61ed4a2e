//! The interrupt of units that have recorded a fault.

use std::fs::{self, File};
use std::io::{self, Read, Write};

/// Vectors below this are legacy interrupts' (kernel, scheme `irq`).
const FIRST: u8 = 16;

/// Number of an interrupt to its vector.
const VECTOR: u8 = 32;

/// Where messages to a processor go (Intel SDM volume 3, section 12.11.1): the local APIC's id in bits 19:12.
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// A vector of the first processor, reserved for this process. Interrupt remapping is off: what a device sends
/// arrives as it is.
pub(super) struct Vector {
    file: File,
    number: u8,
    processor: u8,
}

impl Vector {
    /// Reserves the first that is free.
    ///
    /// # Errors
    /// There is none, or the irq scheme refuses.
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
            // Somebody else may reserve it between the list and this.
            match File::options().read(true).write(true).create(true).truncate(false).open(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok(Self { file: file?, number, processor }),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Its number at the processor.
    pub(super) const fn vector(&self) -> u8 {
        self.number + VECTOR
    }

    /// Address and data of the message that raises it.
    pub(super) fn message(&self) -> (u64, u32) {
        (MESSAGE_ADDRESS | u64::from(self.processor) << 12, u32::from(self.vector()))
    }

    /// The file whose events are interrupts.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Whether it was raised since this said so last.
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
