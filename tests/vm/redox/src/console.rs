//! The first serial port, as set up by the firmware.

use core::arch::asm;
use core::fmt::{self, Write};

const PORT: u16 = 0x3f8;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: a write to the data register of COM1 has no effect on memory.
            unsafe { asm!("out dx, al", in("dx") PORT, in("al") byte, options(nomem, nostack)) };
        }
        Ok(())
    }
}

/// Writes one line.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let _ = writeln!(Serial, "{text}\r");
}
