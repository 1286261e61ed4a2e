//! A driver of QEMU's edu device that copies until it is killed, or makes its device misbehave. Guests run it besides
//! edud, whose driver it uses.

#[cfg(target_os = "redox")]
mod doors;
mod options;
mod tasks;

use std::process::ExitCode;

use edud::{Driver, Failure};
use iommu_client::{Connection, Device, Error};

use options::Options;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            println!("rogue: {usage}");
            return ExitCode::from(2);
        }
    };
    let Err(failure) = run(&options) else { return ExitCode::SUCCESS };
    let refused = failure.downcast_ref::<Error>().is_some_and(|error| error.refusal().is_some());
    println!("rogue: {}: {failure}", if refused { "refused" } else { "failed" });
    ExitCode::from(if refused { 3 } else { 1 })
}

fn run(options: &Options) -> Result<(), Failure> {
    let device = match &options.device {
        Some(name) => Device::open(&Connection::system()?, name)?,
        None => Device::handed_over()?.ok_or("no device was named or handed on")?,
    };
    let (mut driver, permission) = Driver::start(&device)?;
    println!("rogue: buffer at iova {:#x}", driver.buffer.iova());
    driver.round_trip(0)?;
    tasks::carry_out(&mut driver, &device, options.task)?;
    drop(driver);
    device.detach(permission).map_err(Error::from)?;
    println!("rogue: done");
    Ok(())
}
