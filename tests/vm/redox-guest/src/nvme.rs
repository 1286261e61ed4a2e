//! The NVMe driver, on a controller that is not the system's disk.

use std::process::{Command, Stdio};
use std::time::Duration;

use iommu_client::Connection;

use crate::Seen;
use crate::drivers::{self, expect, reach};

const NVME: &str = "/scheme/initfs/bin/nvme";

/// The controller's ids: those that QEMU gives it when it is asked for Intel's.
pub(crate) const IDS: &str = "8086:5845";

/// What is written and read back.
const RANGE: [&str; 6] = ["--length", "8M", "--pattern", "5", "--queues", "2"];

/// How long a driver writes before it is killed.
const WRITING: Duration = Duration::from_millis(700);

fn command(task: &str, device: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(NVME);
    command.args([task, "--device", device]).args(arguments).stdin(Stdio::inherit());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(task: &str, device: &str, arguments: &[&str], part: &str) -> Seen {
    expect(&mut command(task, device, arguments), 0, part)
}

/// The other controllers.
pub(crate) fn find(connection: &Connection) -> Seen {
    drivers::find(connection, IDS)
}

/// Both ways, and what is read is what was written.
pub(crate) fn copies(device: &str) -> Seen {
    let arguments = [&RANGE[..], &["--interrupts", "--depth", "1"]].concat();
    let written = run("write", device, &arguments, " bytes written")?;
    let read = run("read", device, &arguments, " bytes read")?;
    let rates = run("bench", device, &["--rounds", "5", "--interrupts"], "bench: 4 KiB")?;
    for line in rates.split(['\n', '\r']).filter(|line| line.contains(": ")) {
        println!("@@log {line}");
    }
    let asleep = |output: &str| output.contains(" interrupts") && !output.contains(" 0 interrupts");
    // An emulator that has a transfer done before the driver looks leaves it nothing to wait for.
    if !asleep(&written) && !asleep(&read) {
        return Err(format!("never woken: {written}; {read}"));
    }
    let idle = "server: 4 KiB random reads: 0 calls, 0 changes";
    let detail = format!("{written}; {read}, compared; {idle}");
    if rates.contains(idle) { Ok(detail) } else { Err(format!("{detail}; but {rates}")) }
}

/// A wrong pointer.
pub(crate) fn rogue(device: &str) -> Seen {
    let output = run("rogue", device, &["--iova", "0xbad0000"], "nvme: fault ")?;
    let whole = output.contains("nvme: reset") && output.contains(" bytes read");
    if whole { Ok(output) } else { Err(output) }
}

/// A death in the middle of writes; then another driver.
pub(crate) fn killed(connection: &Connection, device: &str) -> Seen {
    let mut writer = command("write", device, &["--length", "8M", "--loop"]);
    // What it says is not read: it is killed before that fills a pipe.
    let mut child = writer.spawn().map_err(|error| format!("{NVME}: {error}"))?;
    std::thread::sleep(WRITING);
    let attached = reach(connection, device)?;
    child.kill().map_err(|error| format!("kill: {error}"))?;
    child.wait().map_err(|error| format!("wait: {error}"))?;
    let cut = reach(connection, device)?;
    if !attached.contains("session maps") || !cut.contains("reaches: nothing") {
        return Err(format!("{attached:?} became {cut:?}"));
    }
    run("write", device, &RANGE, " bytes written")?;
    let read = run("read", device, &RANGE, " bytes read")?;
    Ok(format!("{attached:?} became {cut:?}; the next: {read}, compared"))
}
