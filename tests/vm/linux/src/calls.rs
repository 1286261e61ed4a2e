//! The cost of map and unmap for a driver, compared with empty calls.

use std::time::Instant;

use anyhow::{Result, ensure};
use iommu_client::{Access, Device, DmaBuffer, Placement};

/// Alternately times a map and unmap of 4 KiB and two queries, so short that a disturbance affects both equally
/// often. Returns nanoseconds of a pair, of two queries, and the ratio's median and quartiles.
pub(crate) fn against_empty(device: &Device, buffer: &DmaBuffer, rounds: usize) -> Result<String> {
    ensure!(rounds > 0, "no round");
    let pair = || -> Result<()> {
        let mapping = buffer.slot().map(0..4096, Access::READ, Placement::Below4G)?;
        Ok(mapping.unmap()?)
    };
    let two_calls = || -> Result<()> {
        device.query()?;
        device.query()?;
        Ok(())
    };
    // The first calls only fill caches.
    timed(pair)?;
    timed(two_calls)?;
    let mut all = [const { Vec::new() }; 3];
    for round in 0..rounds {
        let (pairs, calls) = if round % 2 == 0 {
            let pairs = timed(pair)?;
            (pairs, timed(two_calls)?)
        } else {
            let calls = timed(two_calls)?;
            (timed(pair)?, calls)
        };
        for (values, value) in all.iter_mut().zip([pairs, calls, pairs / calls]) {
            values.push(value);
        }
    }
    let [pairs, calls, ratio] = &mut all;
    let [pairs, calls] = [pairs, calls].map(|values| part(values, 2));
    let [low, middle, high] = [1, 2, 3].map(|quarters| part(ratio, quarters));
    Ok(format!("{pairs:.0} {calls:.0} {middle:.3} {low:.3} {high:.3}"))
}

fn timed(work: impl Fn() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64() * 1e9)
}

/// Returns the quartile `quarters` of the values.
fn part(values: &mut [f64], quarters: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * quarters / 4).copied().unwrap_or(0.0)
}
