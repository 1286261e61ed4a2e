//! `xtask redox`: iommud in an image of Redox, booted in QEMU.
//!
//! The tree is a finished one, made elsewhere; nothing of it is part of this project.

mod build;
mod image;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::emulator::Emulator;
use crate::guest;
use crate::options::{Iommu, RedoxOptions};
use crate::qemu::{End, Machine};
use crate::report::Report;
use tree::Tree;

pub(crate) use build::check;

#[path = "../../tests/vm/redox-guest/src/checks.rs"]
mod checks;

/// A boot takes some five seconds, the checks as many.
const DEADLINE: Duration = Duration::from_secs(180);

/// First bytes of the disk.
const DISK_PATTERN: &[u8] = b"iommud test disk";

/// Lines of the console that are shown after a failure.
const TAIL: usize = 60;

/// Boots the image and says whether every check passed.
///
/// # Errors
/// `Missing` without a complete tree; the image could not be made or started.
pub(crate) fn run(options: &RedoxOptions) -> Result<bool> {
    let tree = Tree::open(options.tree.as_deref())?;
    let emulator =
        if options.iommu == Iommu::Amd { Emulator::newer()? } else { Emulator::installed()? };
    let loader = build::loader()?;
    let programs = build::programs(&tree)?;
    let directory = guest::directory("redox")?;
    let image = image::pack(&tree, &programs, &directory)?;
    let machine = machine(&tree, &loader, &image, &directory, options)?;
    let titles = if options.iommu == Iommu::None { checks::CHECKS_WITHOUT } else { checks::CHECKS };
    let mut report = Report::new(titles);
    let mut console = Console::new();
    let end = machine.run(&emulator, |line| {
        if options.verbose {
            println!("  | {line}");
        }
        console.take(line, &mut report);
    })?;
    console.close(&mut report);
    if end == End::Deadline && !report.ended() {
        println!("the guest was stopped after {} s", DEADLINE.as_secs());
    }
    for (number, title) in report.silent() {
        println!("FAILED {number} - {title}: did not report");
    }
    let (passed, failed) = report.counts();
    if failed > 0 {
        console.show(TAIL);
    }
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report.json()))
            .with_context(|| path.display().to_string())?;
    }
    if options.keep {
        println!("kept: {}", directory.display());
    } else {
        std::fs::remove_dir_all(&directory)?;
    }
    println!("redox: {passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// What the serial port says, and when.
struct Console {
    started: Instant,
    lines: Vec<(Duration, String)>,
}

impl Console {
    fn new() -> Self {
        Self { started: Instant::now(), lines: Vec::new() }
    }

    fn take(&mut self, line: &str, report: &mut Report) {
        let at = self.started.elapsed();
        // A service's line may follow the name of a log on the same line.
        let own = line.find("@@").and_then(|start| line.get(start..));
        if let Some(text) = own.filter(|text| *text != "@@end" && self.held(text).is_none())
            && let Some(text) = report.take(text)
        {
            println!("{text}");
        } else if own == Some("@@end") {
            report.take("@@end");
        }
        self.lines.push((at, line.to_owned()));
    }

    /// The first check needs the order of lines too: it is reported at the end.
    fn held<'a>(&self, text: &'a str) -> Option<&'a str> {
        text.strip_prefix("@@ok 1 | ")
    }

    fn find(&self, part: &str) -> Option<Duration> {
        self.lines.iter().find(|(_, line)| line.contains(part)).map(|(at, _)| *at)
    }

    fn close(&self, report: &mut Report) {
        let seen = self.lines.iter().find_map(|(_, line)| line.split_once("@@ok 1 | "));
        let Some((_, detail)) = seen else { return };
        let serving = self.find("serving /scheme/iommu");
        let spawned = self.find("pcid-spawner: spawn");
        let line = match (serving, spawned) {
            (Some(serving), Some(spawned)) if serving <= spawned => {
                format!("@@ok 1 | {detail}; served at {serving:.1?}, first driver at {spawned:.1?}")
            }
            other => format!("@@fail 1 | {detail}; served and first driver: {other:?}"),
        };
        if let Some(text) = report.take(&line) {
            println!("{text}");
        }
    }

    fn show(&self, count: usize) {
        for (at, line) in self.lines.iter().skip(self.lines.len().saturating_sub(count)) {
            println!("  {:>6.2} | {line}", at.as_secs_f32());
        }
    }
}

fn machine(
    tree: &Tree,
    loader: &Path,
    image: &Path,
    directory: &Path,
    options: &RedoxOptions,
) -> Result<Machine> {
    let environment = directory.join("environment");
    std::fs::write(&environment, "REDOXFS_BLOCK=0000000000000000\n")?;
    let disk = directory.join("disk");
    write_disk(&disk)?;
    let mut machine = Machine::new("1G", directory, DEADLINE);
    // Redox uses the first serial port; the reports come with it.
    machine.swap_serial();
    machine.args(["-kernel".as_ref(), loader.as_os_str()]);
    let modules = [tree.kernel().as_path(), image, &environment]
        .map(|path| path.to_string_lossy().into_owned())
        .join(",");
    machine.args(["-initrd", &modules]);
    match options.iommu {
        Iommu::Intel => machine.args(["-device", "intel-iommu,intremap=off"]),
        Iommu::Amd => machine.args(["-device", "amd-iommu,dma-remap=on"]),
        Iommu::None => {}
    }
    let drive = format!("file={},format=raw,if=none,id=disk", disk.display());
    machine.args(["-drive", &drive, "-device", "nvme,drive=disk,serial=iommud"]);
    machine.args(["-device", "edu,dma_mask=0xffffffff", "-device", "e1000,netdev=net"]);
    machine.args(["-netdev", "user,id=net,restrict=on"]);
    Ok(machine)
}

fn write_disk(path: &PathBuf) -> Result<()> {
    let mut bytes = vec![0; 1 << 20];
    if let Some(start) = bytes.get_mut(..DISK_PATTERN.len()) {
        start.copy_from_slice(DISK_PATTERN);
    }
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}
