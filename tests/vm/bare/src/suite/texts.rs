//! What an administrator's texts cost the event loop: each is one turn, and other clients wait for it.

use alloc::format;

use iommu_protocol::wire::Operation;

use super::server::{PAGES, Served, scattered};
use super::{Outcome, ensure};
use crate::println;

/// Most instructions to open, read and close the text of a device.
const DEVICE: u64 = 12_000;

/// Most instructions for the text of a domain that lists as many mappings as any does.
const DOMAIN: u64 = 1_700_000;

/// Where pages are mapped.
const AT: u64 = 0x0600_0000;

/// A device's text, and the longest text of a domain.
pub fn costs(served: &mut Served) -> Outcome {
    let path = format!("devices/{}", served.device(0));
    let (text, device) = served.timed_text(&path)?;
    let number = text.lines().find_map(|line| line.strip_prefix("domain: "));
    let path = format!("domains/{}", number.ok_or("the device has no domain")?);
    served.call(Operation::Batch, &scattered(Operation::Map, served.slot, AT)?)?;
    let (text, domain) = served.timed_text(&path)?;
    served.call(Operation::Batch, &scattered(Operation::Unmap, 0, AT)?)?;
    let lines = mappings(&text);
    println!("@@count {device} instructions for the text of a device");
    println!("@@count {domain} instructions for the text of a domain of {PAGES} mappings");
    ensure!(lines == 511 && text.ends_with("devices after it\n"), "{lines} mappings: {text}");
    ensure!(device <= DEVICE, "{device} instructions for the text of a device");
    ensure!(domain <= DOMAIN, "{domain} instructions for the text of a domain");
    Ok(format!("{lines} of {PAGES} mappings are listed, in {} bytes", text.len()))
}

fn mappings(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("mapping: ")).count()
}
