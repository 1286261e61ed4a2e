//! A driver that continues whatever happens to the server. It reopens its device when the server is gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iommu_client::{Connection, Device, Error};

use super::churn::copy;

/// Time limit for the absence of a server.
const PATIENCE: Duration = Duration::from_secs(20);

/// Copies by DMA until killed. Prints a line after each round, and one each time the server is gone. `Err` reports a
/// defect.
pub(crate) fn work(device: &str) -> Result<()> {
    for round in 0.. {
        let device = open(device)?;
        match copy(&device, round) {
            Ok(()) => println!("round"),
            // If the server is gone, the error is not the server's fault.
            Err(error) => match device.query() {
                Err(Error::Disconnected) => println!("told"),
                _ => return Err(error).with_context(|| format!("round {round}")),
            },
        }
    }
    Ok(())
}

fn open(name: &str) -> Result<Device> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let opened = Connection::system().and_then(|connection| Device::open(&connection, name));
        match opened {
            Ok(device) => return Ok(device),
            Err(Error::Disconnected) => {}
            Err(error) => return Err(error).context("opening"),
        }
        ensure!(Instant::now() < deadline, "there is no server for {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Counts disconnections from a server, and finished rounds.
pub(crate) fn counts(output: &str) -> (usize, usize) {
    let count = |word| output.lines().filter(|line| *line == word).count();
    (count("told"), count("round"))
}

/// Runs the worker. A defect is the last line of its output.
pub(crate) fn main(device: &str) -> Result<()> {
    match work(device) {
        Ok(()) => bail!("it ended"),
        Err(error) => {
            println!("{error:#}");
            Err(error)
        }
    }
}
