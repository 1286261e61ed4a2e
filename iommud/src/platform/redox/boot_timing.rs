//! Measures the phases of starting, which is a part of the machine's boot.

use std::fmt;
use std::time::{Duration, Instant};

/// The completed phases of starting, and how long each took.
pub(super) struct Phases {
    last: Instant,
    over: Vec<(&'static str, Duration)>,
}

impl Phases {
    /// Begins the first phase.
    pub(super) fn new() -> Self {
        Self { last: Instant::now(), over: Vec::new() }
    }

    /// Ends a phase and begins the next one. `name` is the name of the ended phase.
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

/// Milliseconds with one decimal place. The library formats them through floating point, which takes longer than some
/// phases.
struct Tenths(Duration);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0.as_micros() + 50) / 100;
        write!(f, "{}.{}", tenths / 10, tenths % 10)
    }
}
