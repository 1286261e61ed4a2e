//! The example driver, run in several ways.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use iommu_client::Connection;

use crate::Seen;

const EDUD: &str = "/scheme/initfs/bin/edud";

/// Exit code of a driver that iommud refused.
const REFUSED: i32 = 3;

/// The name of the edu device.
pub(crate) fn edu(connection: &Connection) -> Result<String, String> {
    find(connection, "1234:11e8")
}

/// The name of the only device with this vendor and device id.
pub(crate) fn find(connection: &Connection, id: &str) -> Result<String, String> {
    let names = connection.names("devices").map_err(|error| format!("devices: {error}"))?;
    for name in &names {
        if text(connection, name)?.contains(id) {
            return Ok(name.clone());
        }
    }
    Err(format!("no {id} among {names:?}"))
}

/// What the server says of a device.
pub(crate) fn text(connection: &Connection, device: &str) -> Result<String, String> {
    connection.text(&format!("devices/{device}")).map_err(|error| format!("{device}: {error}"))
}

fn command(device: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(EDUD);
    // The default, /dev/null, is in a root file system.
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

fn expect(command: &mut Command, code: i32, part: &str) -> Seen {
    let output = command.output().map_err(|error| format!("{EDUD}: {error}"))?;
    let text = format!("{}: {}", output.status, words(&output));
    if output.status.code() == Some(code) && text.contains(part) { Ok(text) } else { Err(text) }
}

/// A copy both ways.
pub(crate) fn works(device: &str, how: &str) -> Seen {
    expect(&mut command(device, &[]), 0, how)
}

/// A write to low memory, which is never granted to anybody.
pub(crate) fn rogue(device: &str) -> Seen {
    expect(&mut command(device, &["--iova", "0x1000"]), 0, "fault")
}

/// What the device did after its driver's end has come to nothing by then: a DMA of edu takes 100 ms.
const QUIET: Duration = Duration::from_millis(500);

/// A driver killed while its device writes again and again; then another one.
pub(crate) fn killed(connection: &Connection, device: &str) -> Seen {
    let mut child =
        command(device, &["--hold"]).spawn().map_err(|error| format!("{EDUD}: {error}"))?;
    let output = child.stdout.take().ok_or("a driver without output")?;
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    let buffer = lines.find_map(|line| line.split("at iova ").nth(1).map(str::to_owned));
    let buffer = buffer.ok_or("the driver did not say where its buffer is")?;
    if !lines.any(|line| line.contains("holding")) {
        return Err("the driver did not get as far as holding".into());
    }
    let attached = reach(connection, device)?;
    std::thread::sleep(QUIET);
    child.kill().map_err(|error| format!("kill: {error}"))?;
    let status = child.wait().map_err(|error| format!("wait: {error}"))?;
    let cut = reach(connection, device)?;
    std::thread::sleep(QUIET);
    let faults = connection.text("faults").map_err(|error| format!("faults: {error}"))?;
    let blocked = faults.lines().find(|line| line.contains(device) && line.contains(&buffer));
    let detail = format!(
        "signal {:?}; {attached:?} became {cut:?}; blocked: {}",
        status.signal(),
        blocked.unwrap_or("nothing")
    );
    let right = attached.contains("session maps") && cut.contains("reaches: nothing");
    if !right || blocked.is_none() {
        return Err(detail);
    }
    works(device, ", confined").map(|text| format!("{detail}; the next: {text}"))
}

fn reach(connection: &Connection, device: &str) -> Seen {
    let text = text(connection, device)?;
    Ok(text.lines().find(|line| line.starts_with("reaches")).unwrap_or("?").to_owned())
}

/// A driver of another user, and a program of that user that only opens.
pub(crate) fn stranger(device: &str) -> Seen {
    let mut driver = command(device, &[]);
    let refused = expect(driver.uid(1000).gid(1000), REFUSED, "refused")?;
    let mut opener = Command::new("/scheme/initfs/bin/redox-guest");
    opener.args(["stranger", device]).stdin(Stdio::inherit()).uid(1000).gid(1000);
    expect(&mut opener, 0, "refused").map(|opened| format!("{refused}; {opened}"))
}

/// That program: opens as little as a driver could.
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
