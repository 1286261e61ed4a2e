//! A buffer of one process, imported into the domain of another process's device.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iommu_client::platform::pci::Function;
use iommu_client::platform::redox::BufferKey;
use iommu_client::{Access, BufferOptions, Connection, Device, Placement};

use crate::Seen;
use crate::inherited::{BYTES, dma, write_to};

/// Offset of the device's write after the mapping has ended, and the time for which the child checks it.
const LATE: u64 = 2048;
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of a transfer.
const LENGTH: usize = 256;

/// Runs the parent: it drives the device, whose session expects a buffer. The child has another session and another
/// user.
pub(crate) fn check(connection: &Connection, device: &str) -> Seen {
    let text = |what: &'static str| move |error: iommu_client::Error| format!("{what}: {error}");
    let device = Device::open(connection, device).map_err(text("claim"))?;
    let other = Device::open(connection, "0000--00--00.0").map_err(text("host bridge"))?;
    let descriptor = other.descriptor().map_err(|error| format!("descriptor: {error}"))?;
    drop(other);
    let BufferKey(key) = device.expect_buffer().map_err(text("expect"))?;
    let mut child = Command::new("/scheme/initfs/bin/redox-guest")
        .args(["bring", &u128::from_le_bytes(key).to_string()])
        .uid(1000)
        .gid(1000)
        .stdin(Stdio::from(descriptor))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("child: {error}"))?;
    let permission = device.attach().map_err(text("attach"))?;
    let function = Function::open(device.address()).map_err(|error| format!("pci: {error}"))?;
    let mut registers = function.registers(0, 4096).map_err(text("registers"))?;
    function.enable_bus_mastering(&permission).map_err(|error| format!("pci: {error}"))?;
    let output = child.stdout.take().ok_or("a child without output")?;
    let mut said = String::new();
    let mut mapped = None;
    for line in BufReader::new(output).lines() {
        let line = line.map_err(|error| format!("child: {error}"))?;
        if let Some(slot) = line.strip_prefix("slot ").and_then(|slot| slot.parse().ok()) {
            let brought = device.brought(slot);
            let (all, access) = (0..4096, Access::READ | Access::WRITE);
            let mapping = brought.slot().map(all, access, Placement::Below4G);
            let mapping = mapping.map_err(text("map"))?;
            let iova = mapping.iova();
            dma(&mut registers, iova)?;
            if let Some(fault) = device.next_fault().map_err(text("faults"))? {
                return Err(format!("a fault: {fault}"));
            }
            mapping.unmap().map_err(text("unmap"))?;
            write_to(&mut registers, iova + LATE)?;
            mapped = Some(brought);
        }
        said.push_str(&line);
        said.push_str("; ");
    }
    let status = child.wait().map_err(|error| format!("wait: {error}"))?;
    let fault = device.wait_fault(Duration::from_secs(2)).map_err(text("fault"))?;
    let fault = fault.ok_or_else(|| format!("{said}no fault once the mapping had ended"))?;
    drop(mapped);
    let key = BufferKey(key);
    let stale = device.allocate(4096, BufferOptions::default()).map_err(text("allocate"))?;
    if let Ok(slot) = stale.bring(key) {
        return Err(format!("the key was good a second time: slot {slot}"));
    }
    drop(stale);
    let _ = function.disable_bus_mastering();
    device.detach(permission).map_err(|failed| text("detach")(failed.error))?;
    let detail = format!("{said}then: {fault}");
    if status.success() { Ok(detail) } else { Err(format!("{status}: {detail}")) }
}

/// Runs the child. It first gives up its name space.
pub(crate) fn child(key: &str) -> Result<(), String> {
    crate::names::give_up()?;
    let key: u128 = key.parse().map_err(|error| format!("key: {error}"))?;
    let session = io::stdin().as_fd().try_clone_to_owned();
    let session = session.map_err(|error| format!("stdin: {error}"))?;
    let device = Device::inherited(session).map_err(|error| format!("inherited: {error}"))?;
    let options = BufferOptions { unmapped: true, ..BufferOptions::default() };
    let mut buffer = device.allocate(4096, options).map_err(|error| format!("buffer: {error}"))?;
    buffer.write(0, &[BYTES; LENGTH]).map_err(|error| format!("write: {error}"))?;
    let slot = buffer.bring(BufferKey(key.to_le_bytes()));
    println!("slot {}", slot.map_err(|error| format!("bring: {error}"))?);
    io::stdout().flush().map_err(|error| format!("stdout: {error}"))?;
    let mut found = [0; LENGTH];
    let mut look = |at: u64, until: Duration| {
        let started = Instant::now();
        while found != [BYTES; LENGTH] && started.elapsed() < until {
            std::thread::sleep(Duration::from_millis(1));
            buffer.read(at, &mut found).map_err(|error| format!("read: {error}"))?;
        }
        Ok::<_, String>(std::mem::replace(&mut found, [0; LENGTH]))
    };
    let there = look(1024, Duration::from_secs(10))?;
    let late = look(LATE, LOOK)?;
    if there != [BYTES; LENGTH] || late != [0; LENGTH] {
        return Err(format!("{:02x?} and then {:02x?}", there.first(), late.first()));
    }
    println!("{LENGTH} bytes of uid 1000's came and went by another's device, none later");
    Ok(())
}
