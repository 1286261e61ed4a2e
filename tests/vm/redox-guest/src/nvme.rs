//! The NVMe driver, on a controller that is not the system's disk.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use iommu_client::Connection;

use crate::Seen;
use crate::drivers::{self, expect, expect_any, reach};

const NVME: &str = "/scheme/initfs/bin/nvme";

/// The controller's ids: QEMU uses them when configured with Intel's ids.
pub(crate) const IDS: &str = "8086:5845";

/// The range that is written and read back.
const RANGE: [&str; 6] = ["--length", "8M", "--pattern", "5", "--queues", "2"];

fn command(task: &str, device: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(NVME);
    command.args([task, "--device", device]).args(arguments).stdin(Stdio::inherit());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(task: &str, device: &str, arguments: &[&str], part: &str) -> Seen {
    expect(&mut command(task, device, arguments), 0, part)
}

/// Finds the controller.
pub(crate) fn find(connection: &Connection) -> Seen {
    drivers::find(connection, IDS)
}

/// Writes and reads, and compares the data.
pub(crate) fn copies(device: &str) -> Seen {
    let arguments = [&RANGE[..], &["--interrupts", "--depth", "1"]].concat();
    let written = run("write", device, &arguments, " bytes written")?;
    let read = run("read", device, &arguments, " bytes read")?;
    let rates = run("bench", device, &["--rounds", "5", "--interrupts"], "bench: 4 KiB")?;
    for line in rates.split(['\n', '\r']).filter(|line| line.contains(": ")) {
        println!("@@log {line}");
    }
    let asleep = |output: &str| output.contains(" interrupts") && !output.contains(" 0 interrupts");
    // An emulator that completes a transfer before the driver polls leaves it nothing to wait for.
    if !asleep(&written) && !asleep(&read) {
        return Err(format!("never woken: {written}; {read}"));
    }
    let idle = "server: 4 KiB random reads: 0 calls, 0 changes";
    let detail = format!("{written}; {read}, compared; {idle}");
    if rates.contains(idle) { Ok(detail) } else { Err(format!("{detail}; but {rates}")) }
}

/// Checks a DMA with a wrong pointer.
pub(crate) fn rogue(device: &str) -> Seen {
    let output = run("rogue", device, &["--iova", "0xbad0000"], "nvme: fault ")?;
    let whole = output.contains("nvme: reset") && output.contains(" bytes read");
    if whole { Ok(output) } else { Err(output) }
}

/// The data written: the whole disk first, then a part of it repeatedly, one request at a time.
const WHOLE: [&str; 4] = ["--length", "16M", "--pattern", "9"];
const BEFORE: [&str; 4] = ["--length", "4M", "--pattern", "9"];
const AFTER: [&str; 6] = ["--from", "12M", "--length", "4M", "--pattern", "9"];
const PART: (u64, u64) = (4 << 20, 8 << 20);
const ONE: [&str; 4] = ["--queues", "1", "--depth", "1"];

/// Bytes of one request of the driver.
const REQUEST: u64 = 128 << 10;

/// The first pass writes the pattern of this seed, and each later pass that of the next seed.
const SEED: u64 = 100;

/// Passes that must end before the driver is killed.
const PASSES: usize = 3;

/// Attempts at killing a driver in the middle of a pass.
const ATTEMPTS: usize = 10;

/// Kills a driver in the middle of writes, then runs another one.
pub(crate) fn killed(connection: &Connection, device: &str) -> Seen {
    run("write", device, &WHOLE, " bytes written")?;
    for attempt in 1..=ATTEMPTS {
        let (passes, reached) = kill(connection, device)?;
        let Some(end) = written(device, passes)? else { continue };
        run("read", device, &BEFORE, " bytes read")?;
        run("read", device, &AFTER, " bytes read")?;
        run("write", device, &RANGE, " bytes written")?;
        let read = run("read", device, &RANGE, " bytes read")?;
        return Ok(format!(
            "{reached}; attempt {attempt}: {passes} passes and {end} of {} bytes of the next were there, \
             nothing else changed; the next: {read}, compared",
            PART.1
        ));
    }
    Err(format!("in {ATTEMPTS} attempts no driver was killed in the middle of a pass"))
}

/// Makes one attempt. Returns the number of complete passes, and the device's reach before and after.
fn kill(connection: &Connection, device: &str) -> Result<(u64, String), String> {
    let (from, length, seed) = (PART.0.to_string(), PART.1.to_string(), SEED.to_string());
    let part = ["--from", &from, "--length", &length, "--pattern", &seed, "--loop"];
    let mut child = command("write", device, &[&part[..], &ONE].concat())
        .spawn()
        .map_err(|error| format!("{NVME}: {error}"))?;
    let output = child.stdout.take().ok_or("a driver without output")?;
    let passes = BufReader::new(output).lines().map_while(Result::ok);
    let mut passes = passes.filter(|line| line.contains(" bytes written"));
    let seen = passes.by_ref().take(PASSES).count();
    let attached = reach(connection, device)?;
    child.kill().map_err(|error| format!("kill: {error}"))?;
    child.wait().map_err(|error| format!("wait: {error}"))?;
    let cut = reach(connection, device)?;
    let reached = format!("{attached:?} became {cut:?}");
    if seen < PASSES || !attached.contains("session maps") || !cut.contains("reaches: nothing") {
        return Err(format!("after {seen} passes {reached}"));
    }
    let passes = seen + passes.count();
    Ok((u64::try_from(passes).map_err(|error| error.to_string())?, reached))
}

/// Returns how far the pass after `passes` had got; `None` when it had not begun or was complete. The rest of the
/// part holds the previous pass's data. Only the request under way is an exception: the controller writes as much of
/// it as it could read.
fn written(device: &str, passes: u64) -> Result<Option<u64>, String> {
    let (first, length) = PART;
    let read = |from: u64, length: u64, seed: u64| {
        let words = [from, length, seed].map(|number| number.to_string());
        let [from, length, seed] = words.each_ref().map(String::as_str);
        let range = ["--from", from, "--length", length, "--pattern", seed];
        expect_any(&mut command("read", device, &[&range[..], &ONE].concat()))
    };
    let all = read(first, length, SEED + passes)?;
    let end = all.split_once("wrong data at byte ").map(|(_, rest)| rest.trim_end());
    let end = match end.and_then(|end| end.split_whitespace().next()?.parse::<u64>().ok()) {
        Some(end) if end > first => end,
        Some(_) => return Ok(None),
        None if all.contains(" bytes read") => return Ok(None),
        None => return Err(all),
    };
    let next = (first + ((end - first) / REQUEST + 1) * REQUEST).min(first + length);
    let rest = first + length - next;
    for (from, length, seed) in [(first, end - first, passes), (next, rest, passes - 1)] {
        if length == 0 {
            continue;
        }
        let part = read(from, length, SEED + seed)?;
        if !part.contains(" bytes read") {
            return Err(format!("neither pass at {from}: {part}"));
        }
    }
    Ok(Some(end - first))
}

/// Runs the driver when no interrupt vector is free.
pub(crate) fn without_vector(device: &str) -> Seen {
    let words = "none to be had";
    let info = run("info", device, &["--interrupts"], words)?;
    run("write", device, &[&RANGE[..], &["--interrupts"]].concat(), " bytes written")?;
    run("read", device, &[&RANGE[..], &["--interrupts"]].concat(), " bytes read")?;
    let line = info.split(['\n', ';']).find(|line| line.contains(words)).unwrap_or("").trim();
    Ok(format!("{line}; {} bytes written and read", RANGE[1]))
}
