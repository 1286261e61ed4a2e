//! Many processes that start and end at random.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iommu_client::platform::linux::pci;
use iommu_client::{BufferOptions, Connection, Device, Refusal};

use super::Story;
use crate::edu::Edu;
use crate::pci::Function;
use crate::process::{Process, until};
use crate::role::pattern;

const PROCESSES: usize = 16;
const TIME: Duration = Duration::from_secs(20);
/// The average interval between kills.
const PAUSE: Duration = Duration::from_millis(150);

/// Numbers of the text `metrics` that must return to their old values once all processes are gone.
const SETTLE: [&str; 9] = [
    "clients",
    "sessions",
    "sessions_attached",
    "groups_claimed",
    "domains",
    "buffers",
    "buffer_bytes",
    "mappings",
    "table_frames",
];

/// A small pseudorandom generator (xorshift64, Marsaglia 2003).
pub(super) struct Random(pub(super) u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap_or(0) % limit.max(1)
    }
}

/// Check 12.
pub(super) fn check(story: &Story) -> Result<String> {
    let server = story.server()?;
    let before = server.metrics()?;
    let devices = [story.first.clone(), story.other.clone(), story.legacy_name()];
    let mut random = Random(0x5eed_1234_abcd_0001);
    let mut children = Vec::new();
    let mut started = 0;
    for _ in 0..PROCESSES {
        children.push(spawn(&mut started, &devices)?);
    }
    let (end, mut killed, mut finished) = (Instant::now() + TIME, 0_usize, 0_usize);
    while Instant::now() < end {
        std::thread::sleep(PAUSE.mul_f64(random.below(1000) as f64 / 500.0));
        let victim = random.below(PROCESSES);
        for (index, child) in children.iter_mut().enumerate() {
            match child.process.ended()? {
                Some(status) if status.success() => finished += 1,
                Some(status) => bail!("{}: {status}: {}", child.number, child.output()?),
                None if index == victim => {
                    child.process.kill()?;
                    killed += 1;
                }
                None => continue,
            }
            *child = spawn(&mut started, &devices)?;
        }
    }
    drop(children);
    settle(story, &before)?;
    let (calls, faults) = (
        server.metric("calls")? - get(&before, "calls")?,
        server.metric("faults")? - get(&before, "faults")?,
    );
    // A DMA under way when its driver is killed is the only acceptable cause of a fault.
    ensure!(faults <= killed as u64, "{faults} faults, but only {killed} killed");
    let rounds = rounds(started)?;
    ensure!(rounds >= 10 && killed >= 10, "only {rounds} rounds of DMA, {killed} killed");
    Ok(format!(
        "{started} processes, {killed} killed, {finished} done, {rounds} rounds of DMA, {calls} calls, {faults} \
         faults of killed drivers"
    ))
}

struct Child {
    number: usize,
    process: Process,
}

impl Child {
    fn output(&self) -> Result<String> {
        Ok(std::fs::read_to_string(output(self.number))?)
    }
}

fn output(number: usize) -> String {
    format!("/tmp/churn-{number}")
}

fn spawn(started: &mut usize, devices: &[String]) -> Result<Child> {
    let number = *started;
    *started += 1;
    let seed = number.to_string();
    let mut arguments = vec!["churn", seed.as_str()];
    arguments.extend(devices.iter().map(String::as_str));
    let file = File::create(output(number))?;
    Ok(Child { number, process: Process::start("/init", &arguments, Some(file))? })
}

/// Counts the rounds that the processes finished: one line each.
fn rounds(started: usize) -> Result<usize> {
    let mut sum = 0;
    for number in 0..started {
        sum += std::fs::read_to_string(output(number))?.lines().count();
    }
    Ok(sum)
}

fn get(metrics: &BTreeMap<String, u64>, name: &str) -> Result<u64> {
    metrics.get(name).copied().with_context(|| format!("no metric {name}"))
}

/// Returns one number of the text `metrics`.
pub(super) fn get_metric(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no metric {name}"))?.parse().context("a metric is no number")
}

fn settle(story: &Story, before: &BTreeMap<String, u64>) -> Result<()> {
    let server = story.server()?;
    let mut last = String::new();
    let settled = until(Duration::from_secs(3), || {
        let now = server.metrics()?;
        for name in SETTLE {
            let (was, is) = (get(before, name)?, get(&now, name)?);
            if was != is {
                last = format!("{name} was {was}, is {is}");
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    settled.with_context(|| format!("not as before: {last}"))
}

/// The work of each process, repeated: claims a device, attaches it, allocates, copies by DMA, checks for faults,
/// releases the device. `Err` reports a defect. A refusal because another process was faster is none.
pub(crate) fn churn(seed: u64, devices: &[String]) -> Result<()> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let connection = Connection::system()?;
    for round in 0..1 + random.below(8) {
        let name = devices.get(random.below(devices.len())).context("no device")?;
        let device = match Device::open(&connection, name) {
            Ok(device) => device,
            Err(error) if error.refusal() == Some(Refusal::NotOwner) => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(error) => return Err(error).context("claim"),
        };
        copy(&device, random.next()).with_context(|| format!("round {round} on {name}"))?;
        println!("round {round} on {name}");
    }
    Ok(())
}

/// Attaches, copies by DMA to the device and back, compares, and detaches.
pub(super) fn copy(device: &Device, seed: u64) -> Result<()> {
    let function = pci::Function::open(device.address())?;
    let edu = Edu::new(Function::from_scheme_name(&device.address().to_string()))?;
    edu.wait()?;
    let permission = device.attach().context("attach")?;
    let mut buffer = device.allocate(8192, BufferOptions::default()).context("allocate")?;
    function.enable_bus_mastering(&permission)?;
    let bytes = pattern(seed, 256);
    buffer.write(0, &bytes)?;
    let there = edu.read_memory(buffer.iova(), 256);
    let back = there.and_then(|()| edu.write_memory(buffer.iova() + 4096, 256));
    function.disable_bus_mastering()?;
    back?;
    let mut found = vec![0; bytes.len()];
    buffer.read(4096, &mut found)?;
    ensure!(found == bytes, "wrong data");
    if let Some(fault) = device.next_fault()? {
        bail!("a fault: {fault}");
    }
    buffer.unmap().context("unmap")?;
    drop(buffer);
    device.detach(permission).context("detach")?;
    Ok(())
}
