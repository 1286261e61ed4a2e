//! QEMU's monitor, for the guest's requests to its machine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::qemu::Machine;

/// Time limit for QEMU's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end of every answer.
const PROMPT: &[u8] = b"(qemu) ";

/// The port for hot-plugged devices, and the id of the one plugged device.
const PORT: &str = "hotport";
const DEVICE: &str = "hot";

/// The path of a machine's monitor socket.
pub(crate) struct Monitor(PathBuf);

impl Monitor {
    /// Gives a machine a monitor, and a root port for hot-plugged devices.
    pub(crate) fn add(machine: &mut Machine, directory: &Path) -> Self {
        let path = directory.join("monitor");
        let mut address = std::ffi::OsString::from("unix:");
        address.push(&path);
        address.push(",server=on,wait=off");
        machine.args(["-monitor".into(), address]);
        let port = format!("pcie-root-port,id={PORT},bus=pcie.0,chassis=20,addr=08.0");
        machine.args(["-device".to_owned(), port]);
        Self(path)
    }

    /// Executes the request in a line of the guest. Returns whether the line was a request.
    pub(crate) fn obey(&self, line: &str) -> Result<bool> {
        let command = match line {
            "@@plug edu" => format!("device_add edu,id={DEVICE},bus={PORT},dma_mask=0xffffffff"),
            "@@plug rng" => format!("device_add virtio-rng-pci,id={DEVICE},bus={PORT}"),
            "@@unplug" => format!("device_del {DEVICE}"),
            _ => return Ok(false),
        };
        self.tell(&command)?;
        Ok(true)
    }

    fn tell(&self, command: &str) -> Result<()> {
        let mut stream = UnixStream::connect(&self.0).context("QEMU's monitor")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        until_prompt(&mut stream)?;
        writeln!(stream, "{command}")?;
        let answer = until_prompt(&mut stream)?;
        ensure!(!answer.contains("Error"), "{command}: {answer}");
        Ok(())
    }
}

fn until_prompt(stream: &mut impl Read) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while !all.ends_with(PROMPT) {
        ensure!(Instant::now() < deadline, "QEMU's monitor goes on and on");
        let mut part = [0; 4096];
        let length = stream.read(&mut part).context("QEMU's monitor")?;
        ensure!(length > 0, "QEMU's monitor is gone");
        all.extend_from_slice(part.get(..length).unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_the_prompt() {
        let mut text = &b"QEMU 7.2 monitor\n(qemu) device_add x\r\nError: no\r\n(qemu) "[..];
        assert!(until_prompt(&mut text).unwrap().contains("Error: no"));
        assert!(until_prompt(&mut &b"QEMU"[..]).is_err());
    }

    #[test]
    fn nothing_else_is_obeyed() {
        let monitor = Monitor("/nonexistent".into());
        for line in ["@@log plug", "@@plug nvme", "@@unplug all", "quit", ""] {
            assert!(!monitor.obey(line).unwrap(), "{line}");
        }
        assert!(monitor.obey("@@unplug").is_err());
    }
}
