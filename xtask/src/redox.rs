//! `xtask redox`: iommud in an image of Redox, booted in QEMU.
//!
//! The tree is a finished one, built elsewhere. None of it is part of this project.

mod boots;
mod build;
mod console;
mod image;
mod tree;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::emulator::Emulator;
use crate::guest;
use crate::options::{Iommu, RedoxOptions, RedoxRun, ShellOptions};
use crate::qemu::{End, Machine};
use crate::report::Report;
use console::{Condition, Console};
use image::Stage;
use tree::Tree;

pub(crate) use build::{check, check_counted, compiler};

#[path = "../../tests/vm/redox-guest/src/checks.rs"]
mod checks;
#[path = "../../tests/vm/redox-guest/src/pattern.rs"]
mod pattern;

/// Time limit: a boot takes some five seconds, the checks some forty, and a busy host several times that.
const DEADLINE: Duration = Duration::from_secs(240);

/// Lines of the console printed after a failure.
const TAIL: usize = 80;

/// Bytes of the disk for this project's NVMe driver.
const SPARE: u64 = 16 << 20;

/// The checks of a run and their image.
struct Plan {
    stage: Stage,
    titles: &'static [&'static str],
    held: &'static [(usize, Condition)],
}

impl Plan {
    fn of(options: &RedoxOptions) -> Self {
        match (options.run, options.iommu) {
            (RedoxRun::Late, _) => Self { stage: Stage::Late, titles: checks::LATE, held: &[] },
            (RedoxRun::Damaged, _) => {
                Self { stage: Stage::Early, titles: checks::DAMAGED, held: &[] }
            }
            (_, Iommu::None) => Self { stage: Stage::Early, titles: checks::UNCONFINED, held: &[] },
            (run, _) => Self {
                stage: if run == RedoxRun::Oneshot { Stage::Oneshot } else { Stage::Early },
                titles: checks::EARLY,
                held: &[
                    (1, console::before_drivers),
                    (10, console::nameless),
                    (11, console::spawned),
                    (15, console::told),
                ],
            },
        }
    }
}

/// Boots the image. Returns whether every check passed.
///
/// # Errors
/// `Missing` without a complete tree; the image could not be built or started.
pub(crate) fn run(options: &RedoxOptions) -> Result<bool> {
    let tree = Tree::open(options.tree.as_deref())?;
    let emulator = emulator(options.iommu)?;
    let loader = build::loader()?;
    let programs = build::programs(&tree)?;
    let directory = guest::directory("redox")?;
    let host = Host { tree, emulator, loader, programs, directory };
    let passed = match options.run {
        RedoxRun::Boots(count) => boots::run(&host, options, count),
        _ => host.check(options),
    };
    if options.keep {
        println!("kept: {}", host.directory.display());
    } else {
        std::fs::remove_dir_all(&host.directory)?;
    }
    passed
}

/// The machine of a prompt on Redox, its emulator, and the directory of its files.
///
/// # Errors
/// Like those of [`run`].
pub(crate) fn shell(options: &ShellOptions) -> Result<(Machine, Emulator, PathBuf)> {
    let tree = Tree::open(options.redox.as_deref())?;
    let emulator = emulator(options.iommu)?;
    let loader = build::loader()?;
    let programs = build::programs(&tree)?;
    let directory = guest::directory("redox-shell")?;
    let host = Host { tree, emulator, loader, programs, directory };
    let image = image::pack(&host.tree, &host.programs, Stage::Shell, &host.directory)?;
    let mut machine = host.machine(&image, options.iommu)?;
    host.second_controller(&mut machine)?;
    for device in &options.devices {
        machine.args(["-device", device]);
    }
    // Nobody knows how long the user stays.
    machine.deadline = Duration::MAX;
    machine.share_monitor();
    Ok((machine, host.emulator, host.directory))
}

fn emulator(iommu: Iommu) -> Result<Emulator> {
    if iommu == Iommu::Amd { Emulator::newer() } else { Emulator::installed() }
}

/// Builds this project's programs with the library of the tree at `root`. Returns their paths.
///
/// # Errors
/// `Missing` without a complete tree; they do not compile.
pub(crate) fn programs(root: Option<&Path>) -> Result<Vec<PathBuf>> {
    build::programs(&Tree::open(root)?)
}

