//! Control of iommud for the story: start, queries, stop.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iommu_client::Connection;

use crate::memory::{HUGE_MOUNT, ServerMemory};
use crate::process::{Process, until};

const SOCKET: &str = "/run/iommu.sock";

/// The trace of all servers of a story.
pub(crate) const TRACE: &str = "/tmp/iommud.trace";

/// The server's memory for buffers, in MiB. Table memory follows the machine's need.
const BUFFERS: &str = "160";

/// A running iommud.
pub(crate) struct Server {
    process: Process,
}

impl Server {
    /// Starts iommud with a default policy and waits until it accepts requests. With `wire_log`, every byte to and
    /// from clients is also written there.
    pub(crate) fn start(policy: &str, wire_log: Option<&str>) -> Result<Self> {
        Self::start_with(policy, wire_log, BUFFERS)
    }

    /// Starts iommud like [`Server::start`], with this many MiB of buffers.
    pub(crate) fn start_with(policy: &str, wire_log: Option<&str>, buffers: &str) -> Result<Self> {
        Self::start_all(policy, wire_log, buffers, None)
    }

    /// Starts iommud like [`Server::start`]; what it says goes to a file.
    pub(crate) fn start_logged(policy: &str, log: File) -> Result<Self> {
        Self::start_all(policy, None, BUFFERS, Some(log))
    }

    fn start_all(
        policy: &str,
        wire_log: Option<&str>,
        buffers: &str,
        output: Option<File>,
    ) -> Result<Self> {
        let policy_file = format!("/tmp/{policy}.toml");
        std::fs::write(&policy_file, format!("default = \"{policy}\"\n"))?;
        let directory = Self::directory();
        let arguments = [
            "--memory-dir",
            &directory,
            "--socket",
            SOCKET,
            "--buffers",
            buffers,
            "--policy",
            &policy_file,
            "--trace",
            TRACE,
        ];
        let log: Vec<&str> = wire_log.into_iter().flat_map(|file| ["--wire-log", file]).collect();
        let mut process = Process::start("/bin/iommud", &[&arguments, &log[..]].concat(), output)?;
        let ready = until(Duration::from_secs(15), || {
            let ended = process.ended()?;
            ensure!(ended.is_none(), "iommud ended: {}", ended.unwrap_or_default());
            Ok(Connection::system().ok())
        })?;
        ready.context("iommud takes no requests")?;
        Ok(Self { process })
    }

    /// The directory of the server's memory.
    pub(crate) fn directory() -> String {
        format!("{HUGE_MOUNT}/iommud")
    }

    /// Maps the server's memory.
    pub(crate) fn memory(&self) -> Result<ServerMemory> {
        ServerMemory::open(&Self::directory())
    }

    /// Reads a text of the scheme.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        Connection::system().and_then(|c| c.text(path)).with_context(|| format!("reading {path}"))
    }

    /// Makes the server rescan for functions.
    pub(crate) fn rescan(&self) -> Result<()> {
        Connection::system().and_then(|c| c.rescan()).context("asking for a rescan")
    }

    /// Lists the names in a directory of the scheme.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<String>> {
        Connection::system().and_then(|c| c.names(path)).with_context(|| format!("listing {path}"))
    }

    /// Reads the text `metrics` as numbers.
    pub(crate) fn metrics(&self) -> Result<BTreeMap<String, u64>> {
        let text = self.text("metrics")?;
        text.lines()
            .map(|line| {
                let (name, value) = line.split_once(' ').context("a metric without a value")?;
                Ok((name.to_owned(), value.parse().context("a metric is no number")?))
            })
            .collect()
    }

    /// Reads one of the metrics.
    pub(crate) fn metric(&self, name: &str) -> Result<u64> {
        self.metrics()?.get(name).copied().with_context(|| format!("no metric {name}"))
    }

    /// Returns the lines of the text `faults` after the first `before`.
    pub(crate) fn faults_since(&self, before: usize) -> Result<Vec<String>> {
        Ok(self.text("faults")?.lines().skip(before).map(Into::into).collect())
    }

    /// Returns the number of lines of the text `faults`.
    pub(crate) fn fault_lines(&self) -> Result<usize> {
        Ok(self.text("faults")?.lines().count())
    }

    /// Waits for a fault of `source` in `faults` after its first `before` lines.
    pub(crate) fn wait_fault(&self, before: usize, source: &str) -> Result<String> {
        let found = until(Duration::from_secs(2), || {
            Ok(self.faults_since(before)?.into_iter().find(|line| line.contains(source)))
        })?;
        found.with_context(|| format!("no fault of {source} was reported"))
    }

    /// Stops iommud with SIGTERM. It must end by itself, with success.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.terminate()?;
        let status = self.process.wait(Duration::from_secs(10))?;
        ensure!(status.success(), "iommud ended with {status} ({:?})", status.signal());
        ensure!(!Path::new(SOCKET).exists(), "the socket's name stays");
        Ok(())
    }
}
