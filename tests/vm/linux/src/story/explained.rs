//! What `iommuctl` says of the machine and of faults.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{RECORDS_NOTHING, Story};
use crate::process::{Puppet, run};
use crate::report::unchecked;
use crate::setup::emulator;
use crate::unit::Family;

/// How long `iommuctl` may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to look for addresses of a mapping that the device may only read, and of another driver's buffer.
const READ_ONLY: u64 = 0x1800_0000;
const OTHERS: u64 = 0x0800_0000;

/// Distance of two mappings of which neither is near the other.
const FAR: u64 = 4 << 20;

/// Check 14: the tree names the driver's process; four faults are explained; the self-test passes, with a device that
/// was released under its driver. The tree and the first explanation are kept, to be shown when all checks are done.
pub(super) fn explained(story: &mut Story) -> Result<String> {
    story.serve("compat")?;
    let mut driver = Story::driver(&story.first)?;
    let iova = driver.ask("allocate 0 4096")?;
    let tree = iommuctl(&["tree"], 0)?;
    ensure!(tree.starts_with("unit 0: ") && tree.contains(" enabled\n"), "{tree}");
    ensure!(tree.contains("owned by process ") && tree.contains("(init), attached"), "{tree}");
    let behind = fault_at(story, &mut driver, iova + 4096)?;
    let read_only = no_memory_of(story, READ_ONLY)?;
    driver.tell(&format!("map-read-only 0 {read_only:#x}"))?;
    let forbidden = fault_at(story, &mut driver, read_only)?;
    let mut other = Story::driver(&story.other)?;
    other.ask("allocate 0 4096")?;
    let others = no_memory_of(story, OTHERS)?;
    other.tell(&format!("map-at 0 {others:#x}"))?;
    let foreign = fault_at(story, &mut driver, others)?;
    drop(other);
    driver.tell("unmap 0")?;
    let after = fault_at(story, &mut driver, iova)?;
    if Family::of_machine() == Family::AmdVi && emulator()? <= RECORDS_NOTHING {
        ensure!(behind.contains("The unit did not record where"), "{behind}");
        unchecked("explained place of a fault: this emulator's records have none");
    } else {
        let place = format!("directly behind the end of buffer 0 of {}", address(&story.first));
        ensure!(behind.contains(&place), "{behind}");
        let inside = format!("inside buffer 0 of {}", address(&story.first));
        ensure!(forbidden.contains(&inside) && forbidden.contains(": read only."), "{forbidden}");
        let place = format!("buffer 0 of {}", address(&story.other));
        ensure!(foreign.contains("another owner's, the address is in "), "{foreign}");
        ensure!(foreign.contains(&place), "{foreign}");
        let who = after.contains(" were mapped there, unmapped ") && after.contains("(init).");
        ensure!(who && after.contains("Usually a use after unmap"), "{after}");
    }
    story.told = tree.lines().chain(behind.lines()).map(Into::into).collect();
    // The driver still runs, and its session is an administrator's to end.
    let released = iommuctl(&["release", &address(&story.first)], 0)?;
    ensure!(released.contains("sessions ended on: "), "{released}");
    let verdict = confines(story)?;
    drop(driver);
    story.stop()?;
    Ok(format!("the tree has the driver's process; four faults are explained; check: {verdict}"))
}

/// The self-test, with a device that the story's driver has left.
fn confines(story: &Story) -> Result<String> {
    let incomplete = Family::of_machine() == Family::AmdVi && emulator()? <= RECORDS_NOTHING;
    let (words, code) = if incomplete {
        unchecked("self-test: this emulator's records have no address");
        ("this machine stops devices, but its records are incomplete", 3)
    } else {
        ("this machine confines", 0)
    };
    self_test(&story.first, words, code)
}

/// Runs `iommuctl check` on a device, and expects these words in its first line.
pub(super) fn self_test(device: &str, words: &str, code: i32) -> Result<String> {
    let told = iommuctl(&["check", "--device", device], code)?;
    let line = told.lines().next().unwrap_or_default();
    ensure!(line == words, "{told}");
    Ok(line.to_owned())
}

/// An address from `first` on that is none of the server's memory: those are to appear in no frame.
fn no_memory_of(story: &Story, first: u64) -> Result<u64> {
    let memory = story.server()?.memory()?;
    let mut addresses = (0..16).map(|number| first + number * FAR);
    addresses.find(|address| !memory.contains(*address)).context("the server has all memory")
}

/// Has the device write where it may not; what `iommuctl` explains.
fn fault_at(story: &Story, driver: &mut Puppet, iova: u64) -> Result<String> {
    let server = story.server()?;
    let before = server.fault_lines()?;
    driver.tell(&format!("store {iova:#x} 8"))?;
    server.wait_fault(before, &story.first)?;
    let told = iommuctl(&["explain"], 0)?;
    ensure!(told.contains(&address(&story.first)), "another device: {told}");
    Ok(told)
}

/// The scheme's name of a device as `iommuctl` writes it.
fn address(name: &str) -> String {
    name.replace("--", ":")
}

fn iommuctl(words: &[&str], code: i32) -> Result<String> {
    let (ended, output) = run("/bin/iommuctl", words, PATIENCE)?;
    ensure!(ended == code, "iommuctl {words:?} ended with {ended}: {output}");
    Ok(output)
}
