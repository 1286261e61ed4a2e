//! A driver that goes on whatever happens to the server: it opens its device again when it is told that the
//! server is gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iommu_client::{Connection, Device, Error};

use super::churn::copy;

/// How long there may be no server.
const PATIENCE: Duration = Duration::from_secs(20);

/// Copies by DMA until it is killed; prints a line a round, and one each time the server is gone. `Err` is a
/// finding.
pub(crate) fn work(device: &str) -> Result<()> {
    for round in 0.. {
        let device = open(device)?;
        match copy(&device, round) {
            Ok(()) => println!("round"),
            // Whatever went wrong, it is none of this server's doing when the server is gone.
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

/// How often it was told that the server is gone, and how many rounds it finished.
pub(crate) fn counts(output: &str) -> (usize, usize) {
    let count = |word| output.lines().filter(|line| *line == word).count();
    (count("told"), count("round"))
}

/// Runs it; a finding is the last line of its output.
pub(crate) fn main(device: &str) -> Result<()> {
    match work(device) {
        Ok(()) => bail!("it ended"),
        Err(error) => {
            println!("{error:#}");
            Err(error)
        }
    }
}
