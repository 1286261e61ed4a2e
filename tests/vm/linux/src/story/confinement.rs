//! The reach of a claimed device, and its limits.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{OTHER_OUTPUT, Story, edud, rogue, tells};
use crate::edu::MAX_COUNT;
use crate::process::{number, until};

/// An address below 4 GiB that no allocation of the story uses. It lies in the middle of the guest's memory, so an
/// unblocked write would do harm.
const NEVER_GRANTED: u64 = 0x2000_0000;

/// Check 4.
pub(super) fn edud_works(story: &mut Story) -> Result<String> {
    let output = edud(&story.first, 0)?;
    ensure!(output.contains(", confined"), "{output}");
    ensure!(output.contains("bytes to the device and back: same data, no fault"), "{output}");
    let iova = buffer_address(&output)?;
    story.seen_iova = iova;
    story.start_other()?;
    Ok(format!("{MAX_COUNT} bytes both ways at iova {iova:#x}; the other driver starts its loop"))
}

/// Returns the address of a driver's buffer from its output.
pub(super) fn buffer_address(output: &str) -> Result<u64> {
    let word = output.split_once("at iova ").and_then(|(_, rest)| rest.split_whitespace().next());
    number(word.with_context(|| format!("no buffer in: {output}"))?)
}

/// Check 5: the rogue itself checks source and page of the fault record that it gets.
pub(super) fn never_granted(story: &Story) -> Result<String> {
    let server = story.server()?;
    let before = server.fault_lines()?;
    let mut told = Vec::new();
    for task in [&["--iova", "0x20000000"][..], &["--iova", "0x20000000", "--read"]] {
        let output = rogue(&story.first, task)?;
        let fault = output.lines().find_map(|line| line.strip_prefix("rogue: fault "));
        let fault = fault.with_context(|| format!("the rogue was told no fault: {output}"))?;
        let access = if task.len() == 3 { "read" } else { "write" };
        for part in [&story.first, "reason"] {
            ensure!(fault.contains(part), "no \"{part}\" in: {fault}");
        }
        tells(fault, access, Some(NEVER_GRANTED))?;
        told.push(fault.to_owned());
    }
    // The log has exactly these faults: no other device was disturbed.
    let logged = server.faults_since(before)?;
    ensure!(logged == told, "logged {logged:?}, told {told:?}");
    Ok(told.join("; "))
}

/// Check 6: uses the other driver's I/O address, and then its physical address.
pub(super) fn others_buffer(story: &mut Story) -> Result<String> {
    let iova = other_address()?;
    let physical = other_memory(story)?;
    story.asked.push(physical);
    let server = story.server()?;
    let mut rogue = Story::driver(&story.first)?;
    for target in [iova, physical] {
        let before = server.fault_lines()?;
        rogue.tell(&format!("store {target:#x} {MAX_COUNT}"))?;
        server.wait_fault(before, &story.first)?;
        let fault = rogue.tell("fault 1000")?;
        ensure!(fault.first() == Some(&story.first), "the rogue was told {fault:?}");
    }
    ensure!(rogue.tell("fault 0")? == ["none"], "the rogue was told more than it did");
    // The other driver checks every byte of every round, and ends on a wrong one.
    std::thread::sleep(Duration::from_millis(500));
    ensure!(other_memory(story)? == physical, "the other driver moved");
    Ok(format!("by its iova {iova:#x} and by its bus address: denied, its loop goes on"))
}

fn other_address() -> Result<u64> {
    let found = until(Duration::from_secs(10), || {
        Ok(buffer_address(&std::fs::read_to_string(OTHER_OUTPUT)?).ok())
    })?;
    found.context("the other driver told no address")
}

/// Returns the physical address of the other driver's buffer: the page that it fills with 0xee between its copies.
pub(super) fn other_memory(story: &Story) -> Result<u64> {
    let memory = story.server()?.memory()?;
    let found = until(Duration::from_secs(5), || {
        let pages = memory.starting_with(u64::from_le_bytes([0xee; 8]))?;
        Ok(if let [page] = *pages { Some(page) } else { None })
    })?;
    found.context("the other driver's buffer was not found")
}

/// Check 7.
pub(super) fn unmapped(story: &Story) -> Result<String> {
    let output = rogue(&story.first, &["--unmap-then-dma"])?;
    ensure!(output.contains("rogue: memory untouched"), "{output}");
    let fault = output.lines().find_map(|line| line.strip_prefix("rogue: fault "));
    Ok(fault.context("the rogue was told no fault")?.to_owned())
}
