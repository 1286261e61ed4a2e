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

/// What the guest's clock says before and after iommud's unit, and at the end.
const CLOCKS: [&str; 3] = ["@@clock before ", "@@clock after ", "@@clock end "];

/// What iommud says of its own start.
const STARTED: &str = "iommud: started: ";

/// An instruction is a nanosecond of the guest's clock, and waiting takes no time: the same count in every run,
/// whatever else the host does.
const COUNTED: [&str; 2] = ["-icount", "shift=0,sleep=off"];

/// Boots `count` times with iommud and the unit, and `count` times with neither, by turns, and shows each
/// time from the loader to the first program after the drivers. Before that one of each kind is counted in
/// instructions.
pub(super) fn run(host: &Host, options: &RedoxOptions, count: u16) -> Result<bool> {
    let instructions = counted(host, options.iommu)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 1..=count {
        without.push(boot(host, Stage::WithoutTimed, Iommu::None, &[])?);
        with.push(boot(host, Stage::EarlyTimed, options.iommu, &[])?);
        let last =
            [&without, &with].map(|boots| boots.last().map(|boot| (boot.time, boot.work[2])));
        println!("boot {number}: (time, processor time) without, with: {last:?}");
        println!("boot {number}: {}", with.last().map_or("", |boot| &boot.started));
    }
    let measures: [(&str, Measure); 3] = [
        ("whole boot", |boot| boot.time),
        ("whole boot, processor time", |boot| boot.work[2]),
        ("iommud's unit, processor time", |boot| boot.work[1].saturating_sub(boot.work[0])),
    ];
    println!("boots: {count} of each kind; medians");
    let mut rows = Vec::new();
    for (name, of) in measures {
        let [a, b] = [&without, &with].map(|boots| {
            let mut times: Vec<_> = boots.iter().map(of).collect();
            median(&mut times).as_secs_f64() * 1e3
        });
        println!("  {name}: without {a:.0} ms, with {b:.0} ms: {:+.0} ms", b - a);
        rows.push(json!({ "name": name, "without_ms": a, "with_ms": b, "added_ms": b - a }));
    }
    let value = json!({ "boots": count, "added_instructions": instructions, "medians": rows });
    write_json(options.json.as_deref(), &value)?;
    Ok(true)
}

/// One boot of each kind by the guest's own clock, which counts instructions; the difference.
fn counted(host: &Host, iommu: Iommu) -> Result<i64> {
    let without = boot(host, Stage::WithoutTimed, Iommu::None, &COUNTED)?;
    let with = boot(host, Stage::EarlyTimed, iommu, &COUNTED)?;
    let parts = |[before, after, end]: [i64; 3]| (after - before, end - after, end);
    let (unit, rest, end) = parts(with.clocks);
    let (unit_without, rest_without, end_without) = parts(without.clocks);
    let (unit, rest) = (unit - unit_without, rest - rest_without);
    println!("counted: {end_without} instructions without, {end} with: {:+}", end - end_without);
    println!("counted: {unit:+} until its unit is ready, {rest:+} after");
    println!("counted: iommud from its first line to serving, 1 ms a million: {}", with.started);
    Ok(unit)
}

/// One of the times of a boot.
type Measure = fn(&Boot) -> Duration;

/// A boot that came to its end.
struct Boot {
    /// By the host's clock, from the loader on.
    time: Duration,
    /// By the guest's, from the kernel on, in ns: before iommud's unit, after it, at the end.
    clocks: [i64; 3],
    /// Processor time of QEMU at the same points.
    work: [Duration; 3],
    /// What iommud said of its start.
    started: String,
}

/// Processor time of a process, all threads (proc_pid_schedstat(5)); what else the host does is not in it.
fn processor_time(process: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

fn boot(host: &Host, stage: Stage, iommu: Iommu, arguments: &[&str]) -> Result<Boot> {
    let image = image::pack(&host.tree, &host.programs, stage, &host.directory)?;
    let mut machine = host.machine(&image, iommu)?;
    machine.args(arguments.iter().copied());
    let mut report = Report::new(&[]);
    let mut console = super::Console::new(&[]);
    let mut work = Vec::new();
    let end = machine.run_watched(&host.emulator, |process, line| {
        if line.contains("@@clock ") {
            work.push(processor_time(process).unwrap_or_default());
        }
        console.take(line, &mut report)
    })?;
    let served = console.find("serving /scheme/iommu").is_some();
    if end.is_some() || served != (stage == Stage::EarlyTimed) {
        console.show(super::TAIL);
        bail!("a boot did not come to its end: {end:?}, iommud served: {served}");
    }
    let start = console.find(START).context("the loader said nothing")?;
    let last = console.find(END).context("the guest said nothing")?;
    let clock = |point: &&str| console.after(point)?.split(' ').next()?.parse().ok();
    let clocks: Option<Vec<i64>> = CLOCKS.iter().map(clock).collect();
    let clocks = clocks.and_then(|clocks| clocks.try_into().ok());
    Ok(Boot {
        work: work.try_into().ok().context("the guest did not tell its clock thrice")?,
        time: last.saturating_sub(start),
        clocks: clocks.context("the guest did not tell its clock")?,
        started: console.after(STARTED).unwrap_or_default().to_owned(),
    })
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
