//! What `iommuctl` says of the machine and of faults.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{RECORDS_NOTHING, Story};
use crate::process::{Puppet, run};
use crate::report::unchecked;
use crate::setup::emulator;
use crate::unit::Family;

/// How long `iommuctl` may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Check 14: the tree names the driver's process; a write past a buffer and one after its unmap are explained. The tree
/// and the first explanation are kept, to be shown when all checks are done.
pub(super) fn explained(story: &mut Story) -> Result<String> {
    story.serve("compat")?;
    let mut driver = Story::driver(&story.first)?;
    let iova = driver.ask("allocate 0 4096")?;
    let tree = iommuctl("tree")?;
    ensure!(tree.starts_with("unit 0: ") && tree.contains(" enabled\n"), "{tree}");
    ensure!(tree.contains("owned by process ") && tree.contains("(init), attached"), "{tree}");
    let behind = fault_at(story, &mut driver, iova + 4096)?;
    driver.tell("unmap 0")?;
    let after = fault_at(story, &mut driver, iova)?;
    if Family::of_machine() == Family::AmdVi && emulator()? <= RECORDS_NOTHING {
        ensure!(behind.contains("The unit did not record where"), "{behind}");
        unchecked("explained place of a fault: this emulator's records have none");
    } else {
        let place = format!("directly behind the end of buffer 0 of {}", address(&story.first));
        ensure!(behind.contains(&place), "{behind}");
        ensure!(after.contains("Usually a use after unmap"), "{after}");
    }
    story.told = tree.lines().chain(behind.lines()).map(Into::into).collect();
    story.stop()?;
    Ok("the tree has the driver's process; two faults are explained".into())
}

/// Has the device write where it may not; what `iommuctl` explains.
fn fault_at(story: &Story, driver: &mut Puppet, iova: u64) -> Result<String> {
    let server = story.server()?;
    let before = server.fault_lines()?;
    driver.tell(&format!("store {iova:#x} 8"))?;
    server.wait_fault(before, &story.first)?;
    let told = iommuctl("explain")?;
    ensure!(told.contains(&address(&story.first)), "another device: {told}");
    Ok(told)
}

/// The scheme's name of a device as `iommuctl` writes it.
fn address(name: &str) -> String {
    name.replace("--", ":")
}

fn iommuctl(command: &str) -> Result<String> {
    let (ended, output) = run("/bin/iommuctl", &[command], PATIENCE)?;
    ensure!(ended == 0, "iommuctl {command} ended with {ended}: {output}");
    Ok(output)
}
