//! A driver that continues whatever happens to the server. It reopens its device, over the connection that it has.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iommu_client::{Connection, Device, Error};

use super::churn::copy;

/// Time limit for opening.
const PATIENCE: Duration = Duration::from_secs(20);

/// Copies by DMA until killed. Prints a line after each round, and one each time a server dies, whose sessions end with
/// it. The connection goes on over the next one. `Err` reports a defect.
pub(crate) fn work(name: &str) -> Result<()> {
    let connection = Connection::system()?;
    for round in 0.. {
        let device = open(&connection, name)?;
        match copy(&device, round) {
            Ok(()) => println!("round"),
            // If the session ended with its server, the error is not the server's fault.
            Err(error) => match device.query() {
                Err(Error::Disconnected) => println!("told"),
                _ => return Err(error).with_context(|| format!("round {round}")),
            },
        }
    }
    Ok(())
}

/// Opens the device. The server may die between the opening and what it opened.
fn open(connection: &Connection, name: &str) -> Result<Device> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Device::open(connection, name) {
            Ok(device) => return Ok(device),
            Err(Error::Disconnected) => {}
            Err(error) => return Err(error).context("opening"),
        }
        connection.text("status").context("the connection did not outlive the server")?;
        ensure!(Instant::now() < deadline, "no device for {PATIENCE:?}");
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
