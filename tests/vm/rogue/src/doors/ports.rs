//! Input and output ports of the processor.
#![allow(unsafe_code)]

use std::arch::asm;

use bitflags::Flags;
use libredox::call;

use super::Door::{self, Held, Open};

/// Number of the call that gives a thread the ports (redox_syscall, `ProcSchemeVerb::Iopl`).
const PORTS: u64 = 255;

/// Ports that reach configuration space of every function (PCI Local Bus Specification 3.0, section 3.2.2.3.2): address,
/// data.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

unsafe extern "C" {
    /// The descriptor of this thread (relibc).
    fn redox_cur_thrfd_v0() -> usize;
}

/// Reads the ids of the host bridge.
pub(super) fn configuration() -> Door {
    // SAFETY: no memory is passed.
    let thread = unsafe { redox_cur_thrfd_v0() };
    let asked = call::dup(thread, b"open_via_dup").and_then(|kernel| {
        let asked = call::call_wo(kernel, &[], Flags::empty(), &[PORTS]);
        let _ = call::close(kernel);
        asked
    });
    if let Err(error) = asked {
        return Held(format!("the kernel gives no ports: {error}"));
    }
    let ids: u32;
    // SAFETY: reads configuration space; the kernel has given this thread the ports.
    unsafe {
        asm!("out dx, eax", in("dx") ADDRESS, in("eax") ENABLE, options(nomem, nostack));
        asm!("in eax, dx", in("dx") DATA, out("eax") ids, options(nomem, nostack));
    }
    Open(format!("the kernel gives any process all ports; the host bridge is {ids:#010x}"))
}
