//! What a launcher hands on to the driver that it starts (`iommu-run`, on Redox): open descriptors, named by environment
//! variables. A driver that finds them needs no name, and may be of any user.

use std::fmt;
use std::str::FromStr;

/// Environment variable with the descriptor number of a session, in decimal. The device is claimed, and not attached
/// yet unless the launcher says so. Only processes on Redox inherit sessions.
pub const SESSION_VARIABLE: &str = "IOMMU_SESSION";

/// Environment variable with an [`InterruptHandover`].
pub const INTERRUPT_VARIABLE: &str = "IOMMU_INTERRUPT";

/// An interrupt vector that a launcher reserved. As text: the five numbers in this order, in decimal, with colons
/// between them: `7:8:9:0:49`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptHandover {
    /// Descriptor of the vector's counter.
    pub counter: u32,
    /// Descriptor of an event queue without subscriptions.
    pub queue: u32,
    /// Descriptor of a timer of the monotonic clock.
    pub timer: u32,
    /// The processor's identifier in interrupt messages.
    pub processor: u8,
    /// The vector in interrupt messages: 32 to 255.
    pub vector: u8,
}

/// A text that is not an [`InterruptHandover`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHandover;

impl fmt::Display for BadHandover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{INTERRUPT_VARIABLE} is not COUNTER:QUEUE:TIMER:PROCESSOR:VECTOR")
    }
}

impl std::error::Error for BadHandover {}

impl fmt::Display for InterruptHandover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counter, queue, timer, processor, vector } = self;
        write!(f, "{counter}:{queue}:{timer}:{processor}:{vector}")
    }
}

impl FromStr for InterruptHandover {
    type Err = BadHandover;

    fn from_str(text: &str) -> Result<Self, BadHandover> {
        let parts: Vec<&str> = text.split(':').collect();
        let [counter, queue, timer, processor, vector] = parts[..] else { return Err(BadHandover) };
        Ok(Self {
            counter: number(counter)?,
            queue: number(queue)?,
            timer: number(timer)?,
            processor: number(processor)?,
            vector: number(vector).ok().filter(|vector| *vector >= 32).ok_or(BadHandover)?,
        })
    }
}

/// A number in decimal. `str::parse` would take a sign too.
fn number<T: FromStr>(text: &str) -> Result<T, BadHandover> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(BadHandover)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: InterruptHandover =
        InterruptHandover { counter: 7, queue: 8, timer: 9, processor: 0, vector: 49 };

    #[test]
    fn an_interrupt_is_five_numbers_with_colons() {
        assert_eq!(WHOLE.to_string(), "7:8:9:0:49");
        assert_eq!("7:8:9:0:49".parse(), Ok(WHOLE));
    }

    #[test]
    fn anything_else_is_no_interrupt() {
        for bad in [
            "",
            "7:8:9:0",
            "7:8:9:0:49:1",
            "7:8:9:0:",
            "+7:8:9:0:49",
            "-1:8:9:0:49",
            "7:8:9:256:49",
            "7:8:9:0:31",
            "7:8:9:0:256",
            " 7:8:9:0:49",
            "7:8:9:0:0x31",
        ] {
            assert_eq!(bad.parse::<InterruptHandover>(), Err(BadHandover), "{bad}");
        }
    }
}
