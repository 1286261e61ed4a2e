//! Runs QEMU, with a deadline.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::emulator::Emulator;

const CONSOLE: &str = "console.log";
const COMPLAINTS: &str = "qemu.log";

/// A machine to be started.
pub(crate) struct Machine {
    /// Arguments of QEMU.
    arguments: Vec<OsString>,
    /// Directory of the files `console.log` (the first serial port) and `qemu.log` (QEMU's own output).
    directory: PathBuf,
    /// Time limit for its run.
    pub(crate) deadline: Duration,
}

/// The end of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// QEMU ended by itself.
    Exit(ExitStatus),
    /// It was stopped at its deadline.
    Deadline,
}

impl Machine {
    /// Creates a q35 machine with one software-emulated processor and no default devices. The first serial port goes
    /// to a file in `directory`. [`Machine::run`] delivers the lines of the second one.
    pub(crate) fn new(memory: &str, directory: &Path, deadline: Duration) -> Self {
        let mut machine = Self { arguments: Vec::new(), directory: directory.into(), deadline };
        machine.args(["-machine", "q35", "-accel", "tcg", "-smp", "1", "-m", memory]);
        machine.args(["-nodefaults", "-display", "none", "-vga", "none", "-no-reboot"]);
        let mut file = OsString::from("file:");
        file.push(directory.join(CONSOLE));
        machine.arguments.extend(["-serial".into(), file]);
        machine.args(["-serial", "stdio"]);
        machine
    }

    /// Delivers the lines of the first serial port instead of the second.
    pub(crate) fn swap_serial(&mut self) {
        let serial: Vec<usize> = self
            .arguments
            .iter()
            .enumerate()
            .filter(|(_, argument)| *argument == "-serial")
            .map(|(index, _)| index + 1)
            .collect();
        if let [first, second] = *serial {
            self.arguments.swap(first, second);
        }
    }

    /// Gives the first serial port, and QEMU's monitor behind Ctrl-A C, to whoever runs this. The second one's lines go
    /// to the console's file.
    pub(crate) fn talk(&mut self) {
        self.swap_serial();
        self.share_monitor();
    }

    /// Gives QEMU's monitor, behind Ctrl-A C, to whoever has the serial port.
    pub(crate) fn share_monitor(&mut self) {
        for argument in &mut self.arguments {
            if *argument == "stdio" {
                *argument = "mon:stdio".into();
            }
        }
    }

    /// Starts the machine, whose first serial port has the given ends.
    pub(crate) fn spawn(&self, emulator: &Emulator, input: Stdio, output: Stdio) -> Result<Child> {
        let complaints = File::create(self.directory.join(COMPLAINTS))?;
        let mut command = emulator.command();
        command.args(&self.arguments).stdin(input).stdout(output).stderr(complaints);
        command.spawn().context("starting QEMU")
    }

    /// Adds arguments.
    pub(crate) fn args<T: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = T>) {
        self.arguments.extend(arguments.into_iter().map(Into::into));
    }

    /// Runs the machine to its end. Passes each line of its second serial port to `sink`.
    pub(crate) fn run(&self, emulator: &Emulator, mut sink: impl FnMut(&str)) -> Result<End> {
        let end = self.run_until(emulator, |line| {
            sink(line);
            false
        })?;
        Ok(end.unwrap_or(End::Deadline))
    }

    /// Runs like [`Machine::run`], but ends the machine when `sink` returns true; `None` then.
    pub(crate) fn run_until(
        &self,
        emulator: &Emulator,
        mut sink: impl FnMut(&str) -> bool,
    ) -> Result<Option<End>> {
        self.run_watched(emulator, |_, line| sink(line))
    }

    /// Runs like [`Machine::run_until`]. `sink` also gets QEMU's process id.
    pub(crate) fn run_watched(
        &self,
        emulator: &Emulator,
        mut sink: impl FnMut(u32, &str) -> bool,
    ) -> Result<Option<End>> {
        let mut child = self.spawn(emulator, Stdio::null(), Stdio::piped())?;
        let lines = reader(&mut child)?;
        let id = child.id();
        let mut child = KillOnDrop(child);
        let end = Instant::now() + self.deadline;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if sink(id, line.trim_end()) => return Ok(None),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Some(End::Exit(child.0.wait()?))),
                Err(RecvTimeoutError::Timeout) => return Ok(Some(End::Deadline)),
            }
        }
    }
}

/// Prints the last `lines` lines of the console, and of QEMU's own output.
pub(crate) fn show_logs(directory: &Path, lines: usize) {
    for (name, label) in [(CONSOLE, "console"), (COMPLAINTS, "qemu")] {
        let text = std::fs::read(directory.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<_> = text.lines().map(str::trim_end).collect();
        for line in all.iter().skip(all.len().saturating_sub(lines)) {
            println!("  {label} | {line}");
        }
    }
}

fn reader(child: &mut Child) -> Result<Receiver<String>> {
    let output = child.stdout.take().context("QEMU has no output")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            if sender.send(String::from_utf8_lossy(&bytes).into_owned()).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    Ok(receiver)
}

/// A machine that ends with its owner.
pub(crate) struct KillOnDrop(pub(crate) Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only for a child that has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
