//! Clients with many mapped buffers that end while their server is dead: each unmap is a request of its own, and
//! whoever waits for an answer that nobody gives waits for ever.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iommu_client::{BufferOptions, Connection, Device};

use crate::Seen;
use crate::restart::{SIGKILL, back, server};

/// Buffers that a client has mapped.
const BUFFERS: usize = 40;

/// Devices of nobody's that clients claim: each of them has its own.
const DEVICES: [&str; 2] = ["0000--00--00.0", "0000--00--1f.0"];

/// How long a client may take to end once its server is dead.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a client ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Unmaps one buffer after the other.
    Itself,
    /// The kernel unmaps them.
    Killed,
}

/// Kills the server, and clients end at once, each in its way.
pub(crate) fn check() -> Seen {
    let mut waiting = Waiting::open()?;
    let mut said = Vec::new();
    for end in [End::Itself, End::Killed] {
        let mut clients = DEVICES
            .iter()
            .filter_map(|device| start(device).transpose())
            .collect::<Result<Vec<Child>, String>>()?;
        if clients.is_empty() {
            return Err("no device could be claimed".into());
        }
        let server = server()?.ok_or("not one keeper, one server and one that holds")?;
        libredox::call::kill(server, SIGKILL).map_err(|error| format!("kill {server}: {error}"))?;
        let killed = Instant::now();
        for client in &mut clients {
            drop(client.stdin.take());
            if end == End::Killed {
                client.kill().map_err(|error| format!("kill a client: {error}"))?;
            }
        }
        let longest = ended(&mut clients, killed).map_err(|error| waiting.print(error))?;
        let away = back(server, killed).map_err(|error| waiting.print(error))?;
        said.push(format!(
            "{} clients with {BUFFERS} buffers, {end:?}: gone after {} ms, the server back after {} ms",
            clients.len(),
            longest.as_millis(),
            away.as_millis()
        ));
    }
    Ok(said.join("; "))
}

/// A client that has its buffers; nothing when its device is not to be had.
fn start(device: &str) -> Result<Option<Child>, String> {
    let mut client = Command::new("/scheme/initfs/bin/redox-guest")
        .args(["mapped", device])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("mapped: {error}"))?;
    let output = client.stdout.as_mut().ok_or("mapped: no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).map_err(|error| format!("mapped: {error}"))?;
    match line.trim() {
        "ready" => Ok(Some(client)),
        "none" => client.wait().map(|_| None).map_err(|error| format!("mapped: {error}")),
        other => Err(format!("mapped: {other}")),
    }
}

/// Waits until all of them are gone.
fn ended(clients: &mut [Child], since: Instant) -> Result<Duration, String> {
    loop {
        let mut left = 0;
        for client in clients.iter_mut() {
            left += usize::from(client.try_wait().map_err(|e| format!("wait: {e}"))?.is_none());
        }
        match left {
            0 => return Ok(since.elapsed()),
            _ if since.elapsed() > PATIENCE => {
                return Err(format!("{left} clients wait after {} s", PATIENCE.as_secs()));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The task: maps its buffers, and unmaps them when its input ends.
pub(crate) fn client(device: &str) -> Result<(), String> {
    let say = |line: &str| {
        println!("{line}");
        std::io::stdout().flush().map_err(|error| format!("stdout: {error}"))
    };
    let connection = Connection::system().map_err(|error| format!("connect: {error}"))?;
    let Ok(session) = Device::open(&connection, device) else { return say("none") };
    let allocate = |_| session.allocate(4096, BufferOptions::default());
    let buffers = (0..BUFFERS).map(allocate).collect::<Result<Vec<_>, _>>();
    let buffers = buffers.map_err(|error| format!("allocate: {error}"))?;
    say("ready")?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).map_err(|error| format!("stdin: {error}"))?;
    drop(buffers);
    Ok(())
}

/// What the kernel says of who waits where. Opened beforehand: later a look-up of a name may wait itself.
struct Waiting([File; 2]);

impl Waiting {
    fn open() -> Result<Self, String> {
        let open = |path| File::open(path).map_err(|error| format!("{path}: {error}"));
        Ok(Self([open("/scheme/sys/block")?, open("/scheme/sys/context")?]))
    }

    /// Puts all of it on the console.
    fn print(&mut self, error: String) -> String {
        for file in &mut self.0 {
            let mut text = Vec::new();
            let read = file.rewind().and_then(|()| file.read_to_end(&mut text));
            match read {
                Ok(_) => String::from_utf8_lossy(&text)
                    .lines()
                    .for_each(|line| println!("@@log waits: {line}")),
                Err(error) => println!("@@log waits: {error}"),
            }
        }
        error
    }
}
