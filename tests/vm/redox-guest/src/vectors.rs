//! A machine with all interrupt vectors taken.

use std::fs::{self, File};
use std::io::Read;
use std::time::Instant;

use iommu_client::Connection;

use crate::restart::{SIGKILL, back, server};
use crate::{Seen, drivers, nvme};

/// Kills the server while every vector of the processor is taken. The next server polls its units for faults.
pub(crate) fn check(device: &str, controller: &str) -> Seen {
    let taken = vectors()?;
    let server = server()?.ok_or("not one keeper, one server and one that holds")?;
    libredox::call::kill(server, SIGKILL).map_err(|error| format!("kill {server}: {error}"))?;
    back(server, Instant::now())?;
    let connection = Connection::system().map_err(|error| format!("connect: {error}"))?;
    let text = |path: &str| connection.text(path).map_err(|error| format!("{path}: {error}"));
    let started = Instant::now();
    // The rogue sleeps until the session's event.
    let fault = drivers::rogue(device)?;
    let (took, unit, metrics) = (started.elapsed(), text("units/0")?, text("metrics")?);
    let counted = metrics.lines().find_map(|line| line.strip_prefix("fault_interrupts "));
    let counted = counted.and_then(|number| number.trim().parse::<u64>().ok());
    let counted = counted.ok_or("no metrics")?;
    if counted != 0 || !unit.lines().any(|line| line == "faults: asked for") {
        return Err(format!("{counted} interrupts; {unit}"));
    }
    let words = fault.split([';', '\r', '\n']).find(|part| part.contains("fault #"));
    let (took, words) = (took.as_millis(), words.unwrap_or("no words").trim());
    let driver = nvme::without_vector(controller)?;
    Ok(format!("{} vectors taken; {words}, {took} ms with its driver; nvme: {driver}", taken.len()))
}

/// Takes every free vector of the first processor.
fn vectors() -> Result<Vec<File>, String> {
    let text = |error: std::io::Error| format!("vectors: {error}");
    let mut word = [0; 8];
    let mut first = File::open("/scheme/irq/bsp").map_err(text)?;
    first.read_exact(&mut word).map_err(text)?;
    let directory = format!("/scheme/irq/cpu-{:02x}", u64::from_ne_bytes(word));
    let mut taken = Vec::new();
    for entry in fs::read_dir(&directory).map_err(text)?.filter_map(Result::ok) {
        let mut options = File::options();
        // Some vectors belong to the kernel.
        if let Ok(file) = options.read(true).write(true).create(true).open(entry.path()) {
            taken.push(file);
        }
    }
    if taken.is_empty() { Err("no vector was free".into()) } else { Ok(taken) }
}
