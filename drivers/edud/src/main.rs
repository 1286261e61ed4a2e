//! Copies a pattern to the edu device and back by DMA, and checks it.

use std::process::ExitCode;

use edud::{Driver, Failure, MOST};
use iommu_client::{Connection, Device, Error, SessionFlags};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // iommu-run hands a device on, so that none is named.
    if !matches!(words[..], [] | ["--device", _]) {
        println!(
            "usage: edud [--device SSSS--BB--DD.F]\nexit: 0 done, 1 failed, 2 usage, 3 refused"
        );
        return ExitCode::from(2);
    }
    let Err(failure) = run(words.get(1).copied()) else { return ExitCode::SUCCESS };
    let refused = failure.downcast_ref::<Error>().is_some_and(|error| error.refusal().is_some());
    println!("edud: {}: {failure}", if refused { "refused" } else { "failed" });
    ExitCode::from(if refused { 3 } else { 1 })
}

fn run(device: Option<&str>) -> Result<(), Failure> {
    let device = match device {
        Some(name) => Device::open(&Connection::system()?, name)?,
        None => Device::handed_over()?.ok_or("no device was named or handed on")?,
    };
    let (mut driver, permission) = Driver::start(&device)?;
    let confined = device.query()?.flags.contains(SessionFlags::CONFINED);
    let how = if confined { "confined" } else { "NOT CONFINED" };
    println!("edud: {} attached, {how}", device.address());
    let (length, iova) = (driver.buffer.length(), driver.buffer.iova());
    println!("edud: buffer of {length} bytes at iova {iova:#x}");
    driver.round_trip(0)?;
    println!("edud: {MOST} bytes to the device and back: same data, no fault");
    drop(driver); // bus mastering off, then the buffer
    device.detach(permission).map_err(Error::from)?;
    println!("edud: done");
    Ok(())
}
