//! `xtask test`: everything CI runs. Each stage runs whatever the results of earlier ones. What compiles runs alone; the
//! guests, of which each keeps one core busy, run in two lanes.

mod lanes;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::options::{BareOptions, DemoOptions, Iommu, Qemu, ShellOptions, Story};
use crate::workspace::{cargo, root, target};
use crate::{bare, demo, documents, redox, shell};

/// The results of a stage, or of all stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    const fn one(passed: bool) -> Self {
        if passed { Self { passed: 1, failed: 0, skipped: 0 } } else { Self::failure() }
    }

    const fn failure() -> Self {
        Self { passed: 0, failed: 1, skipped: 0 }
    }

    const fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 { write!(f, ", {} skipped", self.skipped) } else { Ok(()) }
    }
}

/// Where a stage runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// By itself: it keeps every core busy, or brings what other stages need.
    Alone,
    /// Beside the other lane. A guest keeps one core busy.
    Left,
    /// As `Left`. What fetches packages is in this one, because only one at a time may install.
    Right,
}

struct Stage {
    name: &'static str,
    lane: Lane,
    run: fn() -> Result<Counts>,
}

const fn stage(lane: Lane, name: &'static str, run: fn() -> Result<Counts>) -> Stage {
    Stage { name, lane, run }
}

use Lane::{Alone, Left, Right};

const STAGES: [Stage; 28] = [
    stage(Alone, "format", || format(cargo())),
    stage(Alone, "format of the bare guest", || format(in_bare_guest(cargo()))),
    stage(Alone, "lints", || lints(cargo().args(["clippy", "--workspace"]))),
    stage(Alone, "lints of the library without std", || {
        lints(cargo().args(["clippy", "--package", "iommud", "--no-default-features", "--lib"]))
    }),
    stage(Alone, "lints of the bare guest", || lints(in_bare_guest(cargo()).arg("clippy"))),
    stage(Alone, "format of the Redox loader", || format(in_redox_loader(cargo()))),
    stage(Alone, "lints of the Redox loader", || lints(in_redox_loader(cargo()).arg("clippy"))),
    stage(Alone, "format of the measurements", || format(in_bench(cargo()))),
    stage(Alone, "lints of the measurements", || {
        lints(in_bench(cargo()).arg("clippy").arg("--target-dir").arg(target()))
    }),
    stage(Alone, "documentation of the interfaces", documentation),
    stage(Alone, "everything that Redox gets", redox_target),
    stage(Alone, "packages for the installer of Redox", packer),
    stage(Alone, "unit and model tests", tests),
    stage(Alone, "bare guest, caching mode off", || bare_guest(BareOptions::default())),
    stage(Left, "bare guest, caching mode on", || {
        bare_guest(BareOptions { caching_mode: true, ..BareOptions::default() })
    }),
    stage(Right, "bare guest, AMD-Vi", || bare_guest(BareOptions::amd())),
    stage(Alone, "demo, caching mode off", || story(Iommu::Intel, false)),
    stage(Left, "demo, caching mode on", || story(Iommu::Intel, true)),
    stage(Left, "demo, iommud killed 20 times", || kills(20, Iommu::Intel)),
    stage(Left, "demo, groups of a machine of many bridges", groups),
    stage(Left, "demo without a unit", || story(Iommu::None, false)),
    stage(Left, "demo with a damaged DMAR", damaged_table),
    stage(Right, "demo, AMD-Vi", || story(Iommu::Amd, false)),
    stage(Right, "demo, AMD-Vi, iommud killed 7 times", || kills(7, Iommu::Amd)),
    stage(Right, "tour of the shell", || shell(Iommu::Intel)),
    stage(Right, "tour of the shell, AMD-Vi", || shell(Iommu::Amd)),
    stage(Right, "demo of the NVMe driver", nvme),
    stage(Left, "demo, devices plugged in and pulled out", hot_plug),
];

