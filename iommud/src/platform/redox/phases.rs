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
        write!(f, "{:.1} ms", whole.as_secs_f64() * 1e3)?;
        for (name, time) in &self.over {
            write!(f, ", {name} {:.1}", time.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}
