//! Driver of QEMU's edu device: the smallest complete user of iommu-client, and the rogue in the tests.

mod edu;
mod options;

use std::process::ExitCode;
use std::time::Duration;

use iommu_client::{BufferOptions, Connection, Device, DmaBuffer, Error, SessionFlags};

use edu::{Direction, Edu, MOST};
use options::{Options, Task};

/// How long a fault may take to be told.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a rogue DMA.
const ROGUE: u64 = 64;

/// Why the driver ends other than as expected.
enum Failure {
    Client(Error),
    WrongData { at: u64 },
    NoFault,
    Fault(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl Failure {
    /// Says what happened; gives the exit code.
    fn report(&self) -> u8 {
        match self {
            Self::Client(error) if error.refusal().is_some() => {
                println!("edud: refused: {error}");
                3
            }
            Self::Client(error) => {
                println!("edud: failed: {error}");
                1
            }
            Self::WrongData { at } => {
                println!("edud: wrong data at byte {at}");
                4
            }
            Self::NoFault => {
                println!("edud: no fault came");
                5
            }
            Self::Fault(fault) => {
                println!("edud: a fault that was not expected: {fault}");
                6
            }
        }
    }
}

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
    fn carry_out(&mut self, task: Task) -> Result<(), Failure> {
        match task {
            Task::Once => Ok(()),
            Task::Rogue { iova, read } => {
                let direction = if read { Direction::FromMemory } else { Direction::ToMemory };
                self.expect_fault(iova, direction)
            }
            Task::UnmapThenDma => self.unmap_then_dma(),
            Task::Loop => {
                for round in 1.. {
                    self.round_trip(round)?;
                    if round % 100 == 0 {
                        println!("edud: {round} rounds");
                    }
                }
                Ok(())
            }
            Task::Hold => {
                println!("edud: holding");
                loop {
                    self.edu.dma(self.buffer.iova(), MOST, Direction::ToMemory)?;
                }
            }
        }
    }

    /// Memory to device, other bytes over the memory, device to memory: the pattern is back.
    fn round_trip(&mut self, round: u64) -> Result<(), Failure> {
        let pattern: Vec<u8> = (0..MOST).map(|index| pattern(round, index)).collect();
        self.buffer.write(0, &pattern)?;
        self.edu.dma(self.buffer.iova(), MOST, Direction::FromMemory)?;
        self.buffer.write(0, &vec![0xee; pattern.len()])?;
        self.edu.dma(self.buffer.iova(), MOST, Direction::ToMemory)?;
        self.check(&pattern)?;
        self.expect_none()
    }

    /// The memory stays as it is when the device writes to where it was mapped.
    fn unmap_then_dma(&mut self) -> Result<(), Failure> {
        self.buffer.unmap()?;
        println!("edud: unmapped");
        let kept = vec![0x5a; usize::try_from(MOST).unwrap_or(0)];
        self.buffer.write(0, &kept)?;
        self.expect_fault(self.buffer.iova(), Direction::ToMemory)?;
        self.check(&kept)?;
        println!("edud: memory untouched");
        Ok(())
    }

    fn expect_fault(&mut self, iova: u64, direction: Direction) -> Result<(), Failure> {
        self.edu.dma(iova, ROGUE, direction)?;
        let fault = self.device.wait_fault(PATIENCE)?.ok_or(Failure::NoFault)?;
        let page = |address: u64| address & !0xfff;
        let ours = fault.source == self.device.address()
            && fault.address.is_none_or(|address| page(address) == page(iova));
        if !ours {
            return Err(Failure::Fault(fault.to_string()));
        }
        println!("edud: fault {fault}");
        Ok(())
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
