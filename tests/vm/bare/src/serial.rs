//! Output through the second serial port, which xtask reads, and the end of the machine.

use core::fmt::{self, Write};

use crate::cpu::{in8, out8, out32, pause};

/// Base of COM2.
const PORT: u16 = 0x2f8;
/// Line status register: the transmitter is ready for a byte.
const READY: u8 = 1 << 5;

/// QEMU's isa-debug-exit device. It ends QEMU with status `value * 2 + 1`.
const EXIT_PORT: u16 = 0xf4;

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while in8(PORT + 5) & READY == 0 {
                pause();
            }
            out8(PORT, byte);
        }
        Ok(())
    }
}

/// Writes formatted text. The port never fails.
pub fn print(arguments: fmt::Arguments<'_>) {
    let _ = Port.write_fmt(arguments);
}

/// Ends the machine.
pub fn exit(passed: bool) -> ! {
    out32(EXIT_PORT, if passed { 0 } else { 1 });
    loop {
        pause();
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::serial::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
