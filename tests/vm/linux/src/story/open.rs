//! The story on a machine without a unit: the same drivers, without false claims of confinement.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::explained::self_test;
use super::legacy::copy_both_ways;
use super::{Story, edud, field};
use crate::edu::MAX_COUNT;
use crate::memory::HugePage;
use crate::process::{Puppet, until};
use crate::report::{check, log};

/// Runs the story.
pub(crate) fn run() {
    let mut story = match Story::new() {
        Ok(story) => story,
        Err(error) => return log(&format!("{error:#}")),
    };
    let s = &mut story;
    check(1, || {
        s.serve("compat")?;
        status(s)
    });
    check(2, || {
        let output = edud(&s.first, 0)?;
        ensure!(output.contains(", NOT CONFINED"), "{output}");
        let verdict = self_test(&s.first, "this machine does NOT confine", 3)?;
        Ok(format!("{MAX_COUNT} bytes both ways; check: {verdict}"))
    });
    check(3, || query(s));
    check(4, || {
        let mut second = Puppet::start()?;
        s.start_other()?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        second.expect_refusal(&format!("claim {}", s.other), "NotOwner")?;
        Ok(s.other.clone())
    });
    check(5, || {
        copy_both_ways(s, &HugePage::new("legacy")?)?;
        Ok(s.legacy_name())
    });
    check(6, || death(s));
    check(7, || {
        s.server.take().context("iommud does not run")?.stop()?;
        Ok("status 0".into())
    });
}

/// Without a unit nothing blocks the device, so the driver dies between two DMAs.
fn death(story: &mut Story) -> Result<String> {
    story.other_driver.take().context("the other driver was not started")?.kill()?;
    let server = story.server()?;
    settled(story, 0, 0)?;
    let mut driver = Story::driver(&story.first)?;
    driver.ask("allocate 0 8192")?;
    ensure!(server.metric("buffers")? == 1, "{:?}", server.metrics()?);
    driver.kill()?;
    settled(story, 0, 0)?;
    edud(&story.first, 0)?;
    Ok(format!("{} is claimed again", story.first))
}

fn settled(story: &Story, sessions: u64, buffers: u64) -> Result<()> {
    let server = story.server()?;
    let settled = until(Duration::from_secs(2), || {
        let now = (server.metric("sessions")?, server.metric("buffers")?);
        Ok((now == (sessions, buffers)).then_some(()))
    })?;
    settled.with_context(|| format!("{:?}", server.metrics()))
}

fn status(story: &Story) -> Result<String> {
    let text = story.server()?.text("status")?;
    let confinement = field(&text, "confinement")?;
    ensure!(confinement.starts_with("NOT CONFINED"), "confinement: {confinement}");
    Ok(format!("table: {}; confinement: {confinement}", field(&text, "table")?))
}

/// A buffer's address is its physical address, because nothing translates.
fn query(story: &Story) -> Result<String> {
    let mut driver = Story::driver(&story.first)?;
    let words = driver.tell("query")?;
    ensure!(words.first().is_some_and(|word| word == "open"), "{words:?}");
    let iova = driver.ask("allocate 0 4096")?;
    driver.tell("fill 0 77")?;
    let pages = story.server()?.memory()?.starting_with(crate::role::word(77, 0))?;
    ensure!(pages == [iova], "the address is {iova:#x}, the memory is at {pages:x?}");
    Ok("not confined; addresses are bus addresses".into())
}
