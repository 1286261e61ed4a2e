//! The story of the NVMe driver. Three controllers: one behind the unit, one on a bus that the unit does not
//! translate, and one behind the unit with requests of 400 ms each.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::field;
use crate::pci::Function;
use crate::process::{Process, Puppet, run, until};
use crate::report::{check, data, log, unchecked};
use crate::server::Server;

/// Vendor and device id of QEMU's controller.
const NVME: (u16, u16) = (0x1b36, 0x0010);

/// Time limit for one task of the driver.
const PATIENCE: Duration = Duration::from_secs(300);

/// Output file of the driver that is killed.
const OUTPUT: &str = "/tmp/killed.log";

/// An address that was never granted.
const FORBIDDEN: &str = "0xbad0000";

/// First word of a submission ring whose first command is a write (opcode 1, identifier 0) to namespace 1. QEMU's
/// controller has scatter-gather lists (bits 15:14 are 01b), which the driver uses for more than two pages.
const FIRST_WRITE: u64 = 1 << 32 | 1 << 14 | 1;

/// Seed of the pattern written by the next user of the dead driver's memory.
const REUSED: u64 = 20;

/// Memory for buffers in MiB. One client's share is a quarter, and has more pages than a driver uses.
const BUFFERS: &str = "240";

/// Most buffers that the next user allocates to get that memory, and further buffers that it allocates.
const MOST_BUFFERS: u64 = 60;
const MORE_BUFFERS: u64 = 6;

struct Story {
    server: Server,
    confined: String,
    slow: String,
    open: String,
    /// A device of another kind.
    edu: String,
}

/// Runs the story.
pub(crate) fn run_all() {
    let mut story = None;
    check(1, || {
        story = Some(begin()?);
        story.as_ref().context("no story")?.controllers()
    });
    let Some(story) = story else { return };
    let s = &story;
    check(2, || s.copy("1", "64M", "7"));
    check(3, || {
        let copied = s.copy("2", "16M", "9")?;
        let kept = nvme(&s.confined, &["read", "--length", "16M", "--pattern", "7"])?;
        Ok(format!("{copied}; of the first: {}, as it was", last(kept)))
    });
    check(4, || s.rates());
    check(5, || s.rogue());
    check(6, || s.kill());
    check(7, || s.next_instance());
    check(8, || s.late());
    check(9, || s.interrupts());
    check(10, || s.queues());
    check(11, || s.strict());
    check(12, || s.nothing_left());
}

/// Runs the driver on a controller. Returns its output if it succeeds.
fn nvme(device: &str, arguments: &[&str]) -> Result<String> {
    let (command, rest) = arguments.split_first().context("no command")?;
    let arguments = [&[*command, "--device", device], rest].concat();
    let (ended, output) = run("/bin/nvme", &arguments, PATIENCE)?;
    ensure!(ended == 0, "nvme {} ended with {ended}: {output}", arguments.join(" "));
    Ok(output)
}

/// Whether an error is this refusal.
fn is(error: &anyhow::Error, refusal: &str) -> bool {
    error.to_string().starts_with(refusal)
}

fn last(output: String) -> String {
    output.lines().last().unwrap_or_default().to_owned()
}

/// Unbinds the kernel's own driver before iommud starts.
fn begin() -> Result<Story> {
    let functions = Function::find(NVME.0, NVME.1)?;
    for function in functions.iter().filter(|function| function.has_driver()) {
        std::fs::write(function.path("driver/unbind"), &function.name).context("unbinding")?;
    }
    let names: Vec<String> = functions.iter().map(Function::scheme_name).collect();
    let [confined, slow, open] = <[String; 3]>::try_from(names)
        .map_err(|names| anyhow::anyhow!("controllers: {names:?}"))?;
    let edus = Function::find(crate::edu::EDU.0, crate::edu::EDU.1)?;
    let edu = edus.first().context("no edu device")?.scheme_name();
    Ok(Story { server: Server::start_with("compat", None, BUFFERS)?, confined, slow, open, edu })
}

