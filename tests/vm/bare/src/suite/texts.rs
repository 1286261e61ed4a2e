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

/// Most instructions for the text of activity with one unit and one device, and for each further device. `iommuctl top`
/// reads it ten times a second at its fastest. With all the devices that it ever lists ([`LISTED`]) that is about a
/// hundredth of a processor that does 2^31 instructions in a second.
const ACTIVITY: u64 = 25_000;
const ANOTHER: u64 = 5_000;

/// Most devices that the text lists.
const LISTED: u64 = 512;

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
    ensure!(lines == 511 && text.contains("devices after it\n"), "{lines} mappings: {text}");
    ensure!(device <= DEVICE, "{device} instructions for the text of a device");
    ensure!(domain <= DOMAIN, "{domain} instructions for the text of a domain");
    Ok(format!("{lines} of {PAGES} mappings are listed, in {} bytes", text.len()))
}

/// The text that `iommuctl top` reads, with one device and with two.
pub fn activity(served: &mut Served) -> Outcome {
    served.timed_text("activity")?;
    let (text, one) = served.timed_text("activity")?;
    let before = devices(&text);
    let other = served.device(1);
    let (text, two) = served.with_session(other, |served| served.timed_text("activity"))?;
    let after = devices(&text);
    ensure!(before + 1 == after, "{before} devices, then {after}: {text}");
    let another = two.saturating_sub(one);
    println!("@@count {one} instructions for the text of activity with {before} devices");
    println!("@@count {another} instructions more for another device in the text of activity");
    ensure!(one <= ACTIVITY, "{one} instructions for the text of activity");
    ensure!(another <= ANOTHER, "{another} instructions for a device in the text of activity");
    let longest = one + another * (LISTED - 1);
    Ok(format!("{} bytes for {after} devices; {longest} instructions for {LISTED}", text.len()))
}

fn devices(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("device: ")).count()
}

fn mappings(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("mapping: ")).count()
}
