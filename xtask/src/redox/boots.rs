//! How much longer a boot takes with iommud.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::image::{self, Stage};
use super::{Host, write_json};
use crate::options::{Iommu, RedoxOptions};
use crate::report::Report;

/// What the loader says first.
const START: &str = "redox-loader: kernel";

/// The end: every driver of the initial file system has been started.
const END: &str = "@@end";

/// Boots `count` times with iommud and the unit, and `count` times with neither, by turns, and shows each
/// time from the loader to the first program after the drivers.
pub(super) fn run(host: &Host, options: &RedoxOptions, count: u16) -> Result<bool> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 1..=count {
        without.push(boot(host, Stage::WithoutTimed, Iommu::None)?);
        with.push(boot(host, Stage::EarlyTimed, options.iommu)?);
        println!("boot {number}: without {:?}, with {:?}", without.last(), with.last());
    }
    let (with_median, without_median) = (median(&mut with), median(&mut without));
    let added = with_median.as_secs_f64() - without_median.as_secs_f64();
    println!(
        "boots: {count} of each kind; median without {:.0} ms, with {:.0} ms: {:+.0} ms",
        without_median.as_secs_f64() * 1e3,
        with_median.as_secs_f64() * 1e3,
        added * 1e3,
    );
    let milliseconds =
        |times: &[Duration]| times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>();
    let value = json!({
        "boots": count,
        "without_ms": milliseconds(&without),
        "with_ms": milliseconds(&with),
        "median_without_ms": without_median.as_secs_f64() * 1e3,
        "median_with_ms": with_median.as_secs_f64() * 1e3,
        "added_ms": added * 1e3,
    });
    write_json(options.json.as_deref(), &value)?;
    Ok(true)
}

fn boot(host: &Host, stage: Stage, iommu: Iommu) -> Result<Duration> {
    let image = image::pack(&host.tree, &host.programs, stage, &host.directory)?;
    let machine = host.machine(&image, iommu)?;
    let mut report = Report::new(&[]);
    let mut console = super::Console::new(&[]);
    let end = machine.run_until(&host.emulator, |line| console.take(line, &mut report))?;
    let served = console.find("serving /scheme/iommu").is_some();
    if end.is_some() || served != (stage == Stage::EarlyTimed) {
        console.show(super::TAIL);
        bail!("a boot did not come to its end: {end:?}, iommud served: {served}");
    }
    let start = console.find(START).context("the loader said nothing")?;
    let last = console.find(END).context("the guest said nothing")?;
    Ok(last.saturating_sub(start))
}

/// The middle one; the mean of two if there is no middle.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    let upper = times.get(times.len() / 2).copied().unwrap_or_default();
    let lower = times.get((times.len().max(1) - 1) / 2).copied().unwrap_or_default();
    (upper + lower) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |times: &[u64]| {
            let mut times: Vec<_> = times.iter().copied().map(Duration::from_millis).collect();
            median(&mut times).as_millis()
        };
        assert_eq!(of(&[7]), 7);
        assert_eq!(of(&[9, 1, 5]), 5);
        assert_eq!(of(&[8, 1, 2, 4]), 3);
        assert_eq!(of(&[]), 0);
    }
}
