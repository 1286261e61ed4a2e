//! iommud under its keeper, as the scenario of kills starts and kills it.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use iommu_client::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::memory::{HUGE_MOUNT, ServerMemory};
use crate::process::{Process, until};
use crate::unit::Registers;

/// Memory of the server in MiB: small, since every server takes all of it anew.
const TABLES: &str = "4";
const BUFFERS: &str = "12";

/// Huge pages of a server that serves: its memory, the notes, and the store of facts.
pub(crate) const SERVER_PAGES: usize = 10;

/// Files of the server's memory.
pub(crate) const DIRECTORY: &str = "/dev/hugepages/iommud";

/// A request under way.
type Asked = std::thread::JoinHandle<Result<String, iommu_client::Error>>;

/// A keeper and its server.
pub(crate) struct Kept {
    keeper: Process,
}

impl Kept {
    /// Starts a keeper, and waits until its server serves.
    pub(crate) fn start() -> Result<Self> {
        let policy = "/tmp/kept.toml";
        std::fs::write(policy, "default = \"compat\"\n")?;
        let arguments = [
            "--keep",
            "--memory-dir",
            DIRECTORY,
            "--tables",
            TABLES,
            "--buffers",
            BUFFERS,
            "--policy",
            policy,
        ];
        let kept = Self { keeper: Process::start("/bin/iommud", &arguments, None)? };
        kept.serves()?;
        Ok(kept)
    }

    /// Waits until requests are answered.
    pub(crate) fn serves(&self) -> Result<()> {
        self.serves_and(|| Ok(()))
    }

    /// Waits until requests are answered, and looks at something again and again until then.
    pub(crate) fn serves_and(&self, mut look: impl FnMut() -> Result<()>) -> Result<()> {
        // A request waits for the next server, as long as there is a keeper.
        let ask = || Connection::system()?.text("status");
        let mut asking = None;
        let ready = until(Duration::from_secs(20), || {
            if let Some(asked) = asking.take_if(|asked: &mut Asked| asked.is_finished()) {
                let answer = asked.join().map_err(|_| anyhow!("the request panicked"))?;
                if answer.is_ok() {
                    return Ok(answer.ok());
                }
            }
            asking.get_or_insert_with(|| std::thread::spawn(ask));
            look()?;
            Ok(None)
        })?;
        ready.context("iommud takes no requests").map(drop)
    }

    /// The server's process, once there is one other than `not`.
    pub(crate) fn server(&self, not: Option<Pid>) -> Result<Pid> {
        let found = until(Duration::from_secs(5), || {
            Ok(children_of(self.keeper.pid()?)?.into_iter().find(|pid| Some(*pid) != not))
        })?;
        found.context("the keeper has no server")
    }

    /// SIGKILL to the server; returns who it was.
    pub(crate) fn kill_server(&self, not: Option<Pid>) -> Result<Pid> {
        let server = self.server(not)?;
        kill_process(server, Signal::KILL).context("SIGKILL")?;
        Ok(server)
    }

    /// SIGKILL to the keeper. Its server must end by itself.
    pub(crate) fn kill_keeper(mut self) -> Result<()> {
        let server = self.server(None)?;
        self.keeper.kill()?;
        let gone = until(Duration::from_secs(5), || Ok(is_gone(server).then_some(())))?;
        gone.context("the server lives on without its keeper")
    }

    /// SIGTERM to the keeper; both must end, with success.
    pub(crate) fn stop(mut self) -> Result<()> {
        let server = self.server(None)?;
        self.keeper.terminate()?;
        let status = self.keeper.wait(Duration::from_secs(10))?;
        ensure!(status.success(), "the keeper ended with {status}");
        ensure!(is_gone(server), "the server lives on");
        Ok(())
    }

    /// One of the metrics.
    pub(crate) fn metrics(&self) -> Result<String> {
        Ok(Connection::system()?.text("metrics")?)
    }
}

/// Files of the server's memory, by name.
pub(crate) fn files() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(DIRECTORY).context(DIRECTORY)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The unit's root table lies in memory that is a server's, at every instant: with the same root before and
/// after, the files in between must have held it.
pub(crate) fn root_is_held(registers: &Registers) -> Result<()> {
    let before = registers.root_table()?;
    let memory = ServerMemory::open(DIRECTORY)?;
    let after = registers.root_table()?;
    ensure!(
        before != after || memory.contains(before),
        "the unit's root table at {before:#x} is in memory that was given back"
    );
    Ok(())
}

/// Huge pages that nobody has.
pub(crate) fn free_pages() -> Result<usize> {
    ensure!(HUGE_MOUNT.starts_with("/dev"), "hugetlbfs is mounted elsewhere");
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(path).context(path)?.trim().parse().context(path)
}

fn is_gone(process: Pid) -> bool {
    // A process that is nobody's child any more is collected by the first process: this one.
    let path = format!("/proc/{}/stat", process.as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.is_empty() || fields_of(&text).first().is_some_and(|state| state == "Z")
}

/// The processes whose parent this is (proc_pid_stat(5): field 4 is the parent).
fn children_of(parent: Pid) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = fields_of(&text);
        let of_parent = fields.get(1).and_then(|f| f.parse().ok()).and_then(Pid::from_raw);
        if of_parent == Some(parent) && fields.first().is_some_and(|state| state != "Z") {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// What follows the name, which may hold anything, and its parenthesis: the state first.
fn fields_of(stat: &str) -> Vec<String> {
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(Into::into).collect()
}
