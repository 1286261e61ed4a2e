//! Clients with many mapped buffers that end while their server is dead. Each unmap is a request of its own. A client
//! whose request gets no reply would wait for ever.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iommu_client::{BufferOptions, Connection, Device};

use crate::Seen;
use crate::restart::{SIGKILL, back, server};

/// Buffers mapped by each client.
const BUFFERS: usize = 40;

/// Unused devices that the clients claim, one each.
const DEVICES: [&str; 2] = ["0000--00--00.0", "0000--00--1f.0"];

/// Time limit for a client's end after its server's death.
const PATIENCE: Duration = Duration::from_secs(20);

/// The way in which a client ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It unmaps one buffer after the other.
    Itself,
    /// It is killed, and the kernel unmaps the buffers.
    Killed,
}

/// Kills the server. The clients then end at once, in each of the two ways.
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

/// Starts a client and waits until it has its buffers. `None` when its device cannot be claimed.
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

/// Waits until all clients have ended.
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

/// The client's task: maps its buffers, and unmaps them when its input ends.
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

/// The kernel's list of blocked contexts. Opened beforehand, because a later look-up of a name may block too.
struct Waiting([File; 2]);

impl Waiting {
    fn open() -> Result<Self, String> {
        let open = |path| File::open(path).map_err(|error| format!("{path}: {error}"));
        Ok(Self([open("/scheme/sys/block")?, open("/scheme/sys/context")?]))
    }

    /// Prints the whole list on the console.
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