impl Story {
    fn controllers(&self) -> Result<String> {
        let confinement = field(&self.server.text("status")?, "confinement")?;
        for (device, word) in [
            (&self.confined, ", confined"),
            (&self.slow, ", confined"),
            (&self.open, ", NOT CONFINED"),
        ] {
            let output = nvme(device, &["info"])?;
            ensure!(output.contains(word), "{output}");
            ensure!(output.contains("namespace 1: "), "{output}");
        }
        let output = nvme(&self.confined, &["info"])?;
        ensure!(output.contains("namespace 2: 4096 blocks of 4096 bytes"), "{output}");
        Ok(format!("confinement: {confinement}; {} is behind no unit", self.open))
    }

    fn copy(&self, namespace: &str, length: &str, pattern: &str) -> Result<String> {
        let range = ["--namespace", namespace, "--length", length, "--pattern", pattern];
        let written = nvme(&self.confined, &[&["write"], &range[..]].concat())?;
        let read = nvme(&self.confined, &[&["read"], &range[..]].concat())?;
        Ok(format!("{}; {}, compared", last(written), last(read)))
    }

    /// Runs the same driver in one process on a translated and on an untranslated controller. The rates are only
    /// reported, because they depend on the emulator. The check requires that the server did nothing meanwhile.
    fn rates(&self) -> Result<String> {
        nvme(&self.open, &["write", "--length", "64M", "--pattern", "7"])?;
        nvme(&self.open, &["read", "--length", "64M", "--pattern", "7"])?;
        let output = nvme(
            &self.confined,
            &["bench", "--against", &self.open, "--rounds", "1001", "--json"],
        )?;
        let lines =
            |start: &'static str| output.lines().filter_map(move |line| line.strip_prefix(start));
        ensure!(lines("bench: ").count() == 2, "{output}");
        lines("bench: ").for_each(log);
        lines("json: ").for_each(data);
        let idle = lines("server: ").filter(|line| line.ends_with(": 0 calls, 0 changes"));
        ensure!(idle.count() == 2, "what the server did: {output}");
        self.calls()?;
        Ok("translated against not translated, as above; the server did nothing meanwhile".into())
    }

    /// Reports the time of a map and unmap for a driver, compared with two queries. It is not judged.
    fn calls(&self) -> Result<()> {
        let mut driver = super::Story::driver(&self.edu)?;
        driver.tell("allocate 0 4096")?;
        let words = driver.tell("time-calls 0 401")?;
        let [pair, calls, ratio, low, high] = words.as_slice() else { bail!("{words:?}") };
        log(&format!(
            "map and unmap: {pair} ns against {calls} of two empty calls, ratio {ratio} (median of 401 pairs, half of them {low} to {high})"
        ));
        driver.tell("detach")?;
        driver.kill()
    }

    fn rogue(&self) -> Result<String> {
        let before = self.server.fault_lines()?;
        let output = nvme(&self.confined, &["rogue", "--iova", FORBIDDEN, "--namespace", "2"])?;
        let fault =
            output.lines().find(|line| line.starts_with("nvme: fault ")).context("no fault")?;
        ensure!(output.contains("nvme: reset"), "{output}");
        self.server.wait_fault(before, &self.confined)?;
        Ok(format!("{fault}; then {}", last(output.clone())))
    }

