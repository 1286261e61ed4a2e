//! The ordering contract, explored: `tests/src/explore`.

use anyhow::{Context, Result};

use crate::workspace::cargo;

/// Runs the explorer; says whether everything held and everything was exercised.
pub(crate) fn run(arguments: &[&str]) -> Result<bool> {
    let status = cargo()
        .args(["run", "--quiet", "--locked", "--package", "iommud-tests", "--bin", "explore", "--"])
        .args(arguments)
        .status()
        .context("cargo run")?;
    Ok(status.success())
}
