//! Checks the server and runs drivers, from outside, with the means of any program of the guest.
//!
//! A line of the report is `@@ok N | detail` or `@@fail N | detail` (see xtask/src/report.rs).

#![cfg_attr(not(target_os = "redox"), expect(dead_code, reason = "runs on Redox"))]

#[cfg(target_os = "redox")]
mod brought;
mod disk;
mod drivers;
#[cfg(target_os = "redox")]
mod fake;
#[cfg(target_os = "redox")]
mod inherited;
#[cfg(target_os = "redox")]
mod keeper;
#[cfg(target_os = "redox")]
mod launched;
mod line;
#[cfg(target_os = "redox")]
mod mapped;
#[cfg(target_os = "redox")]
mod names;
mod nvme;
mod pattern;
#[cfg(target_os = "redox")]
mod prompt;
#[cfg(target_os = "redox")]
mod restart;
mod root;
#[cfg(target_os = "redox")]
mod vectors;

#[path = "../../linux/src/greeting.rs"]
mod greeting;
#[path = "../../linux/src/tour.rs"]
mod tour;

use std::fs;

use iommu_client::Connection;

type Seen = Result<String, String>;

#[cfg(not(target_os = "redox"))]
fn main() {
    println!("redox-guest: runs on Redox");
}

#[cfg(target_os = "redox")]
fn main() {
    let ended = match std::env::args().nth(1).as_deref() {
        Some("early") => early(),
        Some("root") => root::make(),
        Some("load") => disk::load(),
        Some("late") => late(),
        Some("shell") => shell(),
        Some("stranger") => drivers::open(&std::env::args().nth(2).unwrap_or_default()),
        Some("inherited") => inherited::child(),
        Some("names") => launched::names(),
        Some("bring") => brought::child(&std::env::args().nth(2).unwrap_or_default()),
        Some("copied") => restart::copied(),
        Some("reader") => restart::read_on(),
        Some("idle") => restart::idle(),
        Some("mapped") => mapped::client(&std::env::args().nth(2).unwrap_or_default()),
        Some("keeper") => keeper::run(&std::env::args().nth(2).unwrap_or_default()),
        Some("keep") => fake::keep(&std::env::args().nth(2).unwrap_or_default()),
        Some("mark") => {
            mark(&std::env::args().nth(2).unwrap_or_default());
            Ok(())
        }
        other => Err(format!("not a task: {other:?}")),
    };
    if let Err(error) = ended {
        println!("@@log gave up: {error}");
        std::process::exit(1);
    }
}

