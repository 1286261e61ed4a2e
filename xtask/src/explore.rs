//! Explores the ordering contract: `tests/src/explore`.

use anyhow::{Context, Result};

use crate::workspace::cargo;

/// Runs the explorer. Returns whether every invariant held and every scenario was exercised.
pub(crate) fn run(arguments: &[&str]) -> Result<bool> {
    let status = cargo()
        .args(["run", "--quiet", "--locked", "--package", "iommud-tests", "--bin", "explore", "--"])
        .args(arguments)
        .status()
        .context("cargo run")?;
    Ok(status.success())
}
