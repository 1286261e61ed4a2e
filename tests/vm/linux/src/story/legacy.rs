//! Status, and a device that nobody claims, under policy compat.

use anyhow::{Result, ensure};

use super::{Story, field};
use crate::edu::MAX_COUNT;
use crate::memory::HugePage;
use crate::role::pattern;
use crate::unit::Registers;

/// Check 1.
pub(super) fn status(story: &Story) -> Result<String> {
    let server = story.server()?;
    let text = server.text("status")?;
    for (label, wanted) in
        [("table", "DMAR"), ("unit 0", "vt-d enabled"), ("confinement", "on"), ("policy", "compat")]
    {
        let value = field(&text, label)?;
        ensure!(value.starts_with(wanted), "{label}: {value}");
    }
    let groups = server.names("groups")?;
    let devices = server.names("devices")?;
    ensure!(field(&text, "groups")? == groups.len().to_string(), "groups: {groups:?}");
    let mut members = Vec::new();
    for group in &groups {
        let text = server.text(&format!("groups/{group}"))?;
        members.extend(text.lines().filter_map(|l| l.strip_prefix("member: ")).map(str::to_owned));
    }
    members.sort();
    ensure!(members == devices, "the groups hold {members:?}, the devices are {devices:?}");
    for device in [&story.first, &story.other, &story.legacy_name()] {
        ensure!(devices.contains(device), "{device} is missing among {devices:?}");
        let reach = field(&server.text(&format!("devices/{device}"))?, "reaches")?;
        ensure!(reach == "what policy maps", "{device} reaches {reach}");
    }
    ensure!(Registers::open()?.translates()?, "the unit does not translate");
    Ok(format!("{} devices in {} groups", devices.len(), groups.len()))
}

/// Check 2.
pub(super) fn works(story: &Story) -> Result<String> {
    let server = story.server()?;
    let (before, page) = (server.metric("faults")?, HugePage::new("legacy")?);
    copy_both_ways(story, &page)?;
    let faults = server.metric("faults")? - before;
    ensure!(faults == 0, "{faults} faults");
    Ok(format!("{MAX_COUNT} bytes both ways at bus address {:#x}", page.physical))
}

/// Memory to device and back, to the next page.
pub(super) fn copy_both_ways(story: &Story, page: &HugePage) -> Result<()> {
    let length = usize::try_from(MAX_COUNT)?;
    page.memory.fill(0, length, |index| crate::role::word(1, index))?;
    page.memory.fill(4096, length, |_| 0)?;
    story.legacy.read_memory(page.physical, MAX_COUNT)?;
    story.legacy.write_memory(page.physical + 4096, MAX_COUNT)?;
    ensure!(page.memory.bytes(4096, length)? == pattern(1, length), "the copy differs");
    Ok(())
}

/// Check 3: root table, a context table, the root of a page table, a buffer page and the unit's registers,
/// each written to and read from.
pub(super) fn attacks(story: &Story) -> Result<String> {
    let server = story.server()?;
    let (memory, registers) = (server.memory()?, Registers::open()?);
    let root = registers.root_table()?;
    let context = memory.word(root)? & !0xfff;
    let slot = u64::from(6_u8) << 3;
    // Context entry: presence in bit 0, the page table's root in bits 63:12 of the first word.
    let table = memory.word(context + slot * 16)? & !0xfff;
    let buffer = memory.pages().first().map_or(0, |page| page.physical);
    let own = HugePage::new("loot")?;
    for (name, target) in [
        ("root table", root),
        ("context table", context),
        ("page table", table),
        ("buffer memory", buffer),
        ("registers", registers.base),
    ] {
        ensure!(name == "registers" || memory.contains(target), "{name} at {target:#x}?");
        let before = (contents(&memory, target)?, registers.state()?);
        story.write_denied(&own, target)?;
        let after = (contents(&memory, target)?, registers.state()?);
        ensure!(before == after, "{name}: the write went through");
        story.read_denied(&own, target)?;
    }
    Ok("root, context and page table, buffer memory, registers: denied, unchanged".into())
}

fn contents(memory: &crate::memory::ServerMemory, target: u64) -> Result<Vec<u8>> {
    if memory.contains(target) { memory.frame(target) } else { Ok(Vec::new()) }
}

impl Story {
    /// Lets the legacy device write a pattern to `target`; iommud must tell the fault.
    fn write_denied(&self, own: &HugePage, target: u64) -> Result<()> {
        let server = self.server()?;
        let length = usize::try_from(MAX_COUNT)?;
        own.memory.fill(0, length, |index| crate::role::word(3, index))?;
        self.legacy.read_memory(own.physical, MAX_COUNT)?;
        let before = server.fault_lines()?;
        self.legacy.write_memory(target, MAX_COUNT)?;
        let fault = server.wait_fault(before, &self.legacy_name())?;
        ensure!(fault.contains("write") && fault.contains(&format!("{target:#x}")), "{fault}");
        Ok(())
    }

    /// Lets the legacy device read `target`; it must not learn anything, and iommud must tell the fault.
    fn read_denied(&self, own: &HugePage, target: u64) -> Result<()> {
        let server = self.server()?;
        let before = server.fault_lines()?;
        self.legacy.read_memory(target, MAX_COUNT)?;
        let fault = server.wait_fault(before, &self.legacy_name())?;
        ensure!(fault.contains("read") && fault.contains(&format!("{target:#x}")), "{fault}");
        own.memory.fill(0, 4096, |_| u64::MAX)?;
        self.legacy.write_memory(own.physical, MAX_COUNT)?;
        let loot = own.memory.bytes(0, usize::try_from(MAX_COUNT)?)?;
        // A denied read gives zeros on QEMU; the device's buffer may also be as it was.
        let nothing = loot.iter().all(|byte| *byte == 0) || loot == pattern(3, loot.len());
        ensure!(nothing, "the device read {target:#x}");
        Ok(())
    }
}
