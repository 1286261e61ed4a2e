//! `xtask bare`: the register-level suite. It runs twice, because its counts must be the same each time.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::emulator::Emulator;
use crate::options::{BareOptions, Iommu};
use crate::qemu::{End, Machine, show_logs};
use crate::report::Report;
use crate::{build, guest};

#[path = "../../tests/vm/bare/src/checks.rs"]
mod checks;

use checks::{AMD_CHECKS, CHECKS};

/// Time limit for a run, which takes a second or two.
const DEADLINE: Duration = Duration::from_secs(60);

/// Lines of each log printed after a failure.
const LOG_TAIL: usize = 20;

/// Bytes of the disk behind the NVMe controller.
const DISK: u64 = 1 << 20;

/// Runs the suite. Returns whether every check passed.
///
/// # Errors
/// The guest could not be built or started.
pub(crate) fn run(options: BareOptions) -> Result<bool> {
    let (passed, failed, unchecked) = run_counted(options)?;
    let note = if unchecked > 0 { format!(", {unchecked} not checked") } else { String::new() };
    println!("bare: {passed} passed, {failed} failed{note}");
    Ok(failed == 0)
}

/// Runs the suite like [`run`], without the closing line. Returns the numbers of passed, failed and unchecked checks.
///
/// # Errors
/// The guest could not be built or started.
pub(crate) fn run_counted(options: BareOptions) -> Result<(usize, usize, usize)> {
    let (report, agreed) = twice(options)?;
    let (passed, failed) = report.counts();
    let (passed, failed) = (passed + usize::from(agreed), failed + usize::from(!agreed));
    Ok((passed, failed, report.unchecked().len()))
}

/// Runs the suite like [`run`], without the closing line. Returns the report, and whether every check passed.
///
/// # Errors
/// The guest could not be built or started.
pub(crate) fn measured(options: BareOptions) -> Result<(Report, bool)> {
    let (report, agreed) = twice(options)?;
    let passed = agreed && report.counts().1 == 0;
    Ok((report, passed))
}

/// Runs the suite twice. Returns the first run's results, and whether the second run counted the same.
fn twice(options: BareOptions) -> Result<(Report, bool)> {
    let emulator = options.qemu.get()?;
    let image = build::bare_guest()?;
    let directory = guest::directory("bare")?;
    let started = Instant::now();
    let first = boot(&emulator, &image, &directory, options, true)?;
    let second = boot(&emulator, &image, &directory, options, false)?;
    println!("two runs took {:.1} s", started.elapsed().as_secs_f32());
    if !first.unchecked().is_empty() {
        println!("not checked here: {}", first.unchecked().join("; "));
    }
    for (number, title) in first.silent() {
        println!("FAILED {number} - {title}: did not report");
    }
    let number = titles(options).len() + 1;
    let agreed = match compare(&first, &second) {
        Ok(counts) => {
            println!("ok {number} - {counts} counts are the same in two runs");
            true
        }
        Err(what) => {
            println!("FAILED {number} - counts are the same in two runs: {what}");
            false
        }
    };
    if !agreed || first.counts().1 > 0 {
        show_logs(&directory, LOG_TAIL);
    }
    std::fs::remove_dir_all(&directory)?;
    Ok((first, agreed))
}

fn compare(first: &Report, second: &Report) -> Result<usize, String> {
    if !first.ended() || !second.ended() {
        return Err("a run did not end".into());
    }
    if second.counts() != first.counts() {
        return Err(format!("checks: {:?}, then {:?}", first.counts(), second.counts()));
    }
    let pairs = first.measured().iter().zip(second.measured());
    if let Some((a, b)) = pairs.into_iter().find(|(a, b)| a != b) {
        return Err(format!("{}: {}, then {}: {}", a.0, a.1, b.0, b.1));
    }
    if first.measured().len() != second.measured().len() {
        return Err("one run counted more".into());
    }
    Ok(first.measured().len())
}

fn boot(
    emulator: &Emulator,
    image: &Path,
    directory: &Path,
    options: BareOptions,
    show: bool,
) -> Result<Report> {
    let disk = directory.join("disk");
    write_disk(&disk)?;
    let machine = machine(image, directory, &disk, options);
    let mut report = Report::new(titles(options));
    let end = machine.run(emulator, |line| {
        if let Some(text) = report.take(line)
            && show
        {
            println!("{text}");
        }
    })?;
    // The guest ends QEMU through isa-debug-exit, with status 1 for success.
    let wrong = match end {
        End::Deadline => Some(format!("the guest was stopped after {} s", DEADLINE.as_secs())),
        End::Exit(status) => match status.code() {
            Some(1) => None,
            // The guest itself reported failed checks.
            Some(3) if report.counts().1 > 0 => None,
            _ => Some(format!("QEMU ended with {status}")),
        },
    };
    if let Some(text) = report.close(wrong) {
        println!("{text}");
    }
    Ok(report)
}

/// Writes the disk: block n (512 bytes) contains the 64-bit word `0x1000 + n` everywhere.
fn write_disk(path: &Path) -> Result<()> {
    let words =
        (0..DISK / 512).flat_map(|block| (0..64).flat_map(move |_| (0x1000 + block).to_le_bytes()));
    std::fs::write(path, words.collect::<Vec<u8>>()).with_context(|| path.display().to_string())
}

const fn titles(options: BareOptions) -> &'static [&'static str] {
    match options.iommu {
        Iommu::Amd => &AMD_CHECKS,
        Iommu::Intel | Iommu::None => &CHECKS,
    }
}

fn machine(image: &Path, directory: &Path, disk: &Path, options: BareOptions) -> Machine {
    let mut machine = Machine::new("256M", directory, DEADLINE);
    let mode = if options.caching_mode { "on" } else { "off" };
    machine.args(["-icount", "shift=10,sleep=off", "-device", "isa-debug-exit,iobase=0xf4"]);
    let (unit, command_line) = match options.iommu {
        Iommu::Amd => (guest::AMD_UNIT.into(), "iommu=amd".into()),
        Iommu::Intel | Iommu::None => (
            format!("intel-iommu,intremap=off,caching-mode={mode}"),
            format!("caching-mode={mode}"),
        ),
    };
    machine.args(["-device", &unit]);
    for place in ["addr=04.0", "addr=05.0", "bus=rootport,addr=00.0"] {
        if place.starts_with("bus") {
            machine.args(["-device", "pcie-root-port,id=rootport,chassis=1,addr=06.0"]);
        }
        machine.args(["-device", &format!("edu,{place},dma_mask=0xffffffffff")]);
    }
    let drive =
        format!("driver=raw,node-name=disk,file.driver=file,file.filename={}", disk.display());
    machine.args(["-blockdev", &drive, "-device", "nvme,addr=07.0,serial=bare,drive=disk"]);
    machine.args(["-kernel".as_ref(), image.as_os_str()]);
    machine.args(["-append", &command_line]);
    machine
}