/// Runs every stage, or those of these names. Returns whether all passed.
///
/// # Errors
/// A name that no stage has.
pub(crate) fn run(names: &[String]) -> Result<bool> {
    for name in names {
        let known = STAGES.iter().map(|stage| stage.name);
        ensure!(known.clone().any(|known| known == name), "no stage {name}: {}", list(known));
    }
    let named = |stage: &&Stage| names.is_empty() || names.iter().any(|name| name == stage.name);
    let (alone, beside): (Vec<_>, Vec<_>) =
        STAGES.iter().filter(named).partition(|stage| !names.is_empty() || stage.lane == Alone);
    let mut results: Vec<_> = alone.into_iter().map(here).collect();
    results.extend(lanes::run(&beside)?);
    let mut total = Counts::default();
    println!("== summary");
    for Outcome { name, seconds, counts } in &results {
        println!("{seconds:7.1} s  {name}: {counts}");
        total.add(*counts);
    }
    println!("{TOTAL}{total}");
    Ok(total.failed == 0)
}

/// Stands before the counts of all stages.
const TOTAL: &str = "test: ";

/// What came of a stage.
struct Outcome {
    name: &'static str,
    seconds: f32,
    counts: Counts,
}

fn here(stage: &Stage) -> Outcome {
    println!("== {}", stage.name);
    let started = Instant::now();
    let counts = (stage.run)().unwrap_or_else(|error| {
        println!("{error:#}");
        Counts::failure()
    });
    Outcome { name: stage.name, seconds: started.elapsed().as_secs_f32(), counts }
}

fn list(names: impl Iterator<Item = &'static str>) -> String {
    names.map(|name| format!("\n  {name}")).collect()
}

fn in_bare_guest(mut command: Command) -> Command {
    command.current_dir(root().join("tests/vm/bare"));
    command
}

/// The benchmarks are a workspace of their own because of their peers. Their shared dependencies were checked before.
fn in_bench(mut command: Command) -> Command {
    command.current_dir(root().join("tests/bench"));
    command
}

fn in_redox_loader(mut command: Command) -> Command {
    command.current_dir(root().join("tests/vm/redox"));
    command
}

/// The packer is a workspace of its own because of the installer's crates.
fn in_packer(mut command: Command) -> Command {
    command.current_dir(root().join("xtask/packer"));
    command
}

/// Format, lints and tests of the packer.
fn packer() -> Result<Counts> {
    let mut counts = format(in_packer(cargo()))?;
    let folder = target().join("packer");
    let mut clippy = in_packer(cargo());
    counts.add(lints(clippy.arg("clippy").arg("--target-dir").arg(&folder).arg("--all-targets"))?);
    let mut test = in_packer(cargo());
    counts.add(tests_of(
        test.args(["test", "--quiet", "--locked"]).arg("--target-dir").arg(&folder),
    )?);
    Ok(counts)
}

/// Compiles and lints for Redox. Nothing is booted, because that needs a tree.
fn redox_target() -> Result<Counts> {
    if let Err(error) = redox::compiler() {
        println!("not checked: {error:#}");
        return Ok(Counts { skipped: 1, ..Counts::default() });
    }
    let (passed, failed, skipped) = redox::check_counted()?;
    Ok(Counts { passed, failed, skipped })
}

fn format(mut command: Command) -> Result<Counts> {
    let status = command.args(["fmt", "--all", "--check"]).status().context("cargo fmt")?;
    Ok(Counts::one(status.success()))
}

fn lints(command: &mut Command) -> Result<Counts> {
    let command = command.args(["--quiet", "--locked", "--no-deps"]);
    let all = if command.get_args().any(|argument| argument == "--workspace") {
        command.arg("--all-targets")
    } else {
        command
    };
    let status = all.args(["--", "--deny", "warnings"]).status().context("cargo clippy")?;
    Ok(Counts::one(status.success()))
}

/// Builds the documentation. A link that leads nowhere is a failure.
fn documentation() -> Result<Counts> {
    let mut command = cargo();
    command.args(["doc", "--quiet", "--workspace", "--no-deps", "--locked"]);
    command.env("RUSTDOCFLAGS", "--deny warnings");
    Ok(Counts::one(command.status().context("cargo doc")?.success()))
}

fn tests() -> Result<Counts> {
    tests_of(cargo().args(["test", "--workspace", "--locked", "--no-fail-fast"]))
}

