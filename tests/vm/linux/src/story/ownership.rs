//! Ownership of devices and groups.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::confinement::other_memory;
use super::{OTHER_OUTPUT, Story, edud, field};
use crate::process::{Puppet, until};

/// Check 8: the device of the running driver, and another member of a claimed group.
pub(super) fn refused(story: &Story) -> Result<String> {
    let output = edud(&story.other, 3)?;
    ensure!(output.contains("another owner"), "{output}");
    let mut second = Puppet::start()?;
    second.expect_refusal(&format!("claim {}", story.other), "NotOwner")?;

    let (owned, wanted) = same_group(story)?;
    let mut first = Puppet::start()?;
    first.tell(&format!("claim {owned}"))?;
    second.expect_refusal(&format!("claim {wanted}"), "NotOwner")?;
    drop(first);
    Ok(format!("{}; {wanted}, whose group's {owned} is claimed", story.other))
}

/// Returns two devices of one unclaimed group.
fn same_group(story: &Story) -> Result<(String, String)> {
    let server = story.server()?;
    for group in server.names("groups")? {
        let text = server.text(&format!("groups/{group}"))?;
        if field(&text, "owner")? != "none" {
            continue;
        }
        let mut members = text.lines().filter_map(|line| line.strip_prefix("member: "));
        if let (Some(first), Some(second)) = (members.next(), members.next()) {
            return Ok((first.into(), second.into()));
        }
    }
    anyhow::bail!("no group that is free has two members")
}

/// Check 10.
pub(super) fn undisturbed(story: &mut Story) -> Result<String> {
    let mut driver = story.other_driver.take().context("the other driver was not started")?;
    let output = std::fs::read_to_string(OTHER_OUTPUT)?;
    ensure!(driver.ended()?.is_none(), "it ended: {output}");
    let server = story.server()?;
    let faults = server.text("faults")?;
    let own = faults.lines().filter(|line| line.contains(&story.other)).count();
    ensure!(own == 0, "{own} faults of its device");
    // It must be working, not only running: each round writes other bytes.
    let (memory, place) = (server.memory()?, other_memory(story)?);
    let mut seen = BTreeSet::new();
    let progress = until(Duration::from_secs(5), || {
        seen.insert(memory.word(place)?);
        Ok((seen.len() >= 4).then_some(()))
    })?;
    progress.with_context(|| format!("its buffer stays at {seen:x?}"))?;
    ensure!(driver.ended()?.is_none(), "it ended");
    driver.kill()?;
    Ok("no fault, no wrong byte, and its rounds go on".into())
}