    /// The killed driver's memory is reused while its controller still has writes to complete.
    fn kill(&self) -> Result<String> {
        let arguments =
            ["write", "--device", &self.slow, "--length", "64M", "--depth", "8", "--loop"];
        let mut driver = Process::start("/bin/nvme", &arguments, Some(File::create(OUTPUT)?))?;
        let ring = until(Duration::from_secs(10), || {
            let found = self.server.memory()?.starting_with(FIRST_WRITE)?;
            Ok(found.first().copied())
        })?;
        let ring = ring.context("no write was sent")?;
        let before = self.server.fault_lines()?;
        driver.kill()?;
        let gone = until(Duration::from_secs(5), || {
            Ok((self.server.metric("sessions")? == 0).then_some(()))
        })?;
        gone.context("the dead driver's session stays")?;

        let mut next = Puppet::start()?;
        next.tell(&format!("claim {}", self.edu))?;
        let (mut taken, mut count) = (None, 0);
        while taken.is_none_or(|taken| count <= taken + MORE_BUFFERS) && count < MOST_BUFFERS {
            match next.ask(&format!("allocate {count} 4096")) {
                Err(error) if ["Full", "NoMemory", "Quota"].iter().any(|end| is(&error, end)) => {
                    break;
                }
                other => other?,
            };
            next.tell(&format!("fill {count} {REUSED}"))?;
            if self.server.memory()?.word(ring)? == crate::role::word(REUSED, 0) {
                taken = Some(count);
            }
            count += 1;
        }
        let taken =
            taken.with_context(|| format!("none of {count} buffers is the dead driver's"))?;
        std::thread::sleep(Duration::from_millis(1500));
        for index in 0..count {
            next.tell(&format!("check {index} {REUSED}"))?;
        }
        let fault = self.server.wait_fault(before, &self.slow)?;
        super::tells(&fault, "write", None)?;
        let reach = field(&self.server.text(&format!("devices/{}", self.slow))?, "reaches")?;
        ensure!(reach.starts_with("nothing"), "its device reaches {reach}");
        next.kill()?;
        Ok(format!(
            "its ring was buffer {taken} of {count} of the next driver, all untouched: {fault}"
        ))
    }

    /// The slow disk discards data and reads as zeros.
    fn next_instance(&self) -> Result<String> {
        nvme(&self.slow, &["write", "--length", "1M"])?;
        let file = "/tmp/read";
        let output = nvme(&self.slow, &["read", "--length", "1M", "--file", file])?;
        let read = std::fs::read(file)?;
        ensure!(read.len() == 1 << 20 && read.iter().all(|byte| *byte == 0), "not what is there");
        Ok(last(output))
    }

    /// Every request takes 400 ms on the slow controller. The driver's patience doubles after each late completion.
    fn late(&self) -> Result<String> {
        let range = ["--length", "64K", "--depth", "2"];
        let written = nvme(&self.slow, &[&["write", "--patience", "150"], &range[..]].concat())?;
        let sent = written.lines().filter(|line| line.contains("no completion within ")).count();
        ensure!(sent > 0, "nothing was late: {written}");
        let arguments =
            [&["write", "--device", &self.slow, "--patience", "20"], &range[..]].concat();
        let (ended, told) = run("/bin/nvme", &arguments, PATIENCE)?;
        ensure!(ended == 1, "ended with {ended}: {told}");
        let told = last(told);
        ensure!(told == "nvme: failed: no completion within 160 ms", "{told}");
        let first = written.lines().find(|line| line.contains("no completion within "));
        let first = first.unwrap_or_default();
        Ok(format!("{first}; {}; with 20 ms: {told}", last(written.clone())))
    }

