//! Two lanes of stages, each stage in a process of its own: what a stage prints stays together.

use std::process::{Command, Output};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Counts, Lane, Outcome, Stage, TOTAL, counts_of};

/// Runs the stages of both lanes. The results are in the order of `stages`.
///
/// # Errors
/// A process that cannot be started.
pub(super) fn run(stages: &[&Stage]) -> Result<Vec<Outcome>> {
    thread::scope(|scope| {
        let right = scope.spawn(|| lane(stages, Lane::Right));
        let left = lane(stages, Lane::Left);
        let right = right.join().unwrap_or_else(|_| anyhow::bail!("a lane ended early"));
        let mut outcomes = left?;
        outcomes.extend(right?);
        outcomes.sort_by_key(|outcome| stages.iter().position(|stage| stage.name == outcome.name));
        Ok(outcomes)
    })
}

fn lane(stages: &[&Stage], lane: Lane) -> Result<Vec<Outcome>> {
    stages.iter().filter(|stage| stage.lane == lane).map(|stage| one(stage)).collect()
}

fn one(stage: &Stage) -> Result<Outcome> {
    let started = Instant::now();
    let program = std::env::current_exe().context("this program")?;
    let output = Command::new(program).args(["test", stage.name]).output().context("a stage")?;
    let seconds = started.elapsed().as_secs_f32();
    let (text, counts) = read(&output);
    print!("{text}");
    Ok(Outcome { name: stage.name, seconds, counts })
}

/// What a stage printed before its own summary, and its counts. One that says none has failed.
fn read(output: &Output) -> (String, Counts) {
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = text.lines().rev().find_map(|line| counts_of(line.strip_prefix(TOTAL)?));
    let told = text.split_once("== summary\n").map_or(&*text, |(told, _)| told);
    let errors = String::from_utf8_lossy(&output.stderr);
    let counts = counts.filter(|counts| output.status.success() == (counts.failed == 0));
    (format!("{told}{errors}"), counts.unwrap_or(Counts::failure()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn output(text: &str, code: i32) -> Output {
        let status = ExitStatus::from_raw(code << 8);
        Output { status, stdout: text.into(), stderr: b"a warning\n".to_vec() }
    }

    #[test]
    fn a_stage_is_what_it_says_and_how_it_ends() {
        let text = "== a\nok 1\n== summary\n    0.1 s  a: 2 passed\ntest: 2 passed, 0 failed\n";
        let (told, counts) = read(&output(text, 0));
        assert_eq!(told, "== a\nok 1\na warning\n");
        assert_eq!(counts, Counts { passed: 2, failed: 0, skipped: 0 });
        let failure = Counts::failure();
        assert_eq!(read(&output(text, 1)).1, failure, "its exit code says otherwise");
        assert_eq!(read(&output("== a\nok 1\n", 0)).1, failure, "it did not end");
        let text = "test: 5 passed, 2 failed, 1 skipped\n";
        assert_eq!(read(&output(text, 1)).1, Counts { passed: 5, failed: 2, skipped: 1 });
        assert_eq!(read(&output(text, 0)).1, failure);
    }
}
