//! Drivers that iommu-run started: of another user, without a name.

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::process::{Command, Stdio};

use libredox::call;
use libredox::flag::{O_CLOEXEC, O_DIRECTORY, O_RDONLY};

use crate::Seen;
use crate::drivers::{ROGUE, expect};

const LAUNCHER: &str = "/scheme/initfs/bin/iommu-run";
const EDUD: &str = "/scheme/initfs/bin/edud";
const GUEST: &str = "/scheme/initfs/bin/redox-guest";
const NONE: [&str; 2] = ["--names", "none"];

/// The ways out of a launched driver that the system leaves open. What is open, and why, is in drivers/README.md.
const OPEN: [&str; 3] = ["vectors", "bars", "ports"];

/// The ways out that are tried.
const DOORS: usize = 12;

/// Does what pcid-spawner does: starts a command with the function's channel.
fn launched(device: &str, names: &[&str], command: &[&str], part: &str) -> Seen {
    let path = format!("/scheme/pci/{device}/channel");
    let channel = File::options().read(true).write(true).open(&path);
    let channel = channel.map_err(|error| format!("{path}: {error}"))?;
    let channel = usize::try_from(channel.into_raw_fd()).map_err(|error| error.to_string())?;
    let mut launcher = Command::new(LAUNCHER);
    launcher.args(["--user", "1001"]).args(names).arg("--").args(command);
    launcher.env("PCID_CLIENT_CHANNEL", channel.to_string());
    launcher.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The child gets the descriptor only without its close-on-exec flag.
    let kept = call::fcntl(channel, F_SETFD, 0).map_err(|error| error.to_string());
    let seen = kept.and_then(|_| expect(&mut launcher, 0, part));
    let _ = call::close(channel);
    seen
}

/// Command of `fcntl` that sets a descriptor's flags (relibc, `fcntl.h`).
const F_SETFD: usize = 2;

/// Checks that edud works with what it was handed alone, and which names a program has that is started with most.
pub(crate) fn works(device: &str) -> Seen {
    let copied = launched(device, &NONE, &[EDUD], "same data, no fault")?;
    let most = launched(device, &[], &[GUEST, "names"], "names: ")?;
    let some = launched(device, &["--names", "time,log"], &[GUEST, "names"], "names: ")?;
    let right = most.contains("memory: no, irq: no, time: yes, iommu: yes")
        && some.contains("memory: no, irq: no, time: yes, iommu: no");
    let detail = format!("{copied}; by default {most}; with two {some}");
    if right { Ok(detail) } else { Err(detail) }
}

/// Prints which names this process has.
pub(crate) fn names() -> Result<(), String> {
    let has = |name: &str| {
        let flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
        let opened = call::getns()
            .and_then(|names| call::openat(names, format!("/scheme/{name}"), flags, 0));
        let closed = opened.and_then(call::close);
        format!("{name}: {}", if closed.is_ok() { "yes" } else { "no" })
    };
    println!("names: {}", ["memory", "irq", "time", "iommu"].map(has).join(", "));
    Ok(())
}

/// Checks which ways out a hostile driver finds open.
pub(crate) fn doors(device: &str) -> Seen {
    let said = launched(device, &NONE, &[ROGUE, "--doors"], "door ")?;
    let lines: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("door ")).collect();
    for line in &lines {
        println!("@@log door {line}");
    }
    let names = |word: &str| -> Vec<&str> {
        lines.iter().filter_map(|line| Some(line.split_once(word)?.0)).collect()
    };
    let (held, open) = (names(": held: "), names(": open: "));
    let detail = format!("held: {}; open: {}", held.join(", "), open.join(", "));
    if open == OPEN && held.len() + open.len() == DOORS {
        Ok(detail)
    } else {
        Err(format!("{detail}; {said}"))
    }
}
