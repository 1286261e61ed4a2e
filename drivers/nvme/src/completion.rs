//! The ways in which a driver learns of completions.

use std::io;
use std::time::{Duration, Instant};

use iommu_client::platform::pci;

use crate::error::Error;

/// Looks at the rings between two checks of the time and of the controller, when polling.
const LOOKS: u32 = 1024;

/// The longest wait for an interrupt before the controller is checked, since a failed one raises none.
const LONGEST: Duration = Duration::from_millis(100);

/// The interrupts of the controller.
pub trait Interrupt {
    /// Waits at most `timeout` for an interrupt since the last call. Returns whether there was one.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn wait(&mut self, timeout: Duration) -> io::Result<bool>;
}

impl Interrupt for pci::Interrupt {
    fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        Self::wait(self, timeout)
    }
}

/// How the driver waits for completions.
#[derive(Default)]
pub enum CompletionMode {
    /// It looks at the rings: the least delay, at the price of a processor.
    #[default]
    Poll,
    /// It sleeps until the controller's interrupt.
    Interrupt(Box<dyn Interrupt>),
}

impl CompletionMode {
    pub(crate) const fn interrupts(&self) -> bool {
        matches!(self, Self::Interrupt(_))
    }

    /// Pauses between two looks at the rings. Returns whether it is time to check the controller and the clock.
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
                // A controller that interrupts without end cannot keep the deadline from being checked.
                Ok(!came || left.is_zero())
            }
        }
    }
}
