//! What the tests of iommud let the driver do besides: copy for ever, and misbehave.

use std::time::Duration;

use crate::edu::{Direction, MOST};
use crate::options::Task;
use crate::{Driver, Failure};

/// How long a fault may take to be told.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a rogue DMA.
const ROGUE: u64 = 64;

impl Driver<'_> {
    pub(crate) fn carry_out(&mut self, task: Task) -> Result<(), Failure> {
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
}
