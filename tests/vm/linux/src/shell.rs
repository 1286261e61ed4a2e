//! A prompt in the guest, with iommud running.

use std::fs::{File, OpenOptions};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::greeting;
use crate::process::run;
use crate::report::log;
use crate::server::Server;
use crate::setup;
use crate::unit::Family;

const BUSYBOX: &str = "/bin/busybox";

/// The terminal.
const TERMINAL: &str = "/dev/ttyS0";

/// What iommud and the programs of the set-up print.
const LOG: &str = "/run/iommud.log";

/// How long the set-up of the commands may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves, lets the user type, and ends when the shell does.
pub(crate) fn prompt() {
    if let Err(error) = try_prompt() {
        log(&format!("{error:#}"));
        eprintln!("shell: {error:#}");
    }
}

fn try_prompt() -> Result<()> {
    // The kernel's lines would stand between those of the user.
    std::fs::write("/proc/sys/kernel/printk", "1").context("quieting the kernel")?;
    let _ = setup::modules();
    let (ended, output) = run(BUSYBOX, &["--install", "-s", "/bin"], PATIENCE)?;
    ensure!(ended == 0, "{BUSYBOX} --install ended with {ended}: {output}");
    let server = Server::start_logged("compat", File::create(LOG)?)?;
    std::fs::write("/etc/profile", profile()).context("/etc/profile")?;
    let terminal = || OpenOptions::new().read(true).write(true).open(TERMINAL).context(TERMINAL);
    let mut shell = Command::new(BUSYBOX);
    // A session of its own with a terminal, so that ^C reaches what the user runs.
    shell.args(["setsid", "-c", BUSYBOX, "sh", "-l"]);
    shell.env_clear().envs([("PATH", "/bin"), ("HOME", "/tmp"), ("TERM", "linux")]);
    shell.stdin(Stdio::from(terminal()?)).stdout(Stdio::from(terminal()?));
    shell.stderr(Stdio::from(terminal()?));
    shell.status().context("the shell")?;
    server.stop()
}

/// What the shell reads first: the message of the day, and a prompt.
fn profile() -> String {
    let mut text = String::from("cat <<'END'\n\niommud runs in this machine, policy compat. ");
    match Family::of_machine() {
        _ if !unit() => text.push_str("No unit confines its devices: try iommuctl check.\n"),
        family => text.push_str(&greeting::tour(family == Family::AmdVi)),
    }
    text.push_str(
        "\nThree edu devices and three NVMe controllers are there (nvme info --device NAME). ",
    );
    text.push_str("iommuctl --help\nsays more, /run/iommud.log has the server's log. ");
    text.push_str("exit leaves, or Ctrl-A X.\n\nEND\nPS1='iommud# '\ncd /tmp\n");
    text
}

/// Whether firmware describes a unit.
fn unit() -> bool {
    let there = |name| std::fs::exists(format!("/sys/firmware/acpi/tables/{name}"));
    ["DMAR", "IVRS"].into_iter().any(|name| there(name).unwrap_or(false))
}
