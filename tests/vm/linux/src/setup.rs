//! Set-up and end of the first process.

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;

use crate::checks::Scenario;
use crate::memory::HUGE_MOUNT;

/// Huge pages requested from the kernel, 2 MiB each. They suffice for two servers, because one takes over from
/// another.
const HUGE_PAGES: usize = 192;

/// Mounts the file systems that programs expect.
pub(crate) fn mount_all() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("hugetlbfs", HUGE_MOUNT),
    ] {
        std::fs::create_dir_all(target).with_context(|| format!("creating {target}"))?;
        mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {target}"))?;
    }
    Ok(())
}

/// Reserves huge pages. Returns their number.
pub(crate) fn huge_pages() -> Result<usize> {
    let path = "/proc/sys/vm/nr_hugepages";
    std::fs::write(path, HUGE_PAGES.to_string()).context(path)?;
    let pages = std::fs::read_to_string(path).context(path)?.trim().parse().context(path)?;
    ensure!(pages >= HUGE_PAGES, "only {pages} of {HUGE_PAGES} huge pages");
    Ok(pages)
}

/// Loads the kernel modules in the guest's image. Returns whether there were any.
pub(crate) fn modules() -> Result<bool> {
    // The second module needs the first.
    for name in ["uio.ko", "uio_pci_generic.ko"] {
        let path = format!("/modules/{name}");
        if !std::path::Path::new(&path).exists() {
            return Ok(false);
        }
        let file = std::fs::File::open(&path).context(path.clone())?;
        rustix::system::finit_module(file, c"", 0).context(path)?;
    }
    Ok(true)
}

/// The scenario named on the kernel's command line.
pub(crate) fn scenario() -> Result<Scenario> {
    let name = word("iommud.scenario")?;
    Scenario::from_name(&name).with_context(|| format!("unknown scenario {name}"))
}

/// Reads a number from the kernel's command line.
pub(crate) fn number(name: &str) -> Result<usize> {
    word(name)?.parse().with_context(|| format!("{name} is no number"))
}

/// Reads a word from the kernel's command line, if it is there.
pub(crate) fn option(name: &str) -> Option<String> {
    word(name).ok()
}

fn word(name: &str) -> Result<String> {
    let line = std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    let value = |word: &str| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    let value = line.split_whitespace().find_map(value);
    value.with_context(|| format!("the command line has no {name}"))
}

/// Version of the emulator (first and second number), from the kernel's command line.
pub(crate) fn emulator() -> Result<(u32, u32)> {
    let line = std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    let version = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("iommud.emulator="))
        .context("the command line names no emulator")?;
    let mut numbers = version.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(second))) => Ok((first, second)),
        _ => anyhow::bail!("emulator {version}?"),
    }
}

/// The kernel's release and its uptime.
pub(crate) fn kernel() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let uptime = read("/proc/uptime");
    let seconds = uptime.split_whitespace().next().unwrap_or("?");
    format!("Linux {}, up {seconds} s", read("/proc/sys/kernel/osrelease").trim())
}

/// Powers the machine off.
pub(crate) fn power_off() {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        report_and_hang(&error.to_string());
    }
}

fn report_and_hang(error: &str) {
    crate::report::log(&format!("power-off failed: {error}"));
    loop {
        std::thread::park();
    }
}