    /// Uses the function's interrupt line through uio_pci_generic.
    fn interrupts(&self) -> Result<String> {
        let name = Function::from_scheme_name(&self.confined);
        let (ended, told) =
            run("/bin/nvme", &["info", "--device", &self.confined, "--interrupts"], PATIENCE)?;
        let polls = told.contains("interrupts: none to be had (unsupported): polling");
        ensure!(ended == 0 && polls, "without uio: {ended}: {told}");
        if !crate::setup::modules()? {
            unchecked("interrupts: this kernel came without the modules uio and uio_pci_generic");
            return Ok("not checked".into());
        }
        std::fs::write(name.path("driver_override"), "uio_pci_generic").context("override")?;
        std::fs::write("/sys/bus/pci/drivers/uio_pci_generic/bind", &name.name).context("bind")?;
        let count = || -> Result<u64> {
            let entry = std::fs::read_dir(name.path("uio"))?.next().context("no uio device")??;
            Ok(std::fs::read_to_string(entry.path().join("event"))?.trim().parse()?)
        };
        let before = count()?;
        let range = ["--length", "4M", "--pattern", "3", "--interrupts", "--depth", "1"];
        let written = nvme(&self.confined, &[&["write"], &range[..]].concat())?;
        let read = nvme(&self.confined, &[&["read"], &range[..]].concat())?;
        let came = count()? - before;
        // Of 32 writes and 32 reads, one at a time, many may complete before the driver sleeps.
        ensure!(came >= 4, "{came} interrupts: {written}; {read}");
        std::fs::write("/sys/bus/pci/drivers/uio_pci_generic/unbind", &name.name)?;
        Ok(format!("{}; {}, compared; {came} interrupts", last(written), last(read)))
    }

    /// A disk with 400 ms for each request processes the requests of many queues in parallel.
    fn queues(&self) -> Result<String> {
        let output = nvme(&self.slow, &["info", "--queues", "4", "--depth", "4"])?;
        ensure!(output.contains("16 at once in 4 queues"), "{output}");
        let range = ["write", "--length", "2M", "--queues", "4", "--depth", "4"];
        let started = std::time::Instant::now();
        let written = nvme(&self.slow, &range)?;
        // One after the other, 16 requests would take 6.4 s.
        let took = started.elapsed();
        ensure!(took < Duration::from_secs(4), "{took:?}: {written}");
        Ok(format!("16 requests of 400 ms in 4 queues: {}", last(written)))
    }

    /// What was written in one mode is read in another. The rates are only reported. The check requires that a pool
    /// makes no calls, and that the other modes do.
    fn strict(&self) -> Result<String> {
        let modes = ["pool", "transfer", "page-exact"];
        for (seed, (write, read)) in (30..).zip(modes.iter().zip(modes.iter().cycle().skip(1))) {
            // Transfers of three blocks, which do not fill their pages.
            let seed = format!("{seed}");
            let range = ["--length", "1M", "--size", "1536", "--pattern", &seed, "--confine"];
            nvme(&self.confined, &[&["write"], &range[..], &[write]].concat())?;
            nvme(&self.confined, &[&["read"], &range[..], &[read]].concat())?;
        }
        let table = crate::setup::option("iommud.table").unwrap_or_else(|| "short".into());
        let rounds = if table == "whole" { "301" } else { "31" };
        let output = nvme(
            &self.confined,
            &["bench", "--against", &self.open, "--table", &table, "--rounds", rounds, "--json"],
        )?;
        let lines =
            |start: &'static str| output.lines().filter_map(move |line| line.strip_prefix(start));
        lines("bench: ").for_each(log);
        lines("json: ").for_each(data);
        let (mut idle, mut busy) = (0, 0);
        for line in lines("server: confine ") {
            let quiet = line.ends_with(": 0 calls, 0 changes");
            ensure!(quiet == line.starts_with("pool,"), "what the server did: {line}");
            *if quiet { &mut idle } else { &mut busy } += 1;
        }
        ensure!(idle > 0 && busy == 2 * idle, "{output}");
        Ok(format!("1 MiB in transfers of 1536 bytes in each mode; {} rates", idle + busy))
    }

    fn nothing_left(&self) -> Result<String> {
        let left = until(Duration::from_secs(2), || {
            let metrics = self.server.metrics()?;
            let none = |name: &str| metrics.get(name) == Some(&0);
            Ok((none("sessions") && none("buffers")).then_some(()))
        })?;
        left.with_context(|| format!("{:?}", self.server.metrics()))?;
        Ok("no session, no buffer".into())
    }
}
