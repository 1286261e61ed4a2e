//! The example driver, run in several ways.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use iommu_client::{BufferOptions, Connection, Device};

use crate::Seen;

const EDUD: &str = "/scheme/initfs/bin/edud";
pub(crate) const ROGUE: &str = "/scheme/initfs/bin/rogue";

/// Exit code of a driver that iommud refused.
const REFUSED: i32 = 3;

/// Returns the name of the edu device.
pub(crate) fn edu(connection: &Connection) -> Result<String, String> {
    find(connection, "1234:11e8")
}

/// Returns the name of the only device with this vendor and device id.
pub(crate) fn find(connection: &Connection, id: &str) -> Result<String, String> {
    let names = connection.names("devices").map_err(|error| format!("devices: {error}"))?;
    for name in &names {
        if text(connection, name)?.contains(id) {
            return Ok(name.clone());
        }
    }
    Err(format!("no {id} among {names:?}"))
}

/// Returns the server's text about a device.
pub(crate) fn text(connection: &Connection, device: &str) -> Result<String, String> {
    connection.text(&format!("devices/{device}")).map_err(|error| format!("{device}: {error}"))
}

fn command(program: &str, device: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Inherits standard input, because the default, /dev/null, is in a root file system.
    command.arg("--device").arg(device).args(arguments).stdin(Stdio::inherit());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn words(output: &Output) -> String {
    let mut text = String::new();
    for part in [&output.stdout, &output.stderr] {
        let _ = write!(text, "{} ", String::from_utf8_lossy(part).trim());
    }
    text.trim().to_owned()
}

pub(crate) fn expect(command: &mut Command, code: i32, part: &str) -> Seen {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = format!("{}: {}", output.status, words(&output));
    if output.status.code() == Some(code) && text.contains(part) { Ok(text) } else { Err(text) }
}

/// Returns a program's output, however it ends.
pub(crate) fn expect_any(command: &mut Command) -> Seen {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    Ok(words(&output))
}

/// Checks a copy both ways.
pub(crate) fn works(device: &str, how: &str) -> Seen {
    expect(&mut command(EDUD, device, &[]), 0, how)
}

/// Checks that a driver is refused a device whose unit has failed for good.
pub(crate) fn unit_failed(connection: &Connection, device: &str) -> Seen {
    let refused =
        expect(&mut command(EDUD, device, &[]), REFUSED, "unit of this device has failed")?;
    waits(connection, device).map(|waited| format!("{refused}; {waited}"))
}

/// How long a claim may wait.
const PATIENCE: Duration = Duration::from_secs(20);

/// A claim does not wait for a unit that cannot come up: its table has no end.
fn waits(connection: &Connection, device: &str) -> Seen {
    let started = Instant::now();
    let claim = Device::open_within(connection, device, PATIENCE);
    let (error, waited) = (claim.err().map(|error| error.to_string()), started.elapsed());
    let detail = format!("a claim that may wait: {error:?} after {waited:?}");
    let right = error.is_some_and(|error| error.contains("has failed")) && waited < PATIENCE / 2;
    if right { Ok(detail) } else { Err(detail) }
}

/// Checks a write to an address that was never granted: the server assigns addresses from the edges of free ranges.
pub(crate) fn rogue(device: &str) -> Seen {
    expect(&mut command(ROGUE, device, &["--iova", "0xbad0000"]), 0, "fault")
}

/// Checks that the unit's text and the count of interrupts agree.
pub(crate) fn interrupts(connection: &Connection) -> Seen {
    let text = |path: &str| connection.text(path).map_err(|error| format!("{path}: {error}"));
    let (unit, metrics) = (text("units/0")?, text("metrics")?);
    let number = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    let interrupts = number("fault_interrupts ").unwrap_or(0);
    let faults = number("faults ").unwrap_or(0);
    let detail = format!("{faults} faults, {interrupts} interrupts");
    let told = |how: &str| unit.lines().any(|line| line == how);
    let right = if unit.contains("kind: vt-d") {
        told("faults: by interrupt") && interrupts > 0
    } else {
        told("faults: asked for") && interrupts == 0
    };
    if right && faults > 0 { Ok(detail) } else { Err(format!("{detail}; {unit}")) }
}

/// Time after a driver's end by which its device's accesses have ended: a DMA of edu takes 100 ms.
const QUIET: Duration = Duration::from_millis(500);

/// Attempts at killing a driver while its device is in the middle of a DMA.
const ATTEMPTS: usize = 5;

/// Kills a driver while its device writes repeatedly, then runs another driver.
pub(crate) fn killed(connection: &Connection, device: &str) -> Seen {
    let mut blocked = None;
    let mut detail = String::new();
    for _ in 0..ATTEMPTS {
        (detail, blocked) = kill(connection, device)?;
        if blocked.is_some() {
            break;
        }
    }
    // QEMU's AMD-Vi unit records no address. So a new fault may look the same as an earlier one.
    let amd = connection.text("status").is_ok_and(|status| status.contains("amd-vi"));
    match blocked {
        Some(fault) => detail = format!("{detail}; blocked: {fault}"),
        None if amd => {
            println!("@@unchecked the fault of a killed driver's device, with amd-iommu");
        }
        None => return Err(format!("{detail}; nothing was blocked in {ATTEMPTS} attempts")),
    }
    works(device, ", confined").map(|text| format!("{detail}; the next: {text}"))
}

/// Makes one attempt. Returns a description, and the fault of a DMA after the driver's end, if there was one.
fn kill(connection: &Connection, device: &str) -> Result<(String, Option<String>), String> {
    let mut child =
        command(ROGUE, device, &["--hold"]).spawn().map_err(|error| format!("{ROGUE}: {error}"))?;
    let output = child.stdout.take().ok_or("a driver without output")?;
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    let known = faults(connection)?.len();
    if !lines.any(|line| line.contains("holding")) {
        return Err("the driver did not get as far as holding".into());
    }
    let attached = reach(connection, device)?;
    std::thread::sleep(QUIET);
    child.kill().map_err(|error| format!("kill: {error}"))?;
    let status = child.wait().map_err(|error| format!("wait: {error}"))?;
    let cut = reach(connection, device)?;
    let canary = canary(connection)?;
    let detail = format!("signal {:?}; {attached:?} became {cut:?}; {canary}", status.signal());
    if !attached.contains("session maps") || !cut.contains("reaches: nothing") {
        return Err(detail);
    }
    // The target address is not always recorded.
    let blocked = faults(connection)?.into_iter().skip(known).find(|line| line.contains(device));
    Ok((detail, blocked))
}

fn faults(connection: &Connection) -> Result<Vec<String>, String> {
    let text = connection.text("faults").map_err(|error| format!("faults: {error}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Allocates a dead driver's memory in a session on another device. It must hold none of the driver's data, and must
/// not change.
fn canary(connection: &Connection) -> Seen {
    let bridge = Device::open(connection, "0000--00--00.0");
    let bridge = bridge.map_err(|error| format!("claiming the host bridge: {error}"))?;
    let buffer = bridge.allocate(4096, BufferOptions::default());
    let buffer = buffer.map_err(|error| format!("memory for the host bridge: {error}"))?;
    let started = Instant::now();
    let mut found = [0; 4096];
    while started.elapsed() < QUIET {
        buffer.read(0, &mut found).map_err(|error| format!("canary: {error}"))?;
        if let Some(at) = found.iter().position(|byte| *byte != 0) {
            return Err(format!("byte {at} of memory that the old driver left is not zero"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok("the memory it left, with its next owner, stays zero".into())
}

pub(crate) fn reach(connection: &Connection, device: &str) -> Seen {
    let text = text(connection, device)?;
    Ok(text.lines().find(|line| line.starts_with("reaches")).unwrap_or("?").to_owned())
}

/// Runs a driver as another user, and a program of that user that only opens a device.
pub(crate) fn stranger(device: &str) -> Seen {
    let mut driver = command(EDUD, device, &[]);
    let refused = expect(driver.uid(1000).gid(1000), REFUSED, "refused")?;
    let mut opener = Command::new("/scheme/initfs/bin/redox-guest");
    opener.args(["stranger", device]).stdin(Stdio::inherit()).uid(1000).gid(1000);
    expect(&mut opener, 0, "refused").map(|opened| format!("{refused}; {opened}"))
}

/// Runs that program: it opens a device directly, as any program could.
pub(crate) fn open(device: &str) -> Result<(), String> {
    let path = format!("/scheme/iommu/devices/{device}");
    match File::options().read(true).write(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            println!("refused: {path}: {error}");
            Ok(())
        }
        other => Err(format!("{path}: {other:?}")),
    }
}
