//! A test on the running machine: a device writes to memory that was just taken from it. Nobody else's memory is at
//! risk, because the memory is the test's own, also where nothing confines the device.

mod offenders;

use std::time::{Duration, Instant};

use iommu_client::{Device, DmaBuffer, Error, SessionFlags};
use iommu_protocol::fault::{FaultAccess, FaultRecord};
use serde_json::{Value, json};

use crate::names;

pub use offenders::{Kind, Offender, PickError, drivable, start};

/// Bytes of the memory.
const LENGTH: u16 = 4096;

/// Bytes that the device writes.
const WRITTEN: u16 = 64;

/// What the memory holds before the write that is allowed, and in a second try, for devices whose data this is.
const BEFORE: [u8; 2] = [0x5a, 0xc3];

/// How long a fault may take to be reported.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the machine did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The write was stopped, and its record names device, address and direction.
    Confines(FaultRecord),
    /// The write was stopped, but its record lacks something or is wrong: what.
    Unnamed(FaultRecord, &'static str),
    /// The memory did not change, and nothing was reported.
    Unreported,
    /// The device wrote to memory that had been taken from it.
    Open,
    /// The device did not write where it was allowed to: nothing was shown.
    Nothing,
}

/// The outcome of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The device, as an address.
    pub device: String,
    /// Whether the server says that the device is confined.
    pub claimed: bool,
    /// What the machine did.
    pub verdict: Verdict,
    /// The device ended all that it was told to do. Any other may write later.
    pub quiet: bool,
}

/// Has the device write to memory before and after the memory is taken from it. The caller drops `buffer` after the
/// device was stopped.
///
/// # Errors
/// Those of the server, and of the device.
pub fn check(
    device: &Device,
    offender: &mut dyn Offender,
    buffer: &mut DmaBuffer,
) -> Result<Checked, Error> {
    let claimed = device.query()?.flags.contains(SessionFlags::CONFINED);
    let (verdict, quiet) = verdict(device, offender, buffer)?;
    Ok(Checked { device: names::address(device.address()), claimed, verdict, quiet })
}

/// Allocates memory for [`check`].
///
/// # Errors
/// Those of the server.
pub fn memory(device: &Device, offender: &dyn Offender) -> Result<DmaBuffer, Error> {
    // The write to memory that was taken away is what is checked, and no bug to report.
    device.sanitize_with(|_| ());
    device.allocate(LENGTH.into(), offender.memory())
}

/// What the machine did, and whether the device ended all that it was told to do.
fn verdict(
    device: &Device,
    offender: &mut dyn Offender,
    buffer: &mut DmaBuffer,
) -> Result<(Verdict, bool), Error> {
    let mut arrived = Vec::new();
    for before in BEFORE {
        fill(buffer, before)?;
        offender.write(buffer.iova(), WRITTEN)?;
        arrived = content(buffer)?;
        if arrived.iter().any(|byte| *byte != before) {
            break;
        }
        arrived.clear();
    }
    if arrived.is_empty() {
        return Ok((Verdict::Nothing, true));
    }
    buffer.unmap()?;
    // Each byte differs from what the device writes there.
    let kept: Vec<u8> = arrived.iter().map(|byte| !byte).collect();
    buffer.write(0, &kept)?;
    while device.next_fault()?.is_some() {}
    let quiet = offender.write(buffer.iova(), WRITTEN).is_ok();
    let fault = fault(device, buffer.iova())?;
    let verdict = match fault {
        // What the memory holds decides.
        _ if content(buffer)? != kept => Verdict::Open,
        None => Verdict::Unreported,
        Some((fault, None)) => Verdict::Confines(fault),
        Some((fault, Some(what))) => Verdict::Unnamed(fault, what),
    };
    Ok((verdict, quiet))
}

/// The record of the write, and what it lacks. Records of something else, which may come late, are passed over as long
/// as the right one may come.
fn fault(device: &Device, iova: u64) -> Result<Option<(FaultRecord, Option<&'static str>)>, Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = None;
    while let Some(fault) = device.wait_fault(deadline.saturating_duration_since(Instant::now()))? {
        let lacks = lacks(&fault, device, iova);
        if lacks.is_none() {
            return Ok(Some((fault, None)));
        }
        seen = Some((fault, lacks));
        if Instant::now() > deadline {
            break;
        }
    }
    Ok(seen)
}

/// What a record lacks, or has wrong.
fn lacks(fault: &FaultRecord, device: &Device, iova: u64) -> Option<&'static str> {
    let page = |address: u64| address & !0xfff;
    match (fault.source == device.address(), fault.address, fault.access) {
        (false, ..) => Some("it names another device"),
        (_, None, _) => Some("it has no address"),
        (_, Some(address), _) if page(address) != page(iova) => Some("it has another address"),
        (.., FaultAccess::Write) => None,
        _ => Some("it does not say that it was a write"),
    }
}

fn fill(buffer: &mut DmaBuffer, byte: u8) -> Result<(), Error> {
    buffer.fill(0, LENGTH.into(), byte)
}

fn content(buffer: &DmaBuffer) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; LENGTH.into()];
    buffer.read(0, &mut bytes)?;
    Ok(bytes)
}

impl Checked {
    /// Whether this machine confines, and says what it stopped.
    #[must_use]
    pub const fn confines(&self) -> bool {
        matches!(self.verdict, Verdict::Confines(_))
    }

    /// One line for the user, and one that says what was seen.
    #[must_use]
    pub fn text(&self) -> String {
        let device = &self.device;
        let (head, seen) = match &self.verdict {
            Verdict::Confines(fault) => (
                "this machine confines",
                format!(
                    "{device} wrote to memory that had been taken from it, and was stopped: {fault}"
                ),
            ),
            Verdict::Unnamed(fault, what) => (
                "this machine stops devices, but its records are incomplete",
                format!("{device} was stopped; of the record: {what}: {fault}"),
            ),
            Verdict::Unreported => (
                "this machine stops devices, and does not say so",
                format!("{device} was stopped, and no fault was reported within {PATIENCE:?}"),
            ),
            Verdict::Open => (
                "this machine does NOT confine",
                format!("{device} wrote to memory that had been taken from it"),
            ),
            Verdict::Nothing => (
                "nothing was shown",
                format!("{device} did not write to memory that it may write to"),
            ),
        };
        let told = if self.claimed { "confined" } else { "NOT confined" };
        format!("{head}\n  {seen}\n  iommud says of {device}: {told}\n")
    }

    /// All of it, as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let (name, fault, lacks) = match &self.verdict {
            Verdict::Confines(fault) => ("confines", Some(fault), None),
            Verdict::Unnamed(fault, what) => ("unnamed", Some(fault), Some(what)),
            Verdict::Unreported => ("unreported", None, None),
            Verdict::Open => ("open", None, None),
            Verdict::Nothing => ("nothing-shown", None, None),
        };
        json!({
            "device": self.device,
            "confines": self.confines(),
            "verdict": name,
            "server_says_confined": self.claimed,
            "fault": fault.map(ToString::to_string),
            "lacks": lacks,
        })
    }
}
