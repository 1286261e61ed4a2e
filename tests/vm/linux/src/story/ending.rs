//! Stopping and restarting iommud.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use super::legacy::copy_both_ways;
use super::{Story, edud, field};
use crate::edu::{Edu, MAX_COUNT};
use crate::memory::HugePage;
use crate::role::word;
use crate::unit::Registers;

/// Check 11: the legacy device writes constantly while a strict iommud starts. After the first denied write none
/// passes. None passes either once iommud accepts requests.
pub(super) fn strict(story: &mut Story) -> Result<String> {
    under_compat(story)?;
    story.stop()?;
    let page = HugePage::new("strict")?;
    copy_both_ways(story, &page)?;
    let stop = AtomicBool::new(false);
    let (legacy, page) = (Edu::open(story.legacy.function.clone())?, &page);
    let passes = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&legacy, page, &stop));
        let started = story.serve("strict");
        stop.store(true, Ordering::SeqCst);
        let passes = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        started.map(|()| passes)
    })?;
    let first_denied = passes.iter().position(|passed| !passed);
    let (before, after) = passes.split_at(first_denied.context("no write was denied")?);
    ensure!(!after.contains(&true), "a write passed after one was denied: {passes:?}");
    let server = story.server()?;
    for device in [&story.first, &story.other, &story.legacy_name()] {
        let reach = field(&server.text(&format!("devices/{device}"))?, "reaches")?;
        ensure!(reach.starts_with("nothing"), "{device} reaches {reach}");
    }
    let lines = server.fault_lines()?;
    ensure!(!write_passes(&legacy, page, 99)?, "a write passed under strict");
    server.wait_fault(lines, &story.legacy_name())?;
    edud(&story.first, 0).context("a driver that claims its device works under strict")?;
    Ok(format!("{} writes passed before, then {} denied", before.len(), after.len() + 1))
}

/// Checks that the legacy device reaches policy's mappings.
fn under_compat(story: &Story) -> Result<()> {
    let text = story.server()?.text(&format!("devices/{}", story.legacy_name()))?;
    let reach = field(&text, "reaches")?;
    ensure!(reach == "what policy maps", "the legacy device reaches {reach}");
    Ok(())
}

/// Writes and checks repeatedly, and once more after `stop`. Returns which writes passed.
fn write_until(edu: &Edu, page: &HugePage, stop: &AtomicBool) -> Result<Vec<bool>> {
    let mut passes = Vec::new();
    loop {
        let last = stop.load(Ordering::SeqCst);
        passes.push(write_passes(edu, page, passes.len() as u64)?);
        if last {
            return Ok(passes);
        }
    }
}

/// Whether a write of the device's buffer arrives in memory.
fn write_passes(edu: &Edu, page: &HugePage, round: u64) -> Result<bool> {
    let before = word(1000 + round, 0);
    page.memory.write64(8192, before)?;
    edu.write_memory(page.physical + 8192, MAX_COUNT)?;
    Ok(page.memory.read64(8192)? != before)
}

/// Check 13: SIGTERM arrives while a driver is working.
pub(super) fn stop(story: &mut Story) -> Result<String> {
    // A driver dies with the legacy device attached. The next server knows that from the notes, whatever its policy.
    let legacy = story.legacy_name();
    Story::driver(&legacy)?.kill()?;
    story.stop()?;
    story.serve("compat")?;
    let reach = field(&story.server()?.text(&format!("devices/{legacy}"))?, "reaches")?;
    ensure!(reach.starts_with("nothing: its owner ended"), "the legacy device reaches {reach}");
    Story::driver(&legacy)?.tell("detach")?;
    under_compat(story)?;
    let mut driver = Story::driver(&story.first)?;
    let iova = driver.ask("allocate 0 4096")?;
    driver.tell(&format!("store {iova:#x} 8"))?;
    let memory = story.server()?.memory()?;
    story.stop()?;
    // Translation stays on, and the tables stay in force, in files that outlive the server.
    let registers = Registers::open()?;
    ensure!(registers.translates()?, "translation is off");
    ensure!(memory.contains(registers.root_table()?), "the root table is elsewhere");
    copy_both_ways(story, &HugePage::new("after")?).context("the legacy device, after the end")?;
    let after = driver.expect_gone();
    Ok(format!("translation stays on, compat stays in force; its client is told: {after}"))
}
