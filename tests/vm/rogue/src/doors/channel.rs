//! What pcid does for whoever has the function's channel.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use edud::Failure;
use libredox::call::{self, MmapArgs, mmap};
use libredox::flag::{MAP_SHARED, PROT_READ, PROT_WRITE};

use super::Door::{self, Held, Open};

/// Requests of pcid's protocol that read and write configuration space (`driver_interface`).
const READ: u32 = 7;
const WRITE: u32 = 8;

/// The first base address register, and an address that is another device's: the first interrupt controller's for lines.
const BAR: u16 = 0x10;
const ELSEWHERE: u32 = 0xfec0_0000;

/// Bytes of edu's registers (QEMU docs/specs/edu.rst).
const LENGTH: u64 = 1 << 20;

/// A memory type in the offset of a mapping, and the number of pages that are tried.
const UNCACHED: u64 = 1 << 59;
const TRIED: u64 = 64;

fn descriptor() -> Result<usize, Failure> {
    Ok(std::env::var("PCID_CLIENT_CHANNEL")?.parse()?)
}

fn ask(request: u32, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let channel = descriptor()?;
    call::write(channel, &[&request.to_le_bytes(), body].concat())?;
    let mut length = [0; 8];
    call::read(channel, &mut length)?;
    let mut answer = vec![0; usize::try_from(u64::from_le_bytes(length))?.min(4096)];
    call::read(channel, &mut answer)?;
    Ok(answer)
}

fn bar() -> Result<u32, Failure> {
    let answer = ask(READ, &BAR.to_le_bytes())?;
    let value = answer.get(4..8).ok_or("a short answer")?;
    Ok(u32::from_le_bytes(value.try_into()?))
}

fn set_bar(value: u32) -> Result<(), Failure> {
    ask(WRITE, &[&BAR.to_le_bytes()[..], &value.to_le_bytes()].concat()).map(|_| ())
}

/// Moves the function's registers over those of another device, and back.
pub(super) fn moved_bar() -> Result<Door, Failure> {
    let before = bar()?;
    set_bar(ELSEWHERE)?;
    let moved = bar()?;
    set_bar(before)?;
    Ok(if moved == ELSEWHERE {
        Open(format!("pcid moved the registers from {before:#x} to {moved:#x}"))
    } else {
        Held(format!("the registers stay at {moved:#x}"))
    })
}

/// Maps more pages than the function's registers have. Those behind are pages of pcid's own address space: its memory,
/// or registers of other devices. Nothing there is read.
pub(super) fn beyond_registers() -> Result<Door, Failure> {
    let fd = descriptor()?;
    let mut most = 0;
    for pages in 1..=TRIED {
        let (prot, flags) = (PROT_READ | PROT_WRITE, MAP_SHARED);
        let length = usize::try_from(LENGTH + pages * 4096)?;
        let request = MmapArgs { addr: null_mut(), length, prot, flags, fd, offset: UNCACHED };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        if unsafe { mmap(request) }.is_ok() {
            most = pages;
        }
    }
    Ok(if most == 0 {
        Held("no page behind the registers can be mapped".into())
    } else {
        Open(format!("{most} pages of pcid's behind the registers can be mapped"))
    })
}
