//! Processes used by the story.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

/// Time limit for a process's answer to a line.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running process. It is killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a program. What it prints, errors too, goes to `output`, or else to the console.
    pub(crate) fn start(program: &str, arguments: &[&str], output: Option<File>) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        if let Some(file) = output {
            command.stdout(file.try_clone()?).stderr(file);
        }
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        Ok(Self { name: program.into(), child })
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) -> Result<()> {
        kill_process(self.pid()?, Signal::TERM).context("SIGTERM")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no pid")
    }

    /// Sends SIGKILL and reaps the process.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("SIGKILL")?;
        self.child.wait().context("waiting")?;
        Ok(())
    }

    /// Its exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("waiting")
    }

    /// Waits until the process ends.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let status = until(timeout, || self.ended())?;
        status.with_context(|| format!("{} still runs after {timeout:?}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end. Returns its exit code and its output.
pub(crate) fn run(program: &str, arguments: &[&str], timeout: Duration) -> Result<(i32, String)> {
    let path = "/tmp/output";
    let mut process = Process::start(program, arguments, Some(File::create(path)?))?;
    let status = process.wait(timeout)?;
    let output = std::fs::read_to_string(path)?;
    let code = status.code().with_context(|| format!("{program} ended with {status}: {output}"))?;
    Ok((code, output))
}

/// Calls `look` every 5 ms until it returns a value; `None` after `timeout`.
pub(crate) fn until<T>(
    timeout: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process of this program that executes commands line by line (see [`crate::role`]).
pub(crate) struct Puppet {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Puppet {
    /// Starts a puppet.
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new("/init")
            .arg("puppet")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a puppet")?;
        let input = child.stdin.take().context("no pipe to the puppet")?;
        let output = BufReader::new(child.stdout.take().context("no pipe from the puppet")?);
        Ok(Self { process: Process { name: "puppet".into(), child }, input, output })
    }

    /// Sends a command and returns the words of the answer.
    ///
    /// # Errors
    /// The puppet's error, which starts with the name of the refusal if the command was refused. Also when no answer
    /// comes in time.
    pub(crate) fn tell(&mut self, line: &str) -> Result<Vec<String>> {
        writeln!(self.input, "{line}").with_context(|| format!("telling: {line}"))?;
        let mut answer = String::new();
        if self.output.buffer().is_empty() {
            let timeout = Timespec::try_from(PATIENCE)?;
            let mut pipe = [PollFd::new(self.output.get_ref(), PollFlags::IN)];
            ensure!(poll(&mut pipe, Some(&timeout))? > 0, "no answer to: {line}");
        }
        self.output.read_line(&mut answer)?;
        match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
            ("ok", rest) => Ok(rest.split_whitespace().map(Into::into).collect()),
            ("err", rest) => Err(anyhow!("{rest}")),
            _ => bail!("{line}: the puppet died"),
        }
    }

    /// Sends a command like [`Puppet::tell`] whose answer is one number.
    pub(crate) fn ask(&mut self, line: &str) -> Result<u64> {
        let words = self.tell(line)?;
        let word = words.first().with_context(|| format!("{line}: no number came"))?;
        number(word)
    }

    /// Expects the command to be refused with this refusal, by name.
    pub(crate) fn expect_refusal(&mut self, line: &str, refusal: &str) -> Result<()> {
        match self.tell(line) {
            Ok(words) => bail!("{line} was allowed: {}", words.join(" ")),
            Err(error) => {
                let text = error.to_string();
                ensure!(text.split(':').next() == Some(refusal), "{line} gave {text}");
                Ok(())
            }
        }
    }

    /// Returns the puppet's answer after its server has ended.
    pub(crate) fn expect_gone(&mut self) -> String {
        match self.tell("query") {
            Ok(words) => format!("nothing ({})", words.join(" ")),
            Err(error) => error.to_string(),
        }
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.process.kill()
    }
}

/// Reads a number in decimal, or in hexadecimal with `0x`.
pub(crate) fn number(text: &str) -> Result<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .with_context(|| format!("{text} is no number"))
}
