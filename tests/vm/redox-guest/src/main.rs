//! Looks at the server and drives drivers, from outside, as any program of the guest could.
//!
//! A line of the report is `@@ok N | detail` or `@@fail N | detail` (see xtask/src/report.rs).

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use iommu_client::Connection;

/// The driver.
const EDUD: &str = "/scheme/initfs/bin/edud";

/// First bytes of the disk, as xtask writes it.
const DISK_PATTERN: &[u8] = b"iommud test disk";

/// How long a driver may take.
const PATIENCE: Duration = Duration::from_secs(20);

type Seen = Result<String, String>;

fn main() {
    let mut report = Report { next: 1 };
    match run(&mut report) {
        Ok(()) => println!("@@end"),
        Err(error) => println!("@@log gave up: {error}"),
    }
}

struct Report {
    next: usize,
}

impl Report {
    fn check(&mut self, seen: Seen) {
        let (word, detail) = match &seen {
            Ok(detail) => ("ok", detail),
            Err(detail) => ("fail", detail),
        };
        println!("@@{word} {} | {}", self.next, detail.replace(['\n', '\r'], "; "));
        self.next += 1;
    }
}

fn run(report: &mut Report) -> Result<(), String> {
    let connection = Connection::system().map_err(|error| error.to_string())?;
    let status = connection.text("status").map_err(|error| error.to_string())?;
    for line in status.lines() {
        println!("@@log status: {line}");
    }
    let confined = status.contains("confinement: on");
    report.check(unit(&status, confined));
    report.check(disk());
    let device = edu(&connection)?;
    report.check(edud(&device, &[]).and_then(|output| expect(&output, 0)));
    if confined {
        report.check(rogue(&device));
    }
    report.check(listing(&connection, &status));
    if confined {
        report.check(killed(&device));
    }
    report.check(stranger(&device));
    Ok(())
}

fn unit(status: &str, confined: bool) -> Seen {
    let line = status.lines().find(|line| line.contains("enabled") || line.contains("absent"));
    let line = line.unwrap_or("no such line").to_owned();
    if confined || status.contains("absent") { Ok(line) } else { Err(line) }
}

/// The first sector of the NVMe disk, through the disk driver's scheme.
fn disk() -> Seen {
    let started = Instant::now();
    loop {
        let names = fs::read_dir("/scheme").map_err(|error| error.to_string())?;
        for name in names.filter_map(Result::ok).map(|entry| entry.file_name()) {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("disk.") && name.contains("nvme") {
                return read_disk(&name);
            }
        }
        if started.elapsed() > PATIENCE {
            return Err("no NVMe disk appeared".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn read_disk(name: &str) -> Seen {
    let path = format!("/scheme/{name}/1");
    let mut sector = [0; 512];
    File::open(&path)
        .and_then(|mut disk| disk.read_exact(&mut sector))
        .map_err(|error| format!("{path}: {error}"))?;
    if sector.starts_with(DISK_PATTERN) {
        Ok(format!("{path} begins with the pattern"))
    } else {
        Err(format!("{path} begins with {:?}", sector.get(..16)))
    }
}

/// The name of the edu device: the only one of class 00ff in the machine.
fn edu(connection: &Connection) -> Result<String, String> {
    let names = connection.names("devices").map_err(|error| error.to_string())?;
    for name in &names {
        let text =
            connection.text(&format!("devices/{name}")).map_err(|error| error.to_string())?;
        if text.contains("1234:11e8") {
            return Ok(name.clone());
        }
    }
    Err(format!("no edu device among {names:?}"))
}

fn command(device: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(EDUD);
    command.arg("--device").arg(device).args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn edud(device: &str, arguments: &[&str]) -> Result<Output, String> {
    command(device, arguments).output().map_err(|error| error.to_string())
}

fn words(output: &Output) -> String {
    let mut text = String::new();
    for part in [&output.stdout, &output.stderr] {
        let _ = write!(text, "{} ", String::from_utf8_lossy(part).trim());
    }
    text.trim().to_owned()
}

fn expect(output: &Output, code: i32) -> Seen {
    let text = format!("{}: {}", output.status, words(output));
    if output.status.code() == Some(code) { Ok(text) } else { Err(text) }
}

fn rogue(device: &str) -> Seen {
    // Low memory: never granted to anybody.
    let output = edud(device, &["--iova", "0x1000"])?;
    expect(&output, 0)
}

fn listing(connection: &Connection, status: &str) -> Seen {
    let names = connection.names("devices").map_err(|error| error.to_string())?;
    let root: Vec<_> = fs::read_dir("/scheme/iommu")
        .map_err(|error| error.to_string())?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let read = fs::read_to_string("/scheme/iommu/status").map_err(|error| error.to_string())?;
    if read.is_empty() || status.is_empty() || names.is_empty() {
        return Err(format!("{} bytes of status, {} devices", read.len(), names.len()));
    }
    Ok(format!("{} bytes of status; {}; devices {}", read.len(), root.join(" "), names.join(" ")))
}

fn killed(device: &str) -> Seen {
    let mut child = command(device, &["--loop"]).spawn().map_err(|error| error.to_string())?;
    std::thread::sleep(Duration::from_millis(700));
    child.kill().map_err(|error| error.to_string())?;
    let status = child.wait().map_err(|error| error.to_string())?;
    let again = edud(device, &[])?;
    expect(&again, 0).map(|text| format!("killed with {:?}; then {text}", status.signal()))
}

fn stranger(device: &str) -> Seen {
    let output =
        command(device, &[]).uid(1000).gid(1000).output().map_err(|error| error.to_string())?;
    expect(&output, 3).or_else(|text| {
        // Without leave to see the scheme at all the driver could not even ask.
        if output.status.code() == Some(1) { Ok(text) } else { Err(text) }
    })
}
