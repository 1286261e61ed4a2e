//! The lines of the serial port, with their times.

use std::time::{Duration, Instant};

use crate::report::Report;

/// iommud's line once it accepts requests.
const SERVING: &str = "serving /scheme/iommu";

/// pcid-spawner's line before each driver.
const SPAWNING: &str = "pcid-spawner: spawn";

/// iommud's line after it has verified that it can open no more files.
const NAMELESS: &str = "name space given up";

/// The guest's line when it cannot continue its checks.
const GIVING_UP: &str = "@@log gave up";

/// All lines so far.
pub(super) struct Console {
    started: Instant,
    lines: Vec<(Duration, String)>,
    /// Checks of the guest that also depend on other lines: the check's number, and its condition on the console.
    held: &'static [(usize, Condition)],
}

/// A condition on the console for a check.
pub(super) type Condition = fn(&Console) -> Result<String, String>;

impl Console {
    /// Starts without lines.
    pub(super) fn new(held: &'static [(usize, Condition)]) -> Self {
        Self { started: Instant::now(), lines: Vec::new(), held }
    }

    /// Takes a line. Returns whether it was the guest's last.
    pub(super) fn take(&mut self, line: &str, report: &mut Report) -> bool {
        self.lines.push((self.started.elapsed(), line.to_owned()));
        // A service's line may follow the name of a log on the same line.
        let Some(text) = line.find("@@").and_then(|start| line.get(start..)) else { return false };
        let held =
            self.held.iter().find(|(number, _)| text.starts_with(&format!("@@ok {number} |")));
        let text = match held {
            Some((number, condition)) => match condition(self) {
                Ok(seen) => format!("{text}; {seen}"),
                Err(missing) => format!("@@fail {number} | {missing}"),
            },
            None => text.to_owned(),
        };
        if let Some(shown) = report.take(&text) {
            println!("{shown}");
        }
        report.ended() || text.starts_with(GIVING_UP)
    }

    /// Returns the time of the first line that contains `part`.
    pub(super) fn find(&self, part: &str) -> Option<Duration> {
        self.lines.iter().find(|(_, line)| line.contains(part)).map(|(at, _)| *at)
    }

    /// Returns the text after `part` in the first line that contains it.
    pub(super) fn after(&self, part: &str) -> Option<&str> {
        self.lines.iter().find_map(|(_, line)| Some(line.split_once(part)?.1))
    }

    fn position(&self, part: &str) -> Option<usize> {
        self.lines.iter().position(|(_, line)| line.contains(part))
    }

    /// Prints the last lines.
    pub(super) fn show(&self, count: usize) {
        for (at, line) in self.lines.iter().skip(self.lines.len().saturating_sub(count)) {
            println!("  {:>6.2} | {line}", at.as_secs_f32());
        }
    }
}

/// Checks that translation was on before the first driver started.
pub(super) fn before_drivers(console: &Console) -> Result<String, String> {
    match (console.position(SERVING), console.position(SPAWNING)) {
        (Some(serving), Some(spawning)) if serving < spawning => {
            Ok(format!("line {serving} of the console, the first driver line {spawning}"))
        }
        other => {
            Err(format!("lines of the console with the unit on and the first driver: {other:?}"))
        }
    }
}

/// Checks that iommud verified that it can open no files before it accepted requests.
pub(super) fn nameless(console: &Console) -> Result<String, String> {
    match (console.position(NAMELESS), console.position(SERVING)) {
        (Some(nameless), Some(serving)) if nameless < serving => Ok(NAMELESS.to_owned()),
        other => Err(format!("lines of the console without names and serving: {other:?}")),
    }
}

/// Checks that the driver started by pcid-spawner was launched, and reported its device, the device's identity, and
/// its interrupts, in this order.
pub(super) fn spawned(console: &Console) -> Result<String, String> {
    let words = [
        "claimed for",
        ", confined",
        "serial:    spare",
        "interrupts: a vector of the controller's own",
    ];
    let places: Vec<_> = words.iter().map(|word| console.position(word)).collect();
    if places.iter().all(Option::is_some) && places.is_sorted() {
        Ok("its words are there".into())
    } else {
        Err(format!("lines of the console with {words:?}: {places:?}"))
    }
}

/// Returns iommud's report on how it learns of faults.
pub(super) fn told(console: &Console) -> Result<String, String> {
    let words = "iommud: faults: ";
    let line = console.after(words).map(str::to_owned);
    line.ok_or_else(|| format!("no line says: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &[&str]) -> (usize, usize) {
        let mut report = Report::new(&["order"]);
        let mut console = Console::new(&[(1, before_drivers)]);
        for line in lines {
            console.take(line, &mut report);
        }
        report.counts()
    }

    #[test]
    fn a_driver_before_the_unit_fails_the_check() {
        let (serving, spawning, ok) =
            ("INFO serving /scheme/iommu", "pcid-spawner: spawn x", "@@ok 1 | on");
        assert_eq!(run(&[serving, spawning, ok]), (1, 0));
        assert_eq!(run(&[spawning, serving, ok]), (0, 1));
        assert_eq!(run(&[serving, ok]), (0, 1));
        assert_eq!(run(&[serving, spawning, "log: @@fail 1 | off"]), (0, 1));
    }
}
