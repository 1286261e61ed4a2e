//! A driver that owns nothing but the descriptor of its device.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iommu_client::platform::Memory;
use iommu_client::platform::pci::Function;
use iommu_client::{BufferOptions, Connection, Device};

use crate::Seen;

/// Registers and bits of the edu device (QEMU docs/specs/edu.rst): source, destination, count, command.
const DMA: [u64; 4] = [0x80, 0x88, 0x90, 0x98];
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
const DEVICE_BUFFER: u64 = 0x40000;
const LENGTH: u64 = 256;

/// The byte that the device writes and the child checks.
pub(crate) const BYTES: u8 = 0xa7;

/// Runs the parent. It claims the device and passes its descriptor to a child of another user. It does the DMA for
/// the child, because only uid 0 may access registers.
pub(crate) fn check(connection: &Connection, device: &str) -> Seen {
    let device = Device::open(connection, device).map_err(|error| format!("claim: {error}"))?;
    let descriptor = device.descriptor().map_err(|error| format!("descriptor: {error}"))?;
    let mut child = Command::new("/scheme/initfs/bin/redox-guest")
        .arg("inherited")
        .uid(1000)
        .gid(1000)
        .stdin(Stdio::from(descriptor))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("child: {error}"))?;
    let permission = device.attach().map_err(|error| format!("attach: {error}"))?;
    let function = Function::open(device.address()).map_err(|error| format!("pci: {error}"))?;
    let mut registers =
        function.registers(0, 4096).map_err(|error| format!("registers: {error}"))?;
    function.enable_bus_mastering(&permission).map_err(|error| format!("pci: {error}"))?;

    let output = child.stdout.take().ok_or("a child without output")?;
    let mut said = String::new();
    for line in BufReader::new(output).lines() {
        let line = line.map_err(|error| format!("child: {error}"))?;
        if let Some(iova) = line.strip_prefix("iova ").and_then(|iova| iova.parse().ok()) {
            dma(&mut registers, iova)?;
        }
        said.push_str(&line);
        said.push_str("; ");
    }
    let status = child.wait().map_err(|error| format!("wait: {error}"))?;
    let _ = function.disable_bus_mastering();
    device.detach(permission).map_err(|error| format!("detach: {error}"))?;
    if status.success() { Ok(said) } else { Err(format!("{status}: {said}")) }
}

/// Makes the device read memory at `iova` and write it 1024 bytes further on.
pub(crate) fn dma(registers: &mut Memory, iova: u64) -> Result<(), String> {
    step(registers, [iova, DEVICE_BUFFER, LENGTH, START])?;
    write_to(registers, iova + 1024)
}

/// Makes the device write its buffer to memory.
pub(crate) fn write_to(registers: &mut Memory, iova: u64) -> Result<(), String> {
    step(registers, [DEVICE_BUFFER, iova, LENGTH, START | TO_MEMORY])
}

fn step(registers: &mut Memory, words: [u64; 4]) -> Result<(), String> {
    for (register, word) in DMA.into_iter().zip(words) {
        registers.write_u64(register, word).ok_or("registers too short")?;
    }
    let started = Instant::now();
    while registers.read_u64(DMA[3]).ok_or("registers too short")? & START != 0 {
        if started.elapsed() > Duration::from_secs(5) {
            return Err("the device does not end".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Runs the child. It first gives up its name space.
pub(crate) fn child() -> Result<(), String> {
    crate::names::give_up()?;
    let session = io::stdin().as_fd().try_clone_to_owned();
    let session = session.map_err(|error| format!("stdin: {error}"))?;
    let device = Device::inherited(session).map_err(|error| format!("inherited: {error}"))?;
    let buffer = device.allocate(4096, BufferOptions::default());
    let mut buffer = buffer.map_err(|error| format!("allocate: {error}"))?;
    buffer.write(0, &[BYTES; 256]).map_err(|error| format!("write: {error}"))?;
    println!("iova {}", buffer.iova());
    io::stdout().flush().map_err(|error| format!("stdout: {error}"))?;
    let started = Instant::now();
    let mut found = [0; 256];
    while found != [BYTES; 256] {
        if started.elapsed() > Duration::from_secs(10) {
            return Err(format!("the device wrote {:02x?}", found.get(..8)));
        }
        std::thread::sleep(Duration::from_millis(1));
        buffer.read(1024, &mut found).map_err(|error| format!("read: {error}"))?;
    }
    if let Some(fault) = device.wait_fault(Duration::from_millis(20)).map_err(|e| e.to_string())? {
        return Err(format!("a fault: {fault}"));
    }
    println!("{} as uid 1000, nothing opened by path: 256 bytes came and went", device.address());
    Ok(())
}