/// The common requirements of every boot.
struct Host {
    tree: Tree,
    emulator: Emulator,
    loader: PathBuf,
    programs: Vec<PathBuf>,
    directory: PathBuf,
}

impl Host {
    fn check(&self, options: &RedoxOptions) -> Result<bool> {
        let plan = Plan::of(options);
        let image = image::pack(&self.tree, &self.programs, plan.stage, &self.directory)?;
        let mut machine = self.machine(&image, options.iommu)?;
        if options.run == RedoxRun::Damaged {
            let table = if options.iommu == Iommu::Amd { "IVRS" } else { "DMAR" };
            machine.args(["-append", &format!("damage={table}")]);
        }
        if plan.titles == checks::EARLY {
            self.second_controller(&mut machine)?;
        }
        let mut report = Report::new(plan.titles);
        let mut console = Console::new(plan.held);
        let end = machine.run_until(&self.emulator, |line| {
            if options.verbose {
                println!("  | {line}");
            }
            console.take(line, &mut report)
        })?;
        for (number, title) in report.silent() {
            println!("FAILED {number} - {title}: did not report");
        }
        let wrong = end.map(|end| match end {
            End::Deadline => format!("the guest was stopped after {} s", DEADLINE.as_secs()),
            End::Exit(status) => format!("QEMU ended with {status}"),
        });
        if let Some(text) = report.close(wrong) {
            println!("{text}");
        }
        let (passed, failed) = report.counts();
        if failed > 0 {
            console.show(TAIL);
        }
        write_json(options.json.as_deref(), &report.json())?;
        println!("redox: {passed} passed, {failed} failed");
        Ok(failed == 0)
    }

    /// Adds an NVMe controller for this project's driver, distinguished from the system's by its ids.
    fn second_controller(&self, machine: &mut Machine) -> Result<()> {
        let disk = self.directory.join("spare");
        std::fs::File::create(&disk)?.set_len(SPARE)?;
        let drive = format!("file={},format=raw,if=none,id=spare", disk.display());
        machine.args(["-drive", &drive]);
        machine.args(["-device", "nvme,drive=spare,serial=spare,use-intel-id=on,addr=05.0"]);
        Ok(())
    }

    /// Builds a machine with a disk, a network card and an edu device, which has the same address as in the other guests.
    fn machine(&self, image: &Path, iommu: Iommu) -> Result<Machine> {
        let environment = self.directory.join("environment");
        std::fs::write(&environment, "REDOXFS_BLOCK=0000000000000000\n")?;
        let disk = self.directory.join("disk");
        write_disk(&disk)?;
        let mut machine = Machine::new("1G", &self.directory, DEADLINE);
        // Redox uses the first serial port, and the reports use it too.
        machine.swap_serial();
        machine.args(["-kernel".as_ref(), self.loader.as_os_str()]);
        let modules = [self.tree.kernel().as_path(), image, &environment]
            .map(|path| path.to_string_lossy().into_owned())
            .join(",");
        machine.args(["-initrd", &modules]);
        match iommu {
            Iommu::Intel => machine.args(["-device", "intel-iommu,intremap=off"]),
            Iommu::Amd => machine.args(["-device", "amd-iommu,dma-remap=on"]),
            Iommu::None => {}
        }
        let drive = format!("file={},format=raw,if=none,id=disk", disk.display());
        machine.args(["-drive", &drive, "-device", "nvme,drive=disk,serial=iommud,addr=02.0"]);
        machine.args(["-device", "e1000,netdev=net,addr=03.0"]);
        machine.args(["-device", "edu,dma_mask=0xffffffff,addr=04.0"]);
        machine.args(["-netdev", "user,id=net,restrict=on"]);
        Ok(machine)
    }
}

fn write_json(path: Option<&Path>, value: &serde_json::Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, format!("{value:#}\n")).with_context(|| path.display().to_string())
}

fn write_disk(path: &Path) -> Result<()> {
    let bytes: Vec<u8> = (0..pattern::SECTORS).flat_map(pattern::sector).collect();
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}
