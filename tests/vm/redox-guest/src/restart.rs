//! The server is killed repeatedly, under load, and the next one takes over.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use iommu_client::{BufferOptions, Connection, Device, Error};

use crate::Seen;
use crate::disk::Disk;
use crate::drivers;

/// Time limit for the next server to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Deaths of the server while drivers are working.
const KILLS: usize = 3;

/// Deaths of the server while its name is looked up.
const MORE: usize = 30;

/// Bytes of a server's memory.
const SERVER: usize = 12 << 20;

/// Processes that end with a server: the server, the holder of its memory, and the process that replies for it.
const ENDED: u64 = 3;

/// Bytes that may be missing after a death, besides the kernel's own loss for the same number of other ended
/// processes.
const MOST_LOST: u64 = 32 << 10;

/// Processes that constantly look up names.
const READERS: usize = 2;

/// Bytes of memory written after each death, which the kernel may take from anywhere.
const CHURN: usize = 48 << 20;

/// The number of SIGKILL, the same on every Unix and on Redox.
pub(crate) const SIGKILL: u32 = 9;

/// A byte that nothing else writes.
const CANARY: u8 = 0x5c;

/// Kills the server while a driver does DMA, a session of this process is open, and the disk is read.
pub(crate) fn check(device: &str) -> Seen {
    let mut disk = Disk::open()?;
    disk.read()?;
    let mut told = Vec::new();
    let mut longest = Duration::ZERO;
    let free = free()?;
    for _ in 0..KILLS {
        let (words, away) = once(device, &mut disk)?;
        told.push(words);
        longest = longest.max(away);
    }
    let loaded = free.saturating_sub(self::free()?);
    let more = looked_up()?;
    let text =
        Connection::system().and_then(|all| all.text("status")).map_err(|e| e.to_string())?;
    if !text.contains("enabled") {
        return Err(text);
    }
    let next = drivers::works(device, ", confined")?;
    Ok(format!(
        "{KILLS} times; away for at most {} ms; {}; {loaded} bytes lost; {more}; the next: {next}",
        longest.as_millis(),
        told.join(", ")
    ))
}

/// Kills the server while the process that looks up names for others waits for its reply.
fn looked_up() -> Seen {
    let mut readers =
        (0..READERS).map(|_| task("reader")).collect::<Result<Vec<Child>, String>>()?;
    let mut copied = Copied::start()?;
    let mut longest = Duration::ZERO;
    let free = self::free()?;
    for _ in 0..MORE {
        let server = server()?.ok_or("not one keeper, one server and one that holds")?;
        libredox::call::kill(server, SIGKILL).map_err(|error| format!("kill {server}: {error}"))?;
        longest = longest.max(back(server, Instant::now())?);
    }
    let lost = free.saturating_sub(self::free()?);
    for reader in &mut readers {
        reader.kill().and_then(|()| reader.wait()).map_err(|error| format!("reader: {error}"))?;
    }
    let copied = copied.ask()?;
    let free = self::free()?;
    for _ in 0..MORE {
        idler()?;
    }
    let control = free.saturating_sub(self::free()?);
    let deaths = u64::try_from(MORE).unwrap_or(1);
    let (each, process) = (lost / deaths, control / deaths);
    let detail = format!(
        "{MORE} times while names are looked up, away for at most {} ms, each costs {each} bytes; a process that ends costs {process}; {copied}",
        longest.as_millis()
    );
    if each > ENDED * process + MOST_LOST { Err(detail) } else { Ok(detail) }
}

/// Starts this program with one of its tasks.
fn task(task: &str) -> Result<Child, String> {
    Command::new("/scheme/initfs/bin/redox-guest")
        .arg(task)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{task}: {error}"))
}

/// A process with a copied name space.
struct Copied {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Copied {
    fn start() -> Result<Self, String> {
        let mut process = Command::new("/scheme/initfs/bin/redox-guest")
            .arg("copied")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("copied: {error}"))?;
        let output = process.stdout.take().ok_or("copied: no output")?;
        let mut this = Self { process, lines: BufReader::new(output) };
        this.line().map(|_| this)
    }

    fn line(&mut self) -> Seen {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(|error| format!("copied: {error}"))?;
        Ok(line.trim().to_owned())
    }

    /// Returns the process's answer after its input has ended.
    fn ask(&mut self) -> Seen {
        drop(self.process.stdin.take());
        let (said, status) = (self.line()?, self.process.wait());
        match status {
            Ok(status) if status.success() => Ok(said),
            other => Err(format!("{said}: {other:?}")),
        }
    }
}

/// The task: connects in a name space of its own, and again when its input ends.
pub(crate) fn copied() -> Result<(), String> {
    let all = libredox::call::mkns(&[b"*".as_slice().into()]);
    all.and_then(libredox::call::setns).map_err(|error| format!("mkns: {error}"))?;
    let before = Connection::system().and_then(|all| all.text("status"));
    before.map_err(|error| format!("before: {error}"))?;
    println!("ready");
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).map_err(|error| format!("stdin: {error}"))?;
    match Connection::system() {
        Err(Error::Disconnected) => {
            println!("a copied name space names nobody: told that it is gone")
        }
        Ok(_) => return Err("a copied name space names the next server".into()),
        Err(other) => return Err(format!("a copied name space: {other}")),
    }
    Ok(())
}

