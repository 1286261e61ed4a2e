//! Status, and an unclaimed device under policy compat.

use anyhow::{Result, ensure};

use super::{Story, field};
use crate::edu::MAX_COUNT;
use crate::memory::HugePage;
use crate::role::pattern;
use crate::unit::{Family, Registers};

/// Check 1.
pub(super) fn status(story: &Story) -> Result<String> {
    let server = story.server()?;
    let text = server.text("status")?;
    let (table, unit) = Family::of_machine().names();
    let unit = format!("{unit} enabled");
    for (label, wanted) in
        [("table", table), ("unit 0", unit.as_str()), ("confinement", "on"), ("policy", "compat")]
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

/// Copies memory to the device and back to the next page.
pub(super) fn copy_both_ways(story: &Story, page: &HugePage) -> Result<()> {
    let length = usize::try_from(MAX_COUNT)?;
    // Drivers of other checks used the device and left its bus mastering off.
    story.legacy.function.enable(true)?;
    page.memory.fill(0, length, |index| crate::role::word(1, index))?;
    page.memory.fill(4096, length, |_| 0)?;
    story.legacy.read_memory(page.physical, MAX_COUNT)?;
    story.legacy.write_memory(page.physical + 4096, MAX_COUNT)?;
    let place = page.physical;
    ensure!(
        page.memory.bytes(4096, length)? == pattern(1, length),
        "the copy at {place:#x} differs"
    );
    Ok(())
}

/// Check 3: writes and reads the unit's tables down to the root of a page table, a buffer page, and the unit's
/// registers.
pub(super) fn attacks(story: &mut Story) -> Result<String> {
    let (memory, registers) = (story.server()?.memory()?, Registers::open()?);
    let buffer = memory.pages().first().map_or(0, |page| page.physical);
    let own = HugePage::new("loot")?;
    let mut targets = registers.tables_of(&memory, 6)?;
    targets.extend([("buffer memory", buffer), ("registers", registers.base)]);
    for (name, target) in &targets {
        let target = *target;
        ensure!(*name == "registers" || memory.contains(target), "{name} at {target:#x}?");
        story.asked.push(target);
        let before = (contents(&memory, target)?, registers.state()?);
        story.write_denied(&own, target)?;
        let after = (contents(&memory, target)?, registers.state()?);
        ensure!(before == after, "{name}: the write went through");
        story.read_denied(&own, target)?;
    }
    let names: Vec<_> = targets.iter().map(|(name, _)| *name).collect();
    Ok(format!("{}: denied, unchanged", names.join(", ")))
}

fn contents(memory: &crate::memory::ServerMemory, target: u64) -> Result<Vec<u8>> {
    if memory.contains(target) { memory.frame(target) } else { Ok(Vec::new()) }
}

impl Story {
    /// Makes the legacy device write a pattern to `target`. iommud must report the fault.
    fn write_denied(&self, own: &HugePage, target: u64) -> Result<()> {
        let server = self.server()?;
        let length = usize::try_from(MAX_COUNT)?;
        own.memory.fill(0, length, |index| crate::role::word(3, index))?;
        self.legacy.read_memory(own.physical, MAX_COUNT)?;
        let before = server.fault_lines()?;
        self.legacy.write_memory(target, MAX_COUNT)?;
        let fault = server.wait_fault(before, &self.legacy_name())?;
        super::tells(&fault, "write", Some(target))?;
        Ok(())
    }

    /// Makes the legacy device read `target`. It must get no data, and iommud must report the fault.
    fn read_denied(&self, own: &HugePage, target: u64) -> Result<()> {
        let server = self.server()?;
        let before = server.fault_lines()?;
        self.legacy.read_memory(target, MAX_COUNT)?;
        let fault = server.wait_fault(before, &self.legacy_name())?;
        super::tells(&fault, "read", Some(target))?;
        own.memory.fill(0, 4096, |_| u64::MAX)?;
        self.legacy.write_memory(own.physical, MAX_COUNT)?;
        let loot = own.memory.bytes(0, usize::try_from(MAX_COUNT)?)?;
        // A denied read returns zeros on QEMU. The device's buffer may also be unchanged.
        let nothing = loot.iter().all(|byte| *byte == 0) || loot == pattern(3, loot.len());
        ensure!(nothing, "the device read {target:#x}");
        Ok(())
    }
}
