//! Properties of the machine that the other scenarios rely on.

use anyhow::{Context, Result, ensure};

use crate::edu::{Edu, MAX_COUNT};
use crate::memory::{HUGE_PAGE, HugePage};
use crate::report::check;
use crate::unit::Registers;

/// Runs the scenario.
pub(crate) fn run() {
    check(1, || Ok(format!("DRHD at {:#x}", Registers::open()?.base)));
    check(2, unit_version);
    check(3, huge_pages);
    check(4, devices);
    check(5, copy);
    check(6, drivers);
}

fn unit_version() -> Result<String> {
    let unit = Registers::open()?;
    let (version, capabilities) = (unit.version()?, unit.capabilities()?);
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
