//! How a driver learns that something has ended.

use std::io;
use std::time::{Duration, Instant};

use iommu_client::platform::pci;

use crate::error::Error;

/// Looks between two checks of the time and of the controller, when polling.
const LOOKS: u32 = 1024;

/// The longest wait for an interrupt before the controller is looked at: one that has failed raises none.
const LONGEST: Duration = Duration::from_millis(100);

/// Where interrupts of the controller arrive.
pub trait Interrupt {
    /// Waits until there was one since the last call, at most `timeout`; whether there was.
    ///
    /// # Errors
    /// The operating system's.
    fn wait(&mut self, timeout: Duration) -> io::Result<bool>;
}

impl Interrupt for pci::Interrupt {
    fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        Self::wait(self, timeout)
    }
}

/// How completions are waited for.
#[derive(Default)]
pub enum CompletionMode {
    /// By looking at the rings: the least delay, at the price of a processor.
    #[default]
    Poll,
    /// Asleep, until the controller's interrupt.
    Interrupt(Box<dyn Interrupt>),
}

impl CompletionMode {
    pub(crate) const fn interrupts(&self) -> bool {
        matches!(self, Self::Interrupt(_))
    }

    /// Between two looks at the rings; whether it is time to look at the controller and at the clock.
    /// `woken` counts the interrupts.
    pub(crate) fn pause(
        &mut self,
        looks: &mut u32,
        woken: &mut u64,
        deadline: Instant,
    ) -> Result<bool, Error> {
        match self {
            Self::Poll => {
                std::hint::spin_loop();
                *looks += 1;
                Ok(looks.is_multiple_of(LOOKS))
            }
            Self::Interrupt(interrupt) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let came = interrupt.wait(left.min(LONGEST)).map_err(iommu_client::Error::from)?;
                *woken += u64::from(came);
                // Interrupts without end do not stop the clock.
                Ok(!came || left.is_zero())
            }
        }
    }
}
