//! Driver of QEMU's edu device: the smallest complete user of iommu-client, and the rogue in the tests.
//!
//! The driver is this file and `edu.rs`; the rest is for the tests of iommud.

mod edu;
mod failure;
mod options;
mod tasks;

use std::process::ExitCode;

use iommu_client::{BufferOptions, Connection, Device, DmaBuffer, SessionFlags};

use edu::{Direction, Edu, MOST};
use failure::Failure;
use options::Options;

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        Ok(options) => match run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report().into(),
        },
        Err(usage) => {
            println!("edud: {usage}");
            2.into()
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let connection = Connection::system()?;
    let device = Device::open(&connection, &options.device)?;
    let permission = device.attach()?;
    let confined = device.query()?.flags.contains(SessionFlags::CONFINED);
    println!(
        "edud: {} attached, {}",
        device.address(),
        if confined { "confined" } else { "NOT CONFINED" }
    );

    let buffer = device.allocate(4096, BufferOptions::default())?;
    let edu = Edu::start(&device, &permission)?;
    let mut driver = Driver { edu, buffer, device: &device };
    println!(
        "edud: buffer of {} bytes at iova {:#x}",
        driver.buffer.length(),
        driver.buffer.iova()
    );
    driver.round_trip(0)?;
    println!("edud: {MOST} bytes to the device and back: same data, no fault");
    driver.carry_out(options.task)?;

    drop(driver); // bus mastering off, then the buffer
    device.detach(permission)?;
    println!("edud: done");
    Ok(())
}

struct Driver<'device> {
    /// Dropped first: no bus mastering while the buffer goes.
    edu: Edu,
    buffer: DmaBuffer,
    device: &'device Device,
}

impl Driver<'_> {
    /// Memory to device, other bytes over the memory, device to memory: the pattern is back.
    fn round_trip(&mut self, round: u64) -> Result<(), Failure> {
        let pattern: Vec<u8> = (0..MOST).map(|index| pattern(round, index)).collect();
        self.buffer.write(0, &pattern)?;
        self.edu.dma(self.buffer.iova(), MOST, Direction::FromMemory)?;
        self.buffer.write(0, &vec![0xee; pattern.len()])?;
        self.edu.dma(self.buffer.iova(), MOST, Direction::ToMemory)?;
        let checked = self.check(&pattern);
        // Why data is wrong is for the server to say: a fault, or that it is gone and with it the mapping.
        self.expect_none()?;
        checked
    }

    fn expect_none(&self) -> Result<(), Failure> {
        self.device.next_fault()?.map_or(Ok(()), |fault| Err(Failure::Fault(fault.to_string())))
    }

    fn check(&self, expected: &[u8]) -> Result<(), Failure> {
        let mut found = vec![0; expected.len()];
        self.buffer.read(0, &mut found)?;
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        differs.map_or(Ok(()), |at| Err(Failure::WrongData { at: at as u64 }))
    }
}

/// Differs from its neighbours, from round to round and from any single repeated byte.
fn pattern(round: u64, index: u64) -> u8 {
    let [low, ..] = (index.wrapping_mul(31) ^ index >> 5).wrapping_add(round * 7).to_le_bytes();
    low
}
