//! A unit stops carrying out commands while the server runs: somebody switched its queue off.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::churn::get_metric;
use super::field;
use super::kills::{DMA, Pages, WRITTEN};
use crate::edu::MAX_COUNT;
use crate::kept::Kept;
use crate::memory::HugePage;
use crate::process::{Puppet, until};
use crate::unit::Registers;
use iommu_client::Connection;

/// How long the server may take to notice, and to bring the unit up again: a time-out of a second, and pauses of one,
/// two and four seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// Metrics that are 0 when the unit is back and nobody drives the device.
const GONE: [&str; 2] = ["quarantined_bytes", "sessions"];

/// A driver dies while the unit does not answer. Its memory is kept until the unit is back, and a claim waits for that.
pub(super) fn check(kept: &Kept, device: &str) -> Result<String> {
    let before = get_metric(&kept.metrics()?, "units_recovered")?;
    let mut pages = Pages::new()?;
    pages.prepare()?;
    let mut driver = Puppet::start()?;
    driver.tell(&format!("claim {device}"))?;
    driver.tell("attach")?;
    let iova = driver.ask("allocate 0 4096")?;
    driver.tell(&format!("fill 0 {WRITTEN}"))?;
    driver.tell(&format!("load {iova:#x} {MAX_COUNT}"))?;
    let empty = HugePage::new("empty")?;
    Registers::open()?.stop_queue(empty.physical)?;
    driver.tell(&format!("start-store {iova:#x} {MAX_COUNT}"))?;
    driver.kill()?;
    let failed = until(PATIENCE, || Ok(unit()?.contains("failed").then_some(())))?;
    failed
        .with_context(|| format!("the server does not notice: {}", unit().unwrap_or_default()))?;
    let quarantined = get_metric(&kept.metrics()?, "quarantined_bytes")?;
    ensure!(quarantined > 0, "memory of its driver is given back though the unit may reach it");
    let asked = Instant::now();
    let mut next = Puppet::start()?;
    next.tell(&format!("claim-within {device} {}", PATIENCE.as_secs()))?;
    let waited = asked.elapsed();
    let recovered = get_metric(&kept.metrics()?, "units_recovered")?;
    ensure!(recovered == before + 1, "granted by a unit that was brought up {recovered} times");
    let reaches = field(&Connection::system()?.text(&format!("devices/{device}"))?, "reaches")?;
    ensure!(reaches.starts_with("nothing"), "its device reaches {reaches}");
    pages.recycle()?;
    std::thread::sleep(DMA);
    pages.check()?;
    works(&mut next)?;
    drop(next);
    let mut last = String::new();
    let settled = until(PATIENCE, || {
        let metrics = kept.metrics()?;
        last = GONE.map(|name| format!("{name} {:?}", get_metric(&metrics, name).ok())).join(", ");
        let gone = |name: &str| Ok::<_, anyhow::Error>(get_metric(&metrics, name)? == 0);
        Ok((gone(GONE[0])? && gone(GONE[1])?).then_some(()))
    })?;
    settled.with_context(|| last.clone())?;
    Ok(format!(
        "{quarantined} bytes kept until the unit was back; a claim waited {waited:.1?} for it and was granted"
    ))
}

/// What the server says of the unit.
fn unit() -> Result<String> {
    Connection::system()?.text("units/0").map_err(Into::into)
}

/// The device copies for its next driver.
fn works(next: &mut Puppet) -> Result<()> {
    next.tell("attach")?;
    let iova = next.ask("allocate 0 4096")?;
    next.tell(&format!("fill 0 {WRITTEN}"))?;
    next.tell(&format!("load {iova:#x} {MAX_COUNT}"))?;
    next.tell("fill 0 1")?;
    next.tell(&format!("store {iova:#x} {MAX_COUNT}"))?;
    next.tell(&format!("copied 0 {WRITTEN}"))?;
    next.tell("detach")?;
    Ok(())
}
