//! Fuzzing: libFuzzer over the targets of the test crate, with the instrumentation of a stable compiler.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::options::FuzzOptions;
use crate::packages::{self, CXX};
use crate::workspace::{cache, cargo, root, target};

/// Every target, with the names of `iommud_tests::fuzz::TARGETS`.
pub(crate) const TARGETS: [&str; 9] =
    ["dmar", "ivrs", "decode", "policy", "protocol", "paths", "pci", "vtd", "amdvi"];

/// The host's target triple. It is named so that build scripts are not instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The flags of `cargo fuzz`, except the sanitizer: the fuzzed code contains no `unsafe`.
const INSTRUMENTATION: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Longest input, in bytes.
const LONGEST: u32 = 4096;

/// Fuzzes the targets one after the other. Returns whether none failed.
pub(crate) fn run(options: &FuzzOptions) -> Result<bool> {
    let (_, failed) = run_counted(options)?;
    Ok(failed == 0)
}

/// Fuzzes like [`run`]. Returns the numbers of passed and failed targets.
pub(crate) fn run_counted(options: &FuzzOptions) -> Result<(usize, usize)> {
    build()?;
    let all: Vec<&str> = TARGETS.to_vec();
    let chosen = options.targets.iter().map(String::as_str);
    let targets = if options.targets.is_empty() { all } else { chosen.collect() };
    let mut failed = 0;
    for name in &targets {
        failed += usize::from(!fuzz(name, options.seconds)?);
    }
    println!("fuzz: {} passed, {failed} failed", targets.len() - failed);
    Ok((targets.len() - failed, failed))
}

fn build() -> Result<()> {
    packages::require(&[CXX])?;
    println!("building the fuzzer");
    let folder = root().join("tests/fuzz");
    // The fuzzer is not a member of the workspace, but its shared dependencies have the same versions.
    std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).context("Cargo.lock")?;
    let status = cargo()
        .current_dir(folder)
        .args(["build", "--quiet", "--release", "--target", TRIPLE])
        .env("RUSTFLAGS", INSTRUMENTATION)
        .env("CARGO_TARGET_DIR", target().join("fuzz"))
        .status()
        .context("cargo build")?;
    ensure!(status.success(), "the fuzzer was not built");
    Ok(())
}

/// Runs one target. A failing input is saved among the inputs of the ordinary tests.
fn fuzz(name: &str, seconds: u32) -> Result<bool> {
    let inputs = root().join("tests/data/fuzz").join(name);
    let found = cache("fuzz")?.join(name);
    std::fs::create_dir_all(&found).with_context(|| format!("creating {}", found.display()))?;
    let mut command = Command::new(target().join("fuzz").join(TRIPLE).join("release/iommud-fuzz"));
    command.env("FUZZ_TARGET", name).arg(&found).arg(&inputs);
    if name == "dmar" || name == "ivrs" {
        command.arg(root().join("tests/data/acpi/qemu"));
    }
    command.args([format!("-max_total_time={seconds}"), format!("-max_len={LONGEST}")]);
    command.args(["-timeout=10", "-print_final_stats=1"]);
    command.arg(format!("-artifact_prefix={}/", inputs.display()));
    let output = command.output().context("starting the fuzzer")?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdict = if output.status.success() { "ok" } else { "FAILED" };
    println!("fuzz: {verdict} {name}: {seconds} s, {}", summary(&log));
    if !output.status.success() {
        println!("{}", log.trim_end());
        report_kept(&inputs)?;
    }
    Ok(output.status.success())
}

/// Summarises the coverage from libFuzzer's log.
fn summary(log: &str) -> String {
    let runs = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .map_or("?", str::trim);
    let reached = log
        .lines()
        .rev()
        .find_map(|line| line.split_once(" cov: ")?.1.split_whitespace().next())
        .unwrap_or("?");
    format!("{runs} runs, {reached} edges reached")
}

fn report_kept(inputs: &Path) -> Result<()> {
    for entry in std::fs::read_dir(inputs)? {
        let path = entry?.path();
        println!("input: {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_summed_up() {
        let log = "#2\tINITED cov: 10 ft: 11\n#99\tDONE   cov: 123 ft: 456 corp: 7/8b\n\
                   stat::number_of_executed_units: 99\n";
        assert_eq!(summary(log), "99 runs, 123 edges reached");
        assert_eq!(summary(""), "? runs, ? edges reached");
    }
}
