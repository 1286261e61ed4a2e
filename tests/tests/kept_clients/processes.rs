//! The processes: a keeper, and servers that it starts. A directory of each keeper says what they do.
//!
//! ```text
//! socket    where clients connect
//! die       a line for each server to come: the point where it dies, and how often it passes it before
//! unit      a line for each server to come, if it has a unit: the milliseconds after which it comes up
//! looks     a byte for each time that a claim of the missing device was carried out
//! hold      while it exists, no server serves
//! server    the process of the last server
//! ```

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use iommu_protocol::ids::PciAddress;
use iommud::hw::Unit;
use iommud::platform::linux::keeper::keep_on;
use iommud::platform::linux::link::{Link, Message};
use iommud::platform::linux::memory::HugeBuffers;
use iommud::platform::linux::reply_cache::SharedCache;
use iommud::platform::linux::transport::{Transport, WireLog};
use iommud::server::Discovery;
use iommud::topology::pci::PciFunction;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::harness::{Pages, functions, server as without_units};
use crate::place::Deadly;
use crate::units::{arrive, late};

/// The first argument of the two processes. The second one is the directory.
pub(crate) const KEEPER: &str = "--keeper";
pub(crate) const SERVER: &str = "--server";

/// A device that no server has.
pub(crate) const MISSING: &str = "0000--00--1f.7";

/// Time limit for everything that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// The directory in this process's arguments.
fn directory() -> PathBuf {
    std::env::args().nth(2).unwrap().into()
}

/// Starts a program, which is this one, or what is to replace it as server.
fn process(program: &Path, role: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([role.as_ref(), directory.as_os_str()]);
    command
}

/// The keeper: the shipped loop.
pub(crate) fn keeper() -> ExitCode {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let place = directory();
    let start = |program: &Path, link: OwnedFd| {
        process(program, SERVER, &place).stdin(Stdio::from(link)).spawn()
    };
    ExitCode::from(keep_on(place.join("socket"), start).unwrap())
}

/// A server, until it is killed.
pub(crate) fn server() -> ExitCode {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let place = directory();
    fs::write(place.join("server.new"), std::process::id().to_string()).unwrap();
    fs::rename(place.join("server.new"), place.join("server")).unwrap();
    while place.join("hold").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let Some(after) = take_line(&place.join("unit")) else {
        return serve(&place, without_units(WireLog::off()), |_| ());
    };
    let (looped, machine, subject) = late();
    let due = Instant::now() + Duration::from_millis(after.parse().unwrap());
    let mut is_up = false;
    serve(&place, looped, |looped| {
        if !is_up && due <= Instant::now() {
            is_up = true;
            arrive(looped, &machine, &subject);
        }
    })
}

type Loop<U> = Transport<U, HugeBuffers<Pages>>;

fn serve<U: Unit>(
    place: &Path,
    mut looped: Loop<U>,
    mut between: impl FnMut(&mut Loop<U>),
) -> ExitCode {
    let link = Link::of_server().unwrap();
    let Some((Message::Cache, Some(file))) = link.receive().unwrap() else { panic!("no cache") };
    let at = take_line(&place.join("die")).map(|line| {
        let (point, passes) = line.split_once(' ').unwrap();
        (point.to_owned(), passes.parse().unwrap())
    });
    let cache = Deadly { cache: SharedCache::open(&file).unwrap(), at };
    looped.server().discover_with(Box::new(Looks(place.join("looks"))));
    looped.keep_with(link, Box::new(cache)).unwrap();
    loop {
        looped.turn(Some(Duration::from_millis(5))).unwrap();
        between(&mut looped);
    }
}

/// Takes the first line out of a file.
fn take_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (line, rest) = text.split_once('\n')?;
    fs::write(path, rest).unwrap();
    Some(line.to_owned())
}

/// Counts looks at addresses without a device in a file.
struct Looks(PathBuf);

impl Discovery for Looks {
    fn walk(&mut self) -> Option<Vec<PciFunction>> {
        Some(functions())
    }

    fn answers(&mut self, _: PciAddress) -> bool {
        let file = OpenOptions::new().create(true).append(true).open(&self.0);
        file.unwrap().write_all(b".").unwrap();
        false
    }
}

/// A keeper in a process of its own. Ends with this value.
pub(crate) struct Kept {
    place: PathBuf,
    keeper: Child,
}

static SERIAL: AtomicU32 = AtomicU32::new(0);

impl Kept {
    /// Starts a keeper whose servers die at these points, a line each.
    pub(crate) fn start(deaths: &[&str]) -> Self {
        Self::with(deaths, &[])
    }

    /// Starts a keeper whose servers also have a unit, which comes up after these milliseconds.
    pub(crate) fn with(deaths: &[&str], units: &[&str]) -> Self {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("iommud-kept-{}-{serial}", std::process::id());
        let place = std::env::temp_dir().join(name);
        fs::create_dir(&place).unwrap();
        let lines =
            |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        fs::write(place.join("die"), lines(deaths)).unwrap();
        fs::write(place.join("unit"), lines(units)).unwrap();
        let keeper = process(&std::env::current_exe().unwrap(), KEEPER, &place).spawn().unwrap();
        Self { place, keeper }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.place.join("socket")
    }

    /// Connects a client. The first one waits until a server serves.
    pub(crate) fn connect(&self) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC;
        until("a server serves", || {
            let kind = SocketType::SEQPACKET;
            let socket = socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
            let address = SocketAddrUnix::new(self.socket()).unwrap();
            connect(&socket, &address).ok().map(|()| socket)
        })
    }

    /// The process of the last server.
    pub(crate) fn server(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.place.join("server")).ok()?;
        Pid::from_raw(text.parse().unwrap())
    }

    /// Kills the server. Returns when the next process has been started.
    pub(crate) fn kill_server(&self) {
        let old = self.server().unwrap();
        kill_process(old, Signal::KILL).unwrap();
        until("the next server", || self.server().filter(|new| *new != old));
    }

    /// Whether servers that are started from now on serve.
    pub(crate) fn hold(&self, hold: bool) {
        let path = self.place.join("hold");
        if hold { fs::write(path, "").unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// How often a claim of the missing device was carried out, by all servers.
    pub(crate) fn looks(&self) -> usize {
        fs::read(self.place.join("looks")).map_or(0, |bytes| bytes.len())
    }

    /// Open descriptors of the keeper.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.keeper.id())).unwrap().count()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The server ends with it.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// Tries until there is a result.
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
