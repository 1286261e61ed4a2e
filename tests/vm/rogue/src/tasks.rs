//! Endless copying, and misbehaviour.

use std::time::Duration;

use edud::{Direction, Driver, Failure, MOST};
use iommu_client::Device;

use crate::options::Task;

/// Time limit for the report of a fault.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a rogue DMA.
const ROGUE: u64 = 64;

/// Runs a task.
pub(crate) fn carry_out(
    driver: &mut Driver<'_>,
    device: &Device,
    task: Task,
) -> Result<(), Failure> {
    match task {
        Task::Rogue { iova, read } => {
            let direction = if read { Direction::FromMemory } else { Direction::ToMemory };
            expect_fault(driver, device, iova, direction)
        }
        Task::UnmapThenDma => unmap_then_dma(driver, device),
        #[cfg(target_os = "redox")]
        Task::Doors => crate::doors::try_all(driver, device),
        #[cfg(not(target_os = "redox"))]
        Task::Doors => Err("only drivers on Redox are launched without names".into()),
        Task::Loop => {
            for round in 1.. {
                driver.round_trip(round)?;
                if round % 100 == 0 {
                    println!("rogue: {round} rounds");
                }
            }
            Ok(())
        }
        Task::Hold => {
            println!("rogue: holding");
            loop {
                driver.edu.dma(driver.buffer.iova(), MOST, Direction::ToMemory)?;
            }
        }
    }
}

/// Checks that the device does not change the memory after it was unmapped.
fn unmap_then_dma(driver: &mut Driver<'_>, device: &Device) -> Result<(), Failure> {
    driver.buffer.unmap()?;
    println!("rogue: unmapped");
    let kept = vec![0x5a; usize::try_from(MOST).unwrap_or(0)];
    driver.buffer.write(0, &kept)?;
    expect_fault(driver, device, driver.buffer.iova(), Direction::ToMemory)?;
    driver.check(&kept)?;
    println!("rogue: memory untouched");
    Ok(())
}

fn expect_fault(
    driver: &mut Driver<'_>,
    device: &Device,
    iova: u64,
    direction: Direction,
) -> Result<(), Failure> {
    driver.edu.dma(iova, ROGUE, direction)?;
    let fault = device.wait_fault(PATIENCE)?.ok_or("no fault came")?;
    let page = |address: u64| address & !0xfff;
    let ours = fault.source == device.address()
        && fault.address.is_none_or(|address| page(address) == page(iova));
    if !ours {
        return Err(format!("a fault that was not expected: {fault}").into());
    }
    println!("rogue: fault {fault}");
    Ok(())
}
