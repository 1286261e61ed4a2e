//! The story of a machine with a damaged DMAR: another file is mounted over the one that the kernel shows. Drivers
//! keep working where nothing translates, and no unconfined device is reported as confined. With the original table
//! everything works again.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::legacy::copy_both_ways;
use super::{Story, edud, field};
use crate::memory::HugePage;
use crate::process::Puppet;
use crate::report::{check, log};
use crate::unit::Registers;

const SHOWN: &str = "/sys/firmware/acpi/tables/DMAR";
const OTHER: &str = "/tmp/DMAR";

/// Header of any table (ACPI 6.5 section 5.2.6): offsets of its length and its checksum.
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;

/// Offset of the first structure of a DMAR (VT-d 4.1 section 8.1). QEMU's is the DRHD.
const FIRST: usize = 48;

/// Runs the story.
pub(crate) fn run() {
    let (mut story, table, unit) = match parts() {
        Ok(parts) => parts,
        Err(error) => return log(&format!("{error:#}")),
    };
    let (s, unit) = (&mut story, &unit);
    let flipped = || changed(&table, false, |bytes| flip_last(bytes));
    check(1, || with(s, &flipped(), "compat", |s| not_read(s, unit, "bad checksum")));
    check(2, || with(s, &flipped(), "compat", works_unconfined));
    check(3, || with(s, &flipped(), "strict", |s| refused(s, "NoUnit")));
    let short = || changed(&table, true, |bytes| bytes.truncate(40));
    check(4, || with(s, &short(), "compat", |s| not_read(s, unit, "40 bytes")));
    let lying = || changed(&table, true, |bytes| set(bytes, FIRST + 2, &0x4000_u16.to_le_bytes()));
    check(5, || with(s, &lying(), "compat", |s| unit_failed(s, unit)));
    let noisy = || changed(&table, true, noise);
    check(6, || with(s, &noisy(), "compat", |s| unit_failed(s, unit)));
    check(7, || with(s, &table, "compat", |s| confined(s, unit)));
    check(8, || with(s, &flipped(), "compat", |s| held(s, unit)));
}

/// The story's devices, the original table, and the unit that it describes.
fn parts() -> Result<(Story, Vec<u8>, Registers)> {
    Ok((Story::new()?, std::fs::read(SHOWN).context(SHOWN)?, Registers::open()?))
}

/// Returns a damaged copy. With `mended`, its length and checksum are corrected.
fn changed(table: &[u8], mended: bool, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = table.to_vec();
    change(&mut bytes);
    if mended {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        set(&mut bytes, LENGTH, &length.to_le_bytes());
        set(&mut bytes, CHECKSUM, &[0]);
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        set(&mut bytes, CHECKSUM, &[sum.wrapping_neg()]);
    }
    bytes
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

fn flip_last(bytes: &mut [u8]) {
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
}

/// Replaces the structures by 2,000 arbitrary bytes, the same each time.
fn noise(bytes: &mut Vec<u8>) {
    bytes.truncate(FIRST);
    let mut state = 12345_u32;
    for _ in 0..2000 {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345) & 0x7fff_ffff;
        bytes.push(state.to_le_bytes()[2]);
    }
}

/// Runs a check while iommud serves with this table.
fn with(
    story: &mut Story,
    table: &[u8],
    policy: &str,
    check: impl FnOnce(&Story) -> Result<String>,
) -> Result<String> {
    std::fs::write(OTHER, table)?;
    mount_bind(Path::new(OTHER), Path::new(SHOWN)).context("mounting the damaged table")?;
    let told = story.serve(policy).and_then(|()| check(story));
    let stopped = story.server.take().map_or(Ok(()), crate::server::Server::stop);
    unmount(SHOWN, UnmountFlags::empty()).context("the table as it was")?;
    let told = told?;
    stopped?;
    Ok(told)
}

/// Checks 1 and 4.
fn not_read(story: &Story, unit: &Registers, reason: &str) -> Result<String> {
    let text = story.server()?.text("status")?;
    let table = field(&text, "table")?;
    ensure!(table.starts_with("DMAR failed(") && table.contains(reason), "table: {table}");
    let confinement = field(&text, "confinement")?;
    ensure!(confinement.starts_with("NOT CONFINED"), "confinement: {confinement}");
    ensure!(!unit.translates()?, "a unit that nobody described translates");
    Ok(format!("table: {table}; confinement: {confinement}"))
}

/// Check 2.
fn works_unconfined(story: &Story) -> Result<String> {
    let output = edud(&story.first, 0)?;
    ensure!(output.contains(", NOT CONFINED"), "{output}");
    copy_both_ways(story, &HugePage::new("legacy")?)?;
    Ok(format!("{} and {}", story.first, story.legacy_name()))
}

/// Check 3.
fn refused(story: &Story, refusal: &str) -> Result<String> {
    let mut driver = Puppet::start()?;
    driver.expect_refusal(&format!("claim {}", story.first), refusal)?;
    Ok(format!("{}: {refusal}", story.first))
}

/// Checks 5 and 6: the unit in the table keeps its number, and is treated as failed.
fn unit_failed(story: &Story, registers: &Registers) -> Result<String> {
    let text = story.server()?.text("status")?;
    let unit = field(&text, "unit 0")?;
    ensure!(unit.contains("failed(") && !unit.contains("enabled"), "unit 0: {unit}");
    let confinement = field(&text, "confinement")?;
    ensure!(!confinement.starts_with("on"), "confinement: {confinement}");
    ensure!(!registers.translates()?, "a unit that is not to be used translates");
    refused(story, "UnitFailed")?;
    copy_both_ways(story, &HugePage::new("legacy")?)?;
    Ok(format!("unit 0: {unit}"))
}

/// Check 7.
fn confined(story: &Story, unit: &Registers) -> Result<String> {
    let text = story.server()?.text("status")?;
    ensure!(field(&text, "confinement")?.starts_with("on"), "{text}");
    ensure!(unit.translates()?, "the unit does not translate");
    let output = edud(&story.first, 0)?;
    ensure!(!output.contains("NOT CONFINED"), "{output}");
    Ok(format!("unit 0: {}", field(&text, "unit 0")?))
}

/// Check 8: the unit keeps translating through tables of the previous server, whose memory must not be reused.
fn held(story: &Story, unit: &Registers) -> Result<String> {
    ensure!(unit.translates()?, "translation is off");
    let root = unit.root_table()?;
    ensure!(story.server()?.memory()?.contains(root), "the root table is anybody's");
    copy_both_ways(story, &HugePage::new("held")?)?;
    Ok(format!("{} works under the tables of before", story.legacy_name()))
}
