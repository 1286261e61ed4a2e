//! A keeper whose servers fail while it waits for their replies.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libredox::call::{dup, getns, mkns, setns};

use crate::Seen;
use crate::fake::NAMES;

/// Plans of the fake servers: name, servers that run until one gets all it needs, and whether the keeper reaches its
/// time limit.
const PLANS: [(&str, usize, bool); 4] = [
    ("killed-at-held", 2, false),
    ("killed-at-give-up", 3, false),
    ("hung-at-held", 2, true),
    ("hung-at-give-up", 3, true),
];

/// The keeper's time limit for a reply, and an upper bound that includes starting processes on a busy host.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(40);

const SELF: &str = "/scheme/initfs/bin/redox-guest";

/// Runs every plan at the same time, each with a name space of its own.
pub(crate) fn check() -> Seen {
    let start = |(plan, ..): (&str, usize, bool)| {
        Command::new(SELF)
            .args(["keeper", plan])
            .stdin(Stdio::inherit())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{SELF}: {error}"))
    };
    let started: Vec<Child> = PLANS.into_iter().map(start).collect::<Result<_, _>>()?;
    let mut seen = Vec::new();
    for child in started {
        let output = child.wait_with_output().map_err(|error| format!("wait: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        seen.push((output.status.success(), said));
    }
    let text: Vec<&str> = seen.iter().map(|(_, said)| said.as_str()).collect();
    let text = text.join("; ");
    if seen.iter().all(|(good, _)| *good) { Ok(text) } else { Err(text) }
}

/// Runs one plan.
pub(crate) fn run(plan: &str) -> Result<(), String> {
    let ended = try_run(plan);
    match &ended {
        Ok(said) => println!("{plan}: {said}"),
        Err(error) => println!("{plan}: {error}"),
    }
    ended.map(drop)
}

fn try_run(plan: &str) -> Seen {
    let (_, servers, patient) =
        PLANS.into_iter().find(|(name, ..)| *name == plan).ok_or("no such plan")?;
    // Schemes can be created only in the first name space.
    let names = getns().and_then(|names| dup(names, b"")).map_err(|error| error.to_string())?;
    mkns(&[b"*".as_slice().into()]).and_then(setns).map_err(|error| format!("mkns: {error}"))?;
    // The C library would ask the scheme itself.
    getns()
        .and_then(|names| Ok(syscall::unlinkat(names, "/scheme/iommu", 0)?))
        .map_err(|error| format!("its name: {error}"))?;
    // Plays init, which keeps the other end.
    let (_init, notify) = io::pipe().map_err(|error| format!("pipe: {error}"))?;
    let notify = usize::try_from(notify.as_raw_fd()).map_err(|error| error.to_string())?;
    let notify = dup(notify, b"").map_err(|error| error.to_string())?;
    let started = Instant::now();
    let mut keeper = Command::new(SELF)
        .args(["keep", plan])
        .env("INIT_NOTIFY", notify.to_string())
        .env(NAMES, names.to_string())
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("keeper: {error}"))?;
    let status = loop {
        if let Some(status) = keeper.try_wait().map_err(|error| format!("wait: {error}"))? {
            break status;
        }
        if started.elapsed() > MOST {
            let _ = keeper.kill();
            return Err(format!("the keeper still waits after {} s", MOST.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let took = started.elapsed();
    let mut said = String::new();
    let mut output = keeper.stdout.take().ok_or("no output")?;
    output.read_to_string(&mut said).map_err(|error| format!("output: {error}"))?;
    let said: Vec<&str> = said.lines().filter(|line| line.starts_with("server")).collect();
    // Each server learns of the memory of every server before it.
    let right: Vec<String> = (0..servers).map(|before| format!("server after {before}")).collect();
    let detail = format!("{status}: {} within {took:.1?}", said.join(", "));
    let in_time = if patient { took >= PATIENCE } else { took < PATIENCE };
    if status.success() && said == right && in_time { Ok(detail) } else { Err(detail) }
}
