//! The environment of the kernel and of init: what the module says, and where the RSDP is. acpid wants it.

use core::fmt::{self, Write};

use spin::{Mutex, MutexGuard};

use crate::Failure;
use crate::multiboot::Range;

const MOST: usize = 4096;

/// Stays locked once it is written: the kernel reads it.
static TEXT: Mutex<[u8; MOST]> = Mutex::new([0; MOST]);

struct Text {
    bytes: &'static mut [u8; MOST],
    length: usize,
}

impl Text {
    fn put(&mut self, bytes: &[u8]) -> fmt::Result {
        let end = self.length.checked_add(bytes.len()).ok_or(fmt::Error)?;
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes())
    }
}

/// Writes it; returns where.
///
/// # Errors
/// It is longer than 4096 bytes.
pub(crate) fn fill(module: Range, hardware: Range) -> Result<Range, Failure> {
    let bytes = TEXT.try_lock().map(MutexGuard::leak).ok_or(Failure::Again)?;
    let start = bytes.as_ptr() as u64;
    let mut text = Text { bytes, length: 0 };
    // SAFETY: the module lies in memory that nothing else uses.
    text.put(unsafe { module.bytes() })
        .and_then(|()| {
            let size = hardware.end - hardware.start;
            write!(text, "RSDP_ADDR={:016x}\nRSDP_SIZE={size:016x}\n", hardware.start)
        })
        .map_err(|_| Failure::Environment)?;
    Ok(Range { start, end: start + text.length as u64 })
}
