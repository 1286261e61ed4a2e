//! Runs one test in a process of its own, with a limit of time and of memory.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::build::Program;

/// The address space of a test, in KiB. A mutant may allocate without end.
const MEMORY: u32 = 4 << 20;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Passed,
    Failed,
    /// It was killed.
    TimedOut,
}

/// Prepares a test of a program. Inputs by chance are the same in each run.
pub(super) fn command(program: &Program, test: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"")]).arg(&program.path);
    command.args(["--exact", test, "--test-threads=1"]).current_dir(&program.folder);
    command.envs([
        ("PROPTEST_RNG_SEED", "4164"),
        ("PROPTEST_MAX_SHRINK_ITERS", "0"),
        ("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true"),
        ("RUST_BACKTRACE", "0"),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command, at most until `limit`. Returns how it ended, and how long it took.
pub(super) fn run(command: &mut Command, limit: Duration) -> Result<(End, Duration)> {
    let begin = Instant::now();
    let mut child = command.spawn().context("starting a test")?;
    let status = wait(&mut child, begin + limit)?;
    let end = match status {
        Some(status) if status.success() => End::Passed,
        Some(_) => End::Failed,
        None => End::TimedOut,
    };
    Ok((end, begin.elapsed()))
}

fn wait(child: &mut Child, until: Instant) -> Result<Option<ExitStatus>> {
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().context("waiting for a test")? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill().context("killing a test")?;
            child.wait().context("waiting for a killed test")?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: u64) -> End {
        let mut command = Command::new("sh");
        run(command.args(["-c", script]), Duration::from_millis(limit)).unwrap().0
    }

    #[test]
    fn an_end_is_told() {
        assert_eq!(shell("exit 0", 10_000), End::Passed);
        assert_eq!(shell("exit 101", 10_000), End::Failed);
        assert_eq!(shell("kill -9 $$", 10_000), End::Failed);
        assert_eq!(shell("exec sleep 60", 50), End::TimedOut);
    }
}