/// Starts a process with as much memory as a server, and kills it.
fn idler() -> Result<(), String> {
    let mut process = task("idle")?;
    let mut ready = [0];
    let output = process.stdout.as_mut().ok_or("idle: no output")?;
    output
        .read_exact(&mut ready)
        .and_then(|()| process.kill())
        .and_then(|()| process.wait().map(drop))
        .map_err(|error| format!("idle: {error}"))
}

/// The task: looks a name up repeatedly.
pub(crate) fn read_on() -> ! {
    loop {
        let _ = fs::read_to_string("/scheme/iommu/status");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The task: idles with as much memory as a server.
pub(crate) fn idle() -> ! {
    let memory = vec![0xff_u8; SERVER];
    println!("{} bytes", memory.len());
    loop {
        std::thread::sleep(PATIENCE);
    }
}

fn once(device: &str, disk: &mut Disk) -> Result<(String, Duration), String> {
    let say = |what: &str| {
        let what = what.to_owned();
        move |error: Error| format!("{what}: {error}")
    };
    let connection = Connection::system().map_err(say("connect"))?;
    let session = Device::open(&connection, "0000--00--00.0").map_err(say("host bridge"))?;
    let mut buffer = session.allocate(65536, BufferOptions::default()).map_err(say("allocate"))?;
    buffer.write(0, &[CANARY; 65536]).map_err(say("write"))?;
    let driver = driver(device)?;
    let server = server()?.ok_or("not one keeper, one server and one that holds")?;
    libredox::call::kill(server, SIGKILL).map_err(|error| format!("kill {server}: {error}"))?;
    let started = Instant::now();
    // The dead server's memory must not be free: memory taken now must not overwrite its tables.
    let churn = vec![0xff_u8; CHURN];
    for _ in 0..16 {
        disk.read().map_err(|error| format!("with the server dead: {error}"))?;
    }
    drop(churn);
    let told = match session.query() {
        Err(Error::Disconnected) => "told that it is gone",
        other => return Err(format!("a session of a dead server says {other:?}")),
    };
    let away = back(server, started)?;
    let mut found = vec![0; 65536];
    buffer.read(0, &mut found).map_err(say("read"))?;
    if let Some(at) = found.iter().position(|byte| *byte != CANARY) {
        return Err(format!("byte {at} of a buffer of the dead server's changed"));
    }
    drop((buffer, session));
    let ended = driver.wait_with_output().map_err(|error| format!("rogue: {error}"))?;
    let words = String::from_utf8_lossy(&ended.stdout).into_owned();
    if !words.contains("iommud is not there") {
        return Err(format!("the driver was told something else: {words}"));
    }
    let connection = Connection::system().map_err(say("connect again"))?;
    let text = drivers::text(&connection, device)?;
    if !text.contains("reaches: nothing: its owner ended while it was attached") {
        return Err(format!("what was driven is not cut off: {text}"));
    }
    drivers::works(device, ", confined")?;
    disk.read()?;
    Ok((told.into(), away))
}

/// Starts a driver that copies and compares until it fails.
fn driver(device: &str) -> Result<Child, String> {
    let mut driver = Command::new(drivers::ROGUE)
        .args(["--device", device, "--loop"])
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("rogue: {error}"))?;
    std::thread::sleep(Duration::from_millis(600));
    match driver.try_wait() {
        Ok(None) => Ok(driver),
        other => Err(format!("the driver ended early: {other:?}")),
    }
}

/// Waits for the next server. Returns the time since `since`.
pub(crate) fn back(dead: usize, since: Instant) -> Result<Duration, String> {
    while since.elapsed() < PATIENCE {
        // Not by a `File`: it does not tell the C library that a descriptor of a dead scheme is closed.
        let status = Connection::system().and_then(|all| all.text("status"));
        let alive = server()?.is_some_and(|server| server != dead);
        if alive && status.is_ok_and(|status| status.contains("enabled")) {
            return Ok(since.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("no next server within {} s", PATIENCE.as_secs()))
}

/// Returns the server, when iommud has its full number of processes. The keeper is the oldest, the next one holds the
/// memory, and the last one is the server. The holder of a dead server's memory ends once that memory is given up.
pub(crate) fn server() -> Result<Option<usize>, String> {
    let path = "/scheme/sys/context";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let iommud = |line: &str| {
        let mut words = line.split_whitespace();
        let (number, name) = (words.next()?.parse().ok()?, words.last()?);
        let dead = line.split_whitespace().nth(3)?.contains('Z');
        (name.ends_with("iommud") && !dead).then_some(number)
    };
    let mut found: Vec<usize> = text.lines().filter_map(iommud).collect();
    found.sort_unstable();
    Ok(match *found {
        [_, _, server] => Some(server),
        _ => None,
    })
}

/// Returns the machine's free memory in bytes.
fn free() -> Result<u64, String> {
    let memory = fs::File::open("/scheme/memory/zeroed").map_err(|error| error.to_string())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&memory);
    let number = usize::try_from(number).map_err(|error| error.to_string())?;
    let found = libredox::call::fstatvfs(number).map_err(|error| error.to_string())?;
    Ok(found.f_bavail.saturating_mul(4096))
}
