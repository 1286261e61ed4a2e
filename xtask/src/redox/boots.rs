//! Measures how much longer a boot takes with iommud.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::image::{self, Stage};
use super::{Host, write_json};
use crate::options::{Iommu, RedoxOptions};
use crate::report::Report;

/// The loader's first line.
const START: &str = "redox-loader: kernel";

/// The end of a boot: every driver of the initial file system has been started.
const END: &str = "@@end";

/// Marks with the guest's clock before and after iommud's unit, and at the end.
const CLOCKS: [&str; 3] = ["@@clock before ", "@@clock after ", "@@clock end "];

/// iommud's report about its own start.
const STARTED: &str = "iommud: started: ";

/// One instruction takes one nanosecond of the guest's clock. The host skips the guest's idle time, but that clock
/// still counts it. So the count is the same in every run, whatever else the host does.
const COUNTED: [&str; 2] = ["-icount", "shift=0,sleep=off"];

/// The kinds of boots. iommud's share is the time of the last kind minus that of the middle one: the emulator takes
/// longer for a machine with a unit, whatever drives the unit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Neither,
    Unit,
    UnitAndServer,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Neither, Self::Unit, Self::UnitAndServer];

    const fn name(self) -> &'static str {
        match self {
            Self::Neither => "neither",
            Self::Unit => "a unit",
            Self::UnitAndServer => "a unit and iommud",
        }
    }
}

/// Boots each kind `count` times, alternately. Prints each time from the loader to the first program after the
/// drivers. Before that, one boot of each kind is counted in instructions.
pub(super) fn run(host: &Host, options: &RedoxOptions, count: u16) -> Result<bool> {
    let instructions = counted(host, options.iommu)?;
    let mut boots: [Vec<Boot>; 3] = Default::default();
    for number in 1..=count {
        for (kind, boots) in Kind::ALL.into_iter().zip(&mut boots) {
            let boot = boot(host, kind, options.iommu, &[])?;
            let [time, work] = [boot.time, boot.work[2]].map(milliseconds);
            let name = kind.name();
            println!("boot {number}, {name}: {time:.0} ms, processor time {work:.0} ms");
            if kind == Kind::UnitAndServer {
                println!("boot {number}: iommud started: {}", boot.started);
            }
            boots.push(boot);
        }
    }
    let measures: [(&str, Measure); 4] = [
        ("whole boot", |boot| boot.time),
        ("whole boot, processor time", |boot| boot.work[2]),
        ("one program that prints a line, or iommud too, processor time", |boot| {
            boot.work[1].saturating_sub(boot.work[0])
        }),
        ("after that, processor time", |boot| boot.work[2].saturating_sub(boot.work[1])),
    ];
    println!("boots: {count} of each kind, with {}; medians", Kind::ALL.map(Kind::name).join(", "));
    let mut rows = Vec::new();
    for (name, of) in measures {
        let [a, b, c] = boots.each_ref().map(|boots| {
            let mut times: Vec<_> = boots.iter().map(of).collect();
            milliseconds(median(&mut times))
        });
        println!(
            "  {name}: {a:.0}, {b:.0}, {c:.0} ms: the unit {:+.0}, iommud {:+.0}",
            b - a,
            c - b
        );
        rows.push(json!({ "name": name, "neither_ms": a, "unit_ms": b, "iommud_ms": c }));
    }
    let value = json!({ "boots": count, "added_instructions": instructions, "medians": rows });
    write_json(options.json.as_deref(), &value)?;
    Ok(true)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Boots each kind once and measures by the guest's own clock, which counts instructions. Returns iommud's share.
fn counted(host: &Host, iommu: Iommu) -> Result<i64> {
    let mut clocks = Vec::new();
    for kind in Kind::ALL {
        let name = kind.name();
        let boot = boot(host, kind, iommu, &COUNTED)?;
        let [before, after, end] = boot.clocks;
        let between = after - before;
        println!("counted, {name}: {between} instructions between the marks; the end at {end} ns");
        if kind == Kind::UnitAndServer {
            println!("counted: iommud started, 1 ms a million: {}", boot.started);
        }
        clocks.push((end, between));
    }
    let [(_, _), (end, unit), (end_with, unit_with)] = clocks[..] else { return Ok(0) };
    let (unit, end) = (unit_with - unit, end_with - end);
    println!("counted: iommud {unit:+} until it is ready; the end {end:+} ns, waits included");
    Ok(unit)
}

/// One of the times of a boot.
type Measure = fn(&Boot) -> Duration;

/// A complete boot.
struct Boot {
    /// Host time since the loader.
    time: Duration,
    /// Guest clock since the kernel, in ns: before iommud's unit, after it, at the end.
    clocks: [i64; 3],
    /// Processor time of QEMU at the same points.
    work: [Duration; 3],
    /// iommud's report about its start.
    started: String,
}

/// Returns the processor time of a process, all threads (proc_pid_schedstat(5)). Other work of the host does not
/// count.
fn processor_time(process: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Makes a boot of this kind.
fn boot(host: &Host, kind: Kind, iommu: Iommu, arguments: &[&str]) -> Result<Boot> {
    let stage = if kind == Kind::UnitAndServer { Stage::EarlyTimed } else { Stage::WithoutTimed };
    let iommu = if kind == Kind::Neither { Iommu::None } else { iommu };
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

/// Returns the median; the mean of the two middle values if their number is even.
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
