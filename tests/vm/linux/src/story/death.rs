//! The death of a driver.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Story, field};
use crate::edu::MAX_COUNT;
use crate::memory::HugePage;
use crate::process::until;
use crate::role::{pattern, word};

/// Seeds of three patterns: written by the dead driver's device, written by the next user of its memory, and held by
/// an unrelated page.
const WRITTEN: u64 = 10;
const REUSED: u64 = 20;
const INNOCENT: u64 = 30;

/// Most buffers that the next user allocates to get the dead driver's memory.
const MOST_BUFFERS: u64 = 40;

/// Check 9. The driver maps its buffer at an address that is also the physical address of an unrelated page. The
/// driver dies during a DMA write. Once its domain is gone, the write may land neither in that page nor in the
/// buffer's memory.
pub(super) fn kill_in_dma(story: &Story) -> Result<String> {
    let server = story.server()?;
    let innocent = HugePage::new("innocent")?;
    let length = usize::try_from(MAX_COUNT)?;
    innocent.memory.fill(0, length, |index| word(INNOCENT, index))?;

    let mut driver = Story::driver(&story.first)?;
    driver.ask("allocate 0 4096")?;
    driver.tell(&format!("map-at 0 {:#x}", innocent.physical))?;
    driver.tell(&format!("fill 0 {WRITTEN}"))?;
    driver.tell(&format!("load {:#x} {MAX_COUNT}", innocent.physical))?;
    let physical = only(&server.memory()?.starting_with(word(WRITTEN, 0))?)?;
    let before = server.fault_lines()?;
    driver.tell(&format!("start-store {:#x} {MAX_COUNT}", innocent.physical))?;
    std::thread::sleep(Duration::from_millis(20));
    driver.kill()?;
    let gone = until(Duration::from_secs(1), || Ok((sessions(story)? == 1).then_some(())))?;
    gone.context("the dead driver's session stays")?;

    // The next user allocates memory until it gets the page, and writes its own pattern there.
    let mut next = Story::driver(&story.legacy_name())?;
    let mut taken = None;
    for index in 0..MOST_BUFFERS {
        next.ask(&format!("allocate {index} 4096"))?;
        next.tell(&format!("fill {index} {REUSED}"))?;
        if server.memory()?.word(physical)? == word(REUSED, 0) {
            taken = Some(index);
            break;
        }
    }
    let taken = taken.context("nobody was given the dead driver's memory")?;
    std::thread::sleep(Duration::from_millis(400));
    next.tell(&format!("check {taken} {REUSED}"))?;
    ensure!(
        innocent.memory.bytes(0, length)? == pattern(INNOCENT, length),
        "the write landed at the physical address that equals its iova"
    );
    let fault = server.wait_fault(before, &story.first)?;
    super::tells(&fault, "write", None)?;
    let reach = field(&server.text(&format!("devices/{}", story.first))?, "reaches")?;
    ensure!(reach.starts_with("nothing"), "its device reaches {reach}");
    // Detaching shows that this driver's own device is quiet. It returns to policy and to its legacy driver.
    next.tell("detach")?;
    Ok(format!("its memory was buffer {taken} of the next driver when the write came: {fault}"))
}

fn sessions(story: &Story) -> Result<u64> {
    story.server()?.metric("sessions")
}

fn only(pages: &[u64]) -> Result<u64> {
    ensure!(pages.len() == 1, "the driver's memory is at {pages:x?}");
    pages.first().copied().context("no page")
}
