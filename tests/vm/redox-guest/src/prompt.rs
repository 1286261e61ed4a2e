//! A prompt on the serial port. A line starts programs of the initial file system, which has no shell.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use iommu_client::Connection;

use crate::greeting;
use crate::line::{Next, steps};

const PROGRAMS: &str = "/scheme/initfs/bin";
const PROMPT: &str = "iommud# ";

/// Keys.
const INTERRUPT: u8 = 3;
const END: u8 = 4;
const BACKSPACE: [u8; 2] = [8, 127];

/// How often a running program and the keys are looked at.
const PERIOD: Duration = Duration::from_millis(20);

struct Prompt {
    terminal: File,
    keys: Receiver<u8>,
    /// The last program that was started without waiting for its end.
    background: Option<Child>,
}

/// Serves the user, then stops the machine.
pub(crate) fn run(connection: &Connection, status: &str) -> Result<(), String> {
    let open = || File::options().read(true).write(true).open("/scheme/debug");
    let terminal = open().map_err(|error| format!("terminal: {error}"))?;
    let keys = keys(open().map_err(|error| format!("terminal: {error}"))?);
    let mut prompt = Prompt { terminal, keys, background: None };
    prompt.print(&greeting(connection, status));
    loop {
        prompt.print(PROMPT);
        match prompt.line() {
            Some(line) if line.trim() != "exit" => prompt.carry_out(&line),
            _ => break,
        }
    }
    fs::write("/scheme/sys/kstop", "shutdown").map_err(|error| format!("shutdown: {error}"))
}

fn greeting(connection: &Connection, status: &str) -> String {
    let mut text = String::from("\nThis is Redox. iommud runs in this machine, policy compat. ");
    if status.contains("confinement: on") {
        let unit = connection.text("units/0").unwrap_or_default();
        text.push_str(&greeting::tour(unit.contains("kind: amd-vi")));
    } else {
        text.push_str("No unit confines its devices: try iommuctl check.\n");
    }
    text.push_str(
        "\nAn edu device and two NVMe controllers are there; 00:05.0 is nvme's. help names ",
    );
    text.push_str(
        "the programs.\n; && and & part them, Ctrl-C ends one. exit leaves, or Ctrl-A X.\n\n",
    );
    text
}

/// Passes on keys as they are pressed.
fn keys(mut terminal: File) -> Receiver<u8> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            let pressed = bytes.get(..count).unwrap_or_default();
            if pressed.iter().any(|key| sender.send(*key).is_err()) {
                return;
            }
        }
    });
    receiver
}

impl Prompt {
    fn print(&mut self, text: &str) {
        let _ = self.terminal.write_all(text.as_bytes());
    }

    /// The next line; `None` when the user leaves. Shows what is typed.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            match self.keys.recv().ok()? {
                b'\r' | b'\n' => {
                    self.print("\n");
                    return Some(line);
                }
                INTERRUPT => {
                    self.print("^C\n");
                    return Some(String::new());
                }
                END if line.is_empty() => return None,
                key if BACKSPACE.contains(&key) && line.pop().is_some() => {
                    self.print("\x08 \x08");
                }
                key @ b' '..=b'~' => {
                    line.push(char::from(key));
                    self.print(&char::from(key).to_string());
                }
                _ => {}
            }
        }
    }

    fn carry_out(&mut self, line: &str) {
        for step in steps(line) {
            let words: Vec<&str> = step.words.iter().map(String::as_str).collect();
            let good = match words[..] {
                ["help"] => self.help(),
                ["sleep", seconds] => sleep(seconds),
                ["kill", "-9", "$!"] => self.background.take().is_some_and(end),
                _ => self.start(&words, step.next == Next::AtOnce).unwrap_or_else(|error| {
                    self.print(&format!("{error}\n"));
                    false
                }),
            };
            if step.next == Next::IfGood && !good {
                return;
            }
        }
    }

    fn help(&mut self) -> bool {
        let entries = fs::read_dir(PROGRAMS).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        self.print(&format!("{}\nsleep SECONDS, kill -9 $!, exit\n", names.join(" ")));
        true
    }

    /// Starts a program. Returns whether it succeeded, or at once if it is to run in the background.
    fn start(&mut self, words: &[&str], background: bool) -> Result<bool, String> {
        let [name, arguments @ ..] = words else { return Ok(true) };
        let path = Path::new(PROGRAMS).join(name);
        let terminal = || self.terminal.try_clone().map(Stdio::from);
        let (output, errors) = (terminal(), terminal());
        let (Ok(output), Ok(errors)) = (output, errors) else { return Err("no terminal".into()) };
        let mut command = Command::new(&path);
        command.args(arguments).stdin(Stdio::inherit()).stdout(output).stderr(errors);
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        if background {
            self.background = Some(child);
            return Ok(true);
        }
        self.wait(child).map_err(|error| format!("{name}: {error}"))
    }

    /// Waits for a program, and ends it if the user says so.
    fn wait(&mut self, mut child: Child) -> std::io::Result<bool> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            if self.keys.recv_timeout(PERIOD) == Ok(INTERRUPT) {
                child.kill()?;
            }
        }
    }
}

fn sleep(seconds: &str) -> bool {
    let seconds = seconds.parse().map(|seconds: u8| Duration::from_secs(seconds.into()));
    seconds.map(std::thread::sleep).is_ok()
}

fn end(mut child: Child) -> bool {
    child.kill().is_ok() && child.wait().is_ok()
}
