//! The memory of Redox's drivers over the whole server and a software unit. A process has one session, so each test is
//! a process of its own, like a driver.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected must stop"
)]

mod cases;
mod memory;
mod patterns;
mod platform;
mod sgl;

use std::process::Command;

use iommu_client::transport::Transport;
use iommu_client::{Connection, PciAddress};
use iommud_tests::model::{DEVICES, Model};

const NAME: &str = DEVICES[1];

/// Variable with the name of the test that a child process runs.
const CHILD: &str = "REDOX_DMA_TEST";
/// What a child prints when it is done.
const DONE: &str = "done";

/// Runs a test in a process of its own. Returns the lines that the crate has printed there.
fn alone(test: &str, body: impl FnOnce()) -> Vec<String> {
    alone_with(test, &[], body)
}

/// The same with environment variables.
fn alone_with(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Vec<String> {
    if std::env::var_os(CHILD).is_some_and(|name| name == test) {
        body();
        eprintln!("{DONE}");
        std::process::exit(0);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env(CHILD, test);
    child.envs(variables.iter().copied());
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains(DONE), "{test}: {text}");
    text.lines().filter(|line| line.starts_with("redox-dma: ")).map(String::from).collect()
}

/// The function of the process under test.
fn address() -> PciAddress {
    NAME.parse().unwrap()
}

/// Makes this process the driver of the function, over the model's server.
fn drive(model: &Model) {
    drive_over(model.transport());
}

fn drive_over(transport: impl Transport + 'static) {
    redox_dma::init();
    redox_dma::through(Connection::over(transport), address()).unwrap();
}

/// Bytes that the device reaches.
fn reached(model: &Model) -> u64 {
    model.reach(address()).iter().map(|(first, last)| last - first + 1).sum()
}