/// Prints a point of the boot and its time by the guest's own clock, which starts with the kernel.
#[cfg(target_os = "redox")]
fn mark(point: &str) {
    let now = libredox::call::clock_gettime(libredox::flag::CLOCK_MONOTONIC);
    if let Ok(now) = now {
        let now = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        println!("@@clock {point} {now} ns");
    }
    if point == "end" {
        println!("@@end");
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

fn connect() -> Result<(Connection, String), String> {
    let connection = Connection::system().map_err(|error| format!("connect: {error}"))?;
    let status = connection.text("status").map_err(|error| format!("status: {error}"))?;
    for line in status.lines() {
        println!("@@log status: {line}");
    }
    Ok((connection, status))
}

/// Runs the checks after the drivers have started.
#[cfg(target_os = "redox")]
fn early() -> Result<(), String> {
    let (connection, status) = connect()?;
    let confined = status.contains("confinement: on");
    let mut report = Report { next: 1 };
    report.check(unit(&status, confined));
    report.check(legacy(&connection, "1b36:0010", confined, disk::check));
    report.check(legacy(&connection, "8086:100e", confined, network));
    let device = drivers::edu(&connection)?;
    if confined {
        report.check(drivers::works(&device, ", confined"));
        report.check(drivers::rogue(&device));
    } else if status.contains("failed(") {
        report.check(drivers::unit_failed(&connection, &device));
    } else {
        report.check(drivers::works(&device, "NOT CONFINED"));
    }
    report.check(listing(&connection, &status));
    if confined {
        report.check(drivers::killed(&connection, &device));
    }
    report.check(drivers::stranger(&device));
    if confined {
        report.check(inherited::check(&connection, &device));
        report.check(Ok("the log says so".into()));
        let controller = nvme::find(&connection)?;
        report.check(Ok(format!("{controller}, as the log says")));
        report.check(nvme::copies(&controller));
        report.check(nvme::rogue(&controller));
        report.check(nvme::killed(&connection, &controller));
        report.check(drivers::interrupts(&connection));
        report.check(brought::check(&connection, &device));
        report.check(launched::works(&device));
        report.check(launched::doors(&device));
        report.check(restart::check(&device));
        report.check(keeper::check());
        report.check(mapped::check());
        // Comes last, because the kernel does not free vectors.
        report.check(vectors::check(&device, &controller));
    }
    println!("@@end");
    Ok(())
}

/// Lets the user type, instead of the checks.
#[cfg(target_os = "redox")]
fn shell() -> Result<(), String> {
    let connection = Connection::system().map_err(|error| format!("connect: {error}"))?;
    let status = connection.text("status").map_err(|error| format!("status: {error}"))?;
    prompt::run(&connection, &status)
}

/// Runs the last unit of the second stage.
fn late() -> Result<(), String> {
    let (connection, status) = connect()?;
    let mut report = Report { next: 1 };
    report.check(disk::judge());
    let compat = || Ok("under compat".into());
    report.check(unit(&status, true).and_then(|line| {
        legacy(&connection, "1b36:0010", true, compat).map(|disk| format!("{line}; disk: {disk}"))
    }));
    let device = drivers::edu(&connection)?;
    report.check(drivers::works(&device, ", confined"));
    report.check(drivers::rogue(&device));
    println!("@@end");
    Ok(())
}

/// Returns the status line of the unit, if it has the expected state.
fn unit(status: &str, confined: bool) -> Seen {
    let words: &[&str] = if confined { &["enabled"] } else { &["failed(", "table: absent"] };
    let line = status.lines().find(|line| words.iter().any(|word| line.contains(word)));
    match line {
        Some(line) if status.contains("confinement: on") == confined => Ok(line.to_owned()),
        _ => Err(status.to_owned()),
    }
}

/// Checks that a driver without iommud does its work, with its device under policy.
fn legacy(connection: &Connection, id: &str, confined: bool, work: fn() -> Seen) -> Seen {
    let device = drivers::find(connection, id)?;
    let detail = work()?;
    let text = drivers::text(connection, &device)?;
    let compat = text.contains("policy: compat") && text.contains("reaches: what policy maps");
    let detail = format!("{device}: {detail}");
    if compat || !confined { Ok(detail) } else { Err(format!("{detail}; but {text}")) }
}

/// Checks that the network card has a scheme and returns its address.
fn network() -> Seen {
    let path = format!("/scheme/{}/mac", disk::scheme("network.", "")?);
    let mac = fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
    let known = mac.starts_with(&[0x52, 0x54, 0x00]);
    let detail = format!("{path} is {mac:02x?}");
    if known { Ok(detail) } else { Err(detail) }
}

fn listing(connection: &Connection, status: &str) -> Seen {
    let names = connection.names("devices").map_err(|error| format!("devices: {error}"))?;
    let directory = |path: &str| -> Result<Vec<String>, String> {
        let entries = fs::read_dir(path).map_err(|error| format!("{path}: {error}"))?;
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        Ok(entries.filter_map(Result::ok).map(name).collect())
    };
    let (root, listed) = (directory("/scheme/iommu")?, directory("/scheme/iommu/devices")?);
    let read =
        fs::read_to_string("/scheme/iommu/status").map_err(|error| format!("cat: {error}"))?;
    let detail = format!("{read}/: {}; devices/: {}", root.join(" "), listed.join(" "));
    let all = ["status", "units", "groups", "devices", "domains", "faults", "metrics", "activity"];
    let right = all.iter().all(|name| root.iter().any(|found| found == name));
    let same =
        listed == names && !names.is_empty() && read.lines().count() == status.lines().count();
    if right && same { Ok(detail) } else { Err(format!("{detail}; by the client: {names:?}")) }
}