/// Runs `cargo test` and sums up the counts of the test programs.
fn tests_of(command: &mut Command) -> Result<Counts> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(part) = result(&line) {
            counts.add(part);
        }
        if !line.is_empty() && !line.ends_with("... ok") {
            println!("{line}");
        }
    }
    let success = child.wait()?.success();
    // A test program that was not built or that crashed reports no counts.
    if !success && counts.failed == 0 || counts.passed == 0 {
        counts.failed += 1;
    }
    Ok(counts)
}

/// Reads what [`Counts`] writes.
fn counts_of(text: &str) -> Option<Counts> {
    let count = |word: &str| {
        text.split(',').find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    let skipped = count("skipped").unwrap_or(0);
    Some(Counts { passed: count("passed")?, failed: count("failed")?, skipped })
}

/// Parses a line such as `test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; ...`.
fn result(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        numbers.split(';').find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    Some(Counts { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

fn bare_guest(options: BareOptions) -> Result<Counts> {
    let (passed, failed, skipped) = bare::run_counted(options)?;
    Ok(Counts { passed, failed, skipped })
}

fn kills(number: u32, iommu: Iommu) -> Result<Counts> {
    let (story, qemu) = (Story::Kills(number), emulator_for(iommu));
    tell(&DemoOptions { story, iommu, qemu, ..DemoOptions::default() })
}

fn groups() -> Result<Counts> {
    tell(&DemoOptions { story: Story::Groups, ..DemoOptions::default() })
}

fn story(iommu: Iommu, caching_mode: bool) -> Result<Counts> {
    let qemu = emulator_for(iommu);
    let report = demo::tell(&DemoOptions { iommu, caching_mode, qemu, ..DemoOptions::default() })?;
    let (passed, failed) = report.counts();
    let mut counts = Counts { passed, failed, skipped: report.unchecked().len() };
    if iommu == Iommu::Intel {
        let block = documents::block("README.md", "iommuctl explain")?;
        let shown = documents::shows(&block, &report.logs().join("\n"));
        println!(
            "{} - README.md shows a fault as it was explained",
            if shown { "ok" } else { "FAILED" }
        );
        counts.add(Counts::one(shown));
    }
    Ok(counts)
}

/// Returns the QEMU for a unit. The installed one has no AMD-Vi unit that translates.
fn emulator_for(iommu: Iommu) -> Qemu {
    if iommu == Iommu::Amd { Qemu::Newer } else { Qemu::Installed }
}

fn shell(iommu: Iommu) -> Result<Counts> {
    let (passed, failed) = shell::tour_counted(&ShellOptions { iommu, ..ShellOptions::default() })?;
    Ok(Counts { passed, failed, skipped: 0 })
}

fn damaged_table() -> Result<Counts> {
    tell(&DemoOptions { story: Story::DamagedTable, ..DemoOptions::default() })
}

fn nvme() -> Result<Counts> {
    tell(&DemoOptions { story: Story::Nvme, ..DemoOptions::default() })
}

fn hot_plug() -> Result<Counts> {
    tell(&DemoOptions { story: Story::HotPlug, ..DemoOptions::default() })
}

fn tell(options: &DemoOptions) -> Result<Counts> {
    let (passed, failed, skipped) = demo::run_counted(options)?;
    Ok(Counts { passed, failed, skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane starts a stage by its name.
    #[test]
    fn stages_have_names_of_their_own() {
        let mut names: Vec<_> = STAGES.iter().map(|stage| stage.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STAGES.len());
        assert!(run(&["nothing".into()]).is_err());
    }

    #[test]
    fn results_of_test_programs_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 0 filtered \
                    out; finished in 0.05s";
        assert_eq!(result(line), Some(Counts { passed: 12, failed: 3, skipped: 4 }));
        assert_eq!(result("test a ... ok"), None);
        assert_eq!(result("test result: ok."), None);
    }

    #[test]
    fn totals_are_written_as_ci_reads_them() {
        let mut total = Counts { passed: 2, failed: 0, skipped: 0 };
        assert_eq!(total.to_string(), "2 passed, 0 failed");
        total.add(Counts { passed: 1, failed: 1, skipped: 1 });
        assert_eq!(total.to_string(), "3 passed, 1 failed, 1 skipped");
        assert_eq!(counts_of("3 passed, 1 failed, 1 skipped"), Some(total));
        assert_eq!(counts_of("3 passed"), None);
    }
}
