//! `xtask demo`: the story in a Linux guest.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::guest::{self, Parts, Scenario};
use crate::kernel::{self, Kernel};
use crate::monitor::Monitor;
use crate::options::{DemoOptions, Iommu, Story};
use crate::qemu::{End, show_logs};
use crate::report::Report;
use crate::{build, disks};

/// Time limit for the story, which takes about a minute.
const DEADLINE: Duration = Duration::from_secs(300);

/// Time allowed for each kill.
const PER_KILL: Duration = Duration::from_secs(5);

/// Time allowed for the whole table of the NVMe driver's rates.
const WHOLE_TABLE: Duration = Duration::from_secs(1200);

/// Lines of each log printed after a failure.
const LOG_TAIL: usize = 30;

/// Runs the demo. Returns whether every check passed.
///
/// # Errors
/// The guest could not be built or started.
pub(crate) fn run(options: &DemoOptions) -> Result<bool> {
    let (passed, failed, unchecked) = run_counted(options)?;
    // The last line is the same for every machine. Unchecked properties get a line of their own.
    if unchecked > 0 {
        println!("{unchecked} not checked on this machine");
    }
    println!("demo: {passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// Runs the demo like [`run`], without the closing line. Returns the numbers of passed, failed and unchecked checks.
///
/// # Errors
/// The guest could not be built or started.
pub(crate) fn run_counted(options: &DemoOptions) -> Result<(usize, usize, usize)> {
    let report = tell(options)?;
    let (passed, failed) = report.counts();
    Ok((passed, failed, report.unchecked().len()))
}

/// Runs the demo like [`run`], without the closing line. Returns the guest's report.
///
/// # Errors
/// The guest could not be built or started.
pub(crate) fn tell(options: &DemoOptions) -> Result<Report> {
    let scenario = match (options.story, options.iommu) {
        (Story::Machine, _) => Scenario::Machine,
        (Story::DamagedTable, _) => Scenario::Table,
        (Story::Kills(_), _) => Scenario::Kills,
        (Story::Groups, _) => Scenario::Groups,
        (Story::Nvme, _) => Scenario::Nvme,
        (Story::HotPlug, _) => Scenario::HotPlug,
        (Story::Whole, Iommu::Intel) => Scenario::Intel,
        (Story::Whole, Iommu::Amd) => Scenario::Amd,
        (Story::Whole, Iommu::None) => Scenario::None,
    };
    let (words, more) = match options.story {
        Story::Kills(kills) => (format!("iommud.kills={kills}"), PER_KILL * kills),
        Story::Nvme if options.whole_table => ("iommud.table=whole".into(), WHOLE_TABLE),
        _ => (String::new(), Duration::ZERO),
    };
    let deadline = DEADLINE + more;
    let started = Instant::now();
    let emulator = options.qemu.get()?;
    let parts = prepare(scenario, options.kernel.clone(), options.measured, &[])?;
    println!("set up in {:.1} s", started.elapsed().as_secs_f32());

    let (iommu, mode) = (options.iommu, options.caching_mode);
    let mut machine = guest::machine(&parts, iommu, mode, deadline);
    guest::start(&mut machine, scenario, &words, &emulator.number()?);
    let record = match scenario {
        Scenario::Kills => guest::record_translation(&mut machine, &parts, iommu),
        _ => PathBuf::new(),
    };
    if scenario == Scenario::Nvme {
        disks::add(&mut machine, &parts)?;
    }
    let monitor =
        (scenario == Scenario::HotPlug).then(|| Monitor::add(&mut machine, &parts.directory));
    println!("booting: {}, {}", emulator.version()?, describe(options));
    let started = Instant::now();
    let mut report = Report::new(scenario.checks());
    let end = machine.run(&emulator, |line| {
        match monitor.as_ref().map_or(Ok(false), |monitor| monitor.obey(line)) {
            Ok(true) => return,
            Ok(false) => {}
            // The action that the guest waits for does not happen, so its check fails.
            Err(error) => println!("{error:#}"),
        }
        if let Some(text) = report.take(line) {
            println!("{text}");
        }
    })?;
    println!("ran for {:.1} s", started.elapsed().as_secs_f32());
    if let Some(file) = &options.capture {
        std::fs::write(file, report.data().join("\n") + "\n")
            .with_context(|| format!("writing {}", file.display()))?;
    }
    if scenario == Scenario::Kills {
        println!("{}", translation(&mut report, scenario, iommu, &record));
    }
    conclude(&mut report, end, &parts, options)?;
    Ok(report)
}

/// Reports the emulator's record of translation.
fn translation(report: &mut Report, scenario: Scenario, iommu: Iommu, record: &Path) -> String {
    let number = scenario.checks().iter().position(|title| *title == guest::TRANSLATION_STAYS_ON);
    let number = number.map_or(0, |index| index + 1);
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let line = match guest::stayed_on(&text, iommu) {
        Ok(()) => format!("@@ok {number} | on once"),
        Err(what) => format!("@@fail {number} | {what}"),
    };
    report.take(&line).unwrap_or_default()
}

/// Builds what a guest is booted from. `programs` are put beside the project's own.
///
/// # Errors
/// The guest could not be built.
pub(crate) fn prepare(
    scenario: Scenario,
    kernel: Option<PathBuf>,
    measured: bool,
    programs: &[&Path],
) -> Result<Parts> {
    let other = |image| Ok(Kernel { image, modules: Vec::new() });
    let kernel = kernel.map_or_else(kernel::stock, other)?;
    let binaries = build::linux_guest(measured)?;
    let directory = guest::directory(scenario.name())?;
    let initramfs = directory.join("initramfs.cpio");
    guest::initramfs(&binaries, programs, &kernel.modules, &initramfs)?;
    Ok(Parts { kernel: kernel.image, initramfs, directory })
}

fn describe(options: &DemoOptions) -> String {
    match (options.iommu, options.caching_mode) {
        (Iommu::Intel, true) => "intel-iommu, caching mode on".into(),
        (Iommu::Intel, false) => "intel-iommu, caching mode off".into(),
        (Iommu::Amd, _) => "amd-iommu".into(),
        (Iommu::None, _) => "no unit".into(),
    }
}

fn conclude(report: &mut Report, end: End, parts: &Parts, options: &DemoOptions) -> Result<()> {
    for (number, title) in report.silent() {
        println!("FAILED {number} - {title}: did not report");
    }
    let wrong = match end {
        End::Deadline => Some("the guest was stopped at its deadline".into()),
        End::Exit(status) if !status.success() => Some(format!("QEMU ended with {status}")),
        End::Exit(_) => None,
    };
    if let Some(text) = report.close(wrong) {
        println!("{text}");
    }
    show_logs(
        &parts.directory,
        match (options.verbose, report.counts().1) {
            (true, _) => usize::MAX,
            (false, 0) => 0,
            (false, _) => LOG_TAIL,
        },
    );
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    if options.keep {
        println!("kept: {}", parts.directory.display());
    } else {
        std::fs::remove_dir_all(&parts.directory)?;
    }
    Ok(())
}
