//! What the other scenarios take for granted about the machine.

use std::fs::OpenOptions;

use anyhow::{Context, Result, ensure};

use crate::edu::{Edu, MAX_COUNT};
use crate::map::Mapping;
use crate::memory::{HUGE_PAGE, HugePage};
use crate::report::check;

/// Runs the scenario.
pub(crate) fn run() {
    let mut base = 0;
    check(1, || {
        base = drhd_base()?;
        Ok(format!("DRHD at {base:#x}"))
    });
    check(2, || unit_version(base));
    check(3, huge_pages);
    check(4, devices);
    check(5, copy);
    check(6, drivers);
}

/// Register base of the first DRHD (VT-d 4.1 section 8.3): the DMAR header has 48 bytes, the structure's
/// type is 0, its base is at byte 8.
fn drhd_base() -> Result<u64> {
    let table = std::fs::read("/sys/firmware/acpi/tables/DMAR").context("DMAR")?;
    ensure!(table.get(..4) == Some(b"DMAR"), "bad signature");
    ensure!(table.get(48..50) == Some(&[0, 0]), "the first structure is not a DRHD");
    let base = table.get(56..64).context("the table is too short")?;
    Ok(u64::from_le_bytes(base.try_into()?))
}

/// VER_REG is at offset 0: major version in bits 7:4, minor in 3:0 (VT-d 4.1 section 11.4.1).
fn unit_version(base: u64) -> Result<String> {
    ensure!(base != 0, "no unit was named");
    let file = OpenOptions::new().read(true).write(true).open("/dev/mem").context("/dev/mem")?;
    let registers = Mapping::new(&file, base, 4096, true)?;
    let (version, capabilities) = (registers.read32(0)?, registers.read64(8)?);
    ensure!(version == 0x10, "VER is {version:#x}");
    Ok(format!("VER {version:#x}, CAP {capabilities:#x}"))
}

fn huge_pages() -> Result<String> {
    let (a, b) = (HugePage::new("a")?, HugePage::new("b")?);
    for page in [&a, &b] {
        ensure!(page.physical.is_multiple_of(HUGE_PAGE as u64), "{:#x}", page.physical);
    }
    ensure!(a.physical != b.physical, "one page was given twice");
    Ok(format!("{:#x}, {:#x}", a.physical, b.physical))
}

fn devices() -> Result<String> {
    let all = Edu::all()?;
    ensure!(all.len() == 3, "{} found", all.len());
    for edu in &all {
        edu.alive().with_context(|| edu.function.name.clone())?;
    }
    Ok(all.iter().map(|edu| edu.function.name.as_str()).collect::<Vec<_>>().join(", "))
}

fn copy() -> Result<String> {
    let page = HugePage::new("copy")?;
    let pattern = |index: u64| 0x5a5a_0000_a5a5_0000 ^ index.wrapping_mul(0x1_0000_0001);
    let length = usize::try_from(MAX_COUNT)?;
    for edu in Edu::all()? {
        page.memory.fill(0, 4096, pattern)?;
        page.memory.fill(4096, 4096, |_| 0)?;
        edu.read_memory(page.physical, MAX_COUNT)?;
        edu.write_memory(page.physical + 4096, MAX_COUNT)?;
        let (sent, back) = (page.memory.bytes(0, length)?, page.memory.bytes(4096, length)?);
        ensure!(sent == back, "{}: the copy differs", edu.function.name);
    }
    Ok(format!("{MAX_COUNT} bytes each"))
}

fn drivers() -> Result<String> {
    for edu in Edu::all()? {
        ensure!(!edu.function.has_driver(), "{} has a driver", edu.function.name);
    }
    ensure!(
        !std::path::Path::new("/sys/class/iommu").read_dir().is_ok_and(|mut d| d.next().is_some()),
        "the kernel runs a unit"
    );
    Ok("none".into())
}
