//! The story on a machine with a unit. Three edu devices: one for the drivers of each check, one whose driver works
//! undisturbed throughout, and one with a legacy driver, which uses bus addresses.

mod churn;
mod confinement;
mod death;
mod ending;
mod explained;
mod hotplug;
mod kills;
mod legacy;
mod nvme;
mod open;
mod ownership;
mod replayed;
mod secrecy;
mod stopped;
mod table;
mod worker;

pub(crate) use churn::churn;
pub(crate) use hotplug::run as run_hot_plug;
pub(crate) use kills::run as run_kills;
pub(crate) use nvme::run_all as run_nvme;
pub(crate) use open::run as run_without_unit;
pub(crate) use table::run as run_with_damaged_table;
pub(crate) use worker::main as work;

use std::fs::File;

use anyhow::{Context, Result, ensure};

use crate::edu::{EDU, Edu};
use crate::memory::HUGE_PAGE;
use crate::pci::Function;
use crate::process::{Process, Puppet, run};
use crate::report::{check, log, unchecked};
use crate::server::Server;
use crate::setup::emulator;
use crate::unit::Family;

use std::time::Duration;

/// Time limit for one task of a driver.
const PATIENCE: Duration = Duration::from_secs(20);

/// Output file of the undisturbed driver.
const OTHER_OUTPUT: &str = "/tmp/other.log";

/// State shared by the checks.
pub(crate) struct Story {
    server: Option<Server>,
    /// The wire logs of ended servers, each with that server's memory: first byte and size.
    past: Vec<(String, Vec<(u64, u64)>)>,
    /// iommud's name for the first device.
    first: String,
    /// The other driver's device.
    other: String,
    /// The device with a legacy driver.
    legacy: Edu,
    other_driver: Option<Process>,
    /// An address that a client received.
    seen_iova: u64,
    /// Addresses in the server's memory that checks made devices access. Fault records contain them.
    asked: Vec<u64>,
    /// What `iommuctl` said, to be shown at the end.
    told: Vec<String>,
}

impl Story {
    fn new() -> Result<Self> {
        let mut functions = Function::find(EDU.0, EDU.1)?;
        ensure!(functions.len() == 3, "edu devices: {functions:?}");
        // The device on a bus of its own, where the machine has one; else the middle one.
        let apart = functions.iter().position(|function| !function.name.starts_with("0000:00:"));
        let other = functions.remove(apart.unwrap_or(1)).scheme_name();
        let legacy = Edu::open(functions.remove(1))?;
        let first = functions.remove(0).scheme_name();
        Ok(Self {
            server: None,
            past: Vec::new(),
            first,
            other,
            legacy,
            other_driver: None,
            seen_iova: 0,
            asked: Vec::new(),
            told: Vec::new(),
        })
    }

    /// Starts iommud.
    fn serve(&mut self, policy: &str) -> Result<()> {
        self.server = Some(Server::start(policy, Some(&self.wire_log()))?);
        Ok(())
    }

    /// Stops iommud with SIGTERM.
    fn stop(&mut self) -> Result<()> {
        let server = self.server.take().context("iommud does not run")?;
        let memory = server.memory()?;
        let pages = memory.pages().iter().map(|page| (page.physical, HUGE_PAGE as u64));
        self.past.push((self.wire_log(), pages.collect()));
        server.stop()
    }

    /// The wire log of the running server, or of the next one.
    fn wire_log(&self) -> String {
        format!("/tmp/wire-{}.log", self.past.len())
    }

    fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("iommud does not run")
    }

    /// iommud's name for the legacy device.
    fn legacy_name(&self) -> String {
        self.legacy.function.scheme_name()
    }

    /// Starts a driver of the other device that copies and compares until it is killed.
    fn start_other(&mut self) -> Result<()> {
        let arguments = ["--device", &self.other, "--loop"];
        let output = File::create(OTHER_OUTPUT)?;
        self.other_driver = Some(Process::start("/bin/rogue", &arguments, Some(output))?);
        Ok(())
    }

    /// Starts a puppet that has claimed and attached this device.
    fn driver(device: &str) -> Result<Puppet> {
        let mut driver = Puppet::start()?;
        driver.tell(&format!("claim {device}"))?;
        driver.tell("attach")?;
        Ok(driver)
    }
}

/// Runs edud on a device. Returns its output if it ends with `code`.
fn edud(device: &str, code: i32) -> Result<String> {
    let (ended, output) = run("/bin/edud", &["--device", device], PATIENCE)?;
    ensure!(ended == code, "edud ended with {ended}: {output}");
    Ok(output)
}

/// Runs a task of the rogue on a device. Returns its output if it succeeds.
fn rogue(device: &str, task: &[&str]) -> Result<String> {
    let arguments = [&["--device", device], task].concat();
    let (ended, output) = run("/bin/rogue", &arguments, PATIENCE)?;
    ensure!(ended == 0, "rogue {} ended with {ended}: {output}", task.join(" "));
    Ok(output)
}

/// The last known version of QEMU whose amd-iommu records neither address nor access of a fault.
const RECORDS_NOTHING: (u32, u32) = (11, 1);

/// Checks that a fault reports access and address (if known). If the emulator records neither, the fault must report
/// them as unknown, and the report marks them as unchecked.
fn tells(fault: &str, access: &str, address: Option<u64>) -> Result<()> {
    if Family::of_machine() == Family::AmdVi && emulator()? <= RECORDS_NOTHING {
        ensure!(fault.contains(" access at an unknown iova: "), "made up: {fault}");
        unchecked("address and access of a fault: this emulator's records have none");
        return Ok(());
    }
    let told = address.map_or(" ".into(), |address| format!("{address:#x}: "));
    ensure!(fault.contains(&format!(" {access} at ")) && fault.contains(&told), "{fault}");
    Ok(())
}

/// Returns the value of the line that starts with `label: `.
fn field(text: &str, label: &str) -> Result<String> {
    let value = |line: &str| Some(line.strip_prefix(label)?.strip_prefix(": ")?.to_owned());
    text.lines().find_map(value).with_context(|| format!("no line \"{label}: \" in: {text}"))
}

/// Runs the whole story.
pub(crate) fn run_with_unit() {
    let mut story = match Story::new() {
        Ok(story) => story,
        Err(error) => return log(&format!("{error:#}")),
    };
    let s = &mut story;
    check(1, || {
        s.serve("compat")?;
        legacy::status(s)
    });
    check(2, || legacy::works(s));
    check(3, || legacy::attacks(s));
    check(4, || confinement::edud_works(s));
    check(5, || confinement::never_granted(s));
    check(6, || confinement::others_buffer(s));
    check(7, || confinement::unmapped(s));
    check(8, || ownership::refused(s));
    check(9, || death::kill_in_dma(s));
    check(10, || ownership::undisturbed(s));
    check(11, || ending::strict(s));
    check(12, || churn::check(s));
    check(13, || ending::stop(s));
    check(14, || explained::explained(s));
    // These come last, when logs and trace are complete.
    check(15, || secrecy::search(s));
    check(16, replayed::replayed);
    s.told.iter().for_each(|line| log(line));
}
