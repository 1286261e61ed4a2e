//! `xtask shell`: a prompt in the demo's guest, or in one of Redox, with iommud running.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::{self, Scenario, TOUR};
use crate::options::{Iommu, Qemu, ShellOptions};
use crate::packages::download;
use crate::qemu::{KillOnDrop, Machine, show_logs};
use crate::workspace::{cache, quietly};
use crate::{build, demo, disks, documents, redox};

/// The package of the shell and its commands, one file that needs no others.
const BUSYBOX: &str = "busybox-static";

/// What the guest prints when it takes a line.
const PROMPT: &str = "iommud# ";

/// The shell asks the terminal, which is none here and does not answer.
const WHERE_IS_THE_CURSOR: &[u8] = b"\x1b[6n";

/// Lines of each log printed after a failure.
const LOG_TAIL: usize = 30;

/// How long the guest may take to its prompt, and for a line. A minute is usual for neither.
const PATIENCE: Duration = Duration::from_secs(180);

/// Boots the guest for the user, or types the tour itself. Returns whether all went as the tour says.
///
/// # Errors
/// The guest could not be built or started.
pub(crate) fn run(options: &ShellOptions) -> Result<bool> {
    if !options.tour {
        return talk(options).map(|()| true);
    }
    let (passed, failed) = tour_counted(options)?;
    println!("shell: {passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn talk(options: &ShellOptions) -> Result<()> {
    let (machine, emulator, directory) = machine(options)?;
    println!("booting; exit leaves the guest, and Ctrl-A X stops it");
    let mut child = KillOnDrop(machine.spawn(&emulator, Stdio::inherit(), Stdio::inherit())?);
    let status = child.0.wait()?;
    if !status.success() {
        show_logs(&directory, LOG_TAIL);
    }
    std::fs::remove_dir_all(directory)?;
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

/// Types the lines of the message of the day and compares what they print. Returns the numbers of passed and failed
/// ones, leaving the guest among them.
///
/// # Errors
/// The guest could not be built or started, or came to no prompt.
pub(crate) fn tour_counted(options: &ShellOptions) -> Result<(usize, usize)> {
    let (machine, emulator, directory) = machine(options)?;
    let mut child = KillOnDrop(machine.spawn(&emulator, Stdio::piped(), Stdio::piped())?);
    let mut terminal = Terminal {
        input: child.0.stdin.take().context("QEMU has no input")?,
        output: reader(child.0.stdout.take().context("QEMU has no output")?),
    };
    let greeting = terminal.until(PROMPT).context("the guest has no prompt")?;
    let (mut passed, mut failed) = (0, 0);
    let mut tell = |name: &str, fine: bool, text: &str| {
        if fine {
            passed += 1;
            println!("ok - {name}");
        } else {
            failed += 1;
            println!("FAILED - {name}: {text}");
        }
    };
    let told = TOUR.iter().all(|stop| greeting.contains(stop.command));
    tell("the message of the day has the tour", told, &greeting);
    let mut all = String::new();
    for stop in &TOUR {
        let expected = if options.iommu == Iommu::Amd { stop.amdvi } else { stop.vtd };
        let printed = terminal.ask(stop.command)?;
        tell(&format!("{} {}", stop.about, stop.command), printed.contains(expected), &printed);
        all.push_str(&printed);
        all.push('\n');
    }
    // On Redox addresses begin elsewhere.
    if options.redox.is_none() {
        let block = documents::block("drivers/README.md", "edud: done")?;
        tell("drivers/README.md shows what edud prints", documents::shows(&block, &all), &all);
    }
    terminal.input.write_all(b"exit\n")?;
    let ended = wait(&mut child)?;
    tell("exit leaves the guest", ended, "it still runs");
    std::fs::remove_dir_all(directory)?;
    Ok((passed, failed))
}

/// Whether the machine ends by itself, with success.
fn wait(child: &mut KillOnDrop) -> Result<bool> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.0.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}

/// The guest's terminal.
struct Terminal {
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
}

impl Terminal {
    /// Types a line; what is printed before the next prompt. The line itself, which the guest prints as it is typed, is
    /// left out.
    fn ask(&mut self, line: &str) -> Result<String> {
        self.input.write_all(format!("{line}\n").as_bytes())?;
        let printed = self.until(PROMPT).with_context(|| format!("{line}: no prompt"))?;
        Ok(printed.split_once('\n').map_or("", |(_, rest)| rest).to_owned())
    }

    /// What is printed up to and with `mark`.
    fn until(&mut self, mark: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        let mut text = Vec::new();
        loop {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => text.extend(bytes),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("nothing more came: {}", String::from_utf8_lossy(&text))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended: {}", String::from_utf8_lossy(&text))
                }
            }
            let shown = text.strip_suffix(WHERE_IS_THE_CURSOR).unwrap_or(&text);
            if shown.ends_with(mark.as_bytes()) {
                return Ok(String::from_utf8_lossy(&text).replace('\r', ""));
            }
        }
    }
}

/// Passes on what is printed, as it comes.
fn reader(mut output: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            let part = bytes.get(..count).unwrap_or_default().to_vec();
            if sender.send(part).is_err() {
                return;
            }
        }
    });
    receiver
}

fn machine(options: &ShellOptions) -> Result<(Machine, crate::emulator::Emulator, PathBuf)> {
    if options.redox.is_some() {
        return redox::shell(options);
    }
    let iommu = options.iommu;
    // The installed QEMU has no AMD-Vi unit that translates.
    let emulator = if iommu == Iommu::Amd { Qemu::Newer } else { Qemu::Installed }.get()?;
    let busybox = busybox()?;
    let programs = options.programs.iter().map(|package| build::guest_program(package));
    let programs = programs.collect::<Result<Vec<_>>>()?;
    let others: Vec<&Path> = programs.iter().chain([&busybox]).map(PathBuf::as_path).collect();
    let parts = demo::prepare(Scenario::Shell, None, false, &others)?;
    // Nobody knows how long the user stays.
    let mut machine = guest::machine(&parts, iommu, false, Duration::MAX);
    guest::start(&mut machine, Scenario::Shell, "", &emulator.number()?);
    disks::add(&mut machine, &parts)?;
    for device in &options.devices {
        machine.args(["-device", device]);
    }
    machine.talk();
    Ok((machine, emulator, parts.directory))
}

/// The shell and its commands. Downloads them on the first call.
fn busybox() -> Result<PathBuf> {
    let directory = cache("busybox")?;
    let program = directory.join("busybox");
    if !program.is_file() {
        let package = download(BUSYBOX, &directory)?;
        let unpacked = directory.join("unpacked");
        quietly(Command::new("dpkg-deb").arg("--extract").args([&package, &unpacked]))?;
        let places = ["bin/busybox", "usr/bin/busybox"].map(|path| unpacked.join(path));
        let found = places.iter().find(|path| path.is_file());
        let found = found.with_context(|| format!("{BUSYBOX} has no busybox"))?;
        // Renamed last, so that a program in place is complete.
        std::fs::rename(found, &program)?;
        std::fs::remove_dir_all(&unpacked)?;
        std::fs::remove_file(&package)?;
    }
    Ok(program)
}
