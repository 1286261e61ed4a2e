//! Where the time of starting goes: a part of the machine's boot.

use std::fmt;
use std::time::{Duration, Instant};

/// Parts of the start that are over, and how long each took.
pub(super) struct Phases {
    last: Instant,
    over: Vec<(&'static str, Duration)>,
}

impl Phases {
    /// The first part begins now.
    pub(super) fn new() -> Self {
        Self { last: Instant::now(), over: Vec::new() }
    }

    /// A part ends and the next one begins.
    pub(super) fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.over.push((name, now.saturating_duration_since(self.last)));
        self.last = now;
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole: Duration = self.over.iter().map(|(_, time)| *time).sum();
        write!(f, "{} ms", Tenths(whole))?;
        for (name, time) in &self.over {
            write!(f, ", {name} {}", Tenths(*time))?;
        }
        Ok(())
    }
}

/// Milliseconds with one digit behind the point. The library's way goes through floating point, which takes longer than
/// some of the parts.
struct Tenths(Duration);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0.as_micros() + 50) / 100;
        write!(f, "{}.{}", tenths / 10, tenths % 10)
    }
}
