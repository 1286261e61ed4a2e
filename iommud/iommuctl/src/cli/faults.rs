//! `faults` and `explain`.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::outcome::{CommandError, Found};
use crate::explain::{Explained, explain as explain_one};
use crate::output::{Look, document, write_json, write_lines};
use crate::server::domain::Domain;
use crate::server::fault::{self, Fault};
use crate::server::machine::Machine;
use crate::server::{Texts, all};

/// How often `faults --follow` asks.
const PAUSE: Duration = Duration::from_millis(250);

/// How long what is known of the devices is not asked for again.
const STALE: Duration = Duration::from_secs(5);

/// What has been shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shown {
    /// Number of the last fault.
    sequence: u64,
    /// Lines that had this number.
    lines: usize,
}

impl Shown {
    /// Those of `faults` that have not been shown; now they have. Numbers that begin anew are a new server's. With them
    /// the number of those that came and went in between: the server's log has an end.
    fn news(&mut self, faults: &[Fault]) -> (u64, Vec<Fault>) {
        let last = faults.last().map_or(0, |fault| fault.sequence);
        if last < self.sequence {
            *self = Self::default();
        }
        let known = *self;
        let mut same = 0;
        let mut fresh = Vec::new();
        for fault in faults {
            same += usize::from(fault.sequence == known.sequence);
            if fault.sequence > known.sequence
                || fault.sequence == known.sequence && same > known.lines
            {
                fresh.push(fault.clone());
            }
        }
        self.lines = faults.iter().filter(|fault| fault.sequence == last).count();
        self.sequence = last;
        let next = known.sequence.saturating_add(1);
        let first = fresh.first().map_or(next, |fault| fault.sequence);
        let missed = if known == Self::default() { 0 } else { first.saturating_sub(next) };
        (missed, fresh)
    }
}

pub(super) fn faults(
    follow: bool,
    texts: &dyn Texts,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let mut shown = Shown::default();
    let (_, news) = shown.news(&fault::faults(&texts.text("faults")?));
    if json && !follow {
        let faults: Vec<Value> = news.iter().map(Fault::json).collect();
        write_json(out, &document("faults", json!({ "faults": faults })))?;
        return Ok(Found::Nothing);
    }
    let mut page = Page { texts, json, look, machine: None };
    page.print(&news, out)?;
    if !follow {
        return Ok(Found::Nothing);
    }
    loop {
        out.flush()?;
        std::thread::sleep(PAUSE);
        let (missed, news) = shown.news(&fault::faults(&texts.text("faults")?));
        page.print_missed(missed, out)?;
        page.print(&news, out)?;
    }
}

/// Where faults are shown, and what is known of their devices.
struct Page<'a> {
    texts: &'a dyn Texts,
    json: bool,
    look: Look,
    /// The machine, and when it was read.
    machine: Option<(Machine, Instant)>,
}

impl Page<'_> {
    fn print(&mut self, faults: &[Fault], out: &mut dyn Write) -> Result<(), CommandError> {
        if self.json {
            for fault in faults {
                writeln!(out, "{}", document("fault", json!({ "fault": fault.json() })))?;
            }
            return Ok(());
        }
        if faults.is_empty() {
            return Ok(());
        }
        let look = self.look;
        let machine = self.machine(faults)?;
        for fault in faults {
            let sentence = explain_one(fault, machine, &[]).sentence();
            write_lines(out, look, &format!("#{} {sentence}\n", fault.sequence))?;
        }
        Ok(())
    }

    fn print_missed(&self, missed: u64, out: &mut dyn Write) -> Result<(), CommandError> {
        if missed > 0 && !self.json {
            writeln!(out, "{missed} faults came too fast to be shown")?;
        }
        Ok(())
    }

    /// The machine. It is read again when one of these faults is of a device that it did not have, but not often:
    /// that is a request for each device.
    fn machine(&mut self, faults: &[Fault]) -> Result<&Machine, CommandError> {
        let usable = self.machine.take().filter(|(machine, read)| {
            read.elapsed() < STALE
                || faults.iter().all(|fault| machine.source(fault.device).is_some())
        });
        let machine = match usable {
            Some(known) => known,
            None => (Machine::read(self.texts)?, Instant::now()),
        };
        Ok(&self.machine.insert(machine).0)
    }
}

pub(super) fn explain(
    number: Option<u64>,
    texts: &dyn Texts,
    json: bool,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let faults = fault::faults(&texts.text("faults")?);
    let explained = explained(number, &faults, texts)?;
    if json {
        let faults: Vec<Value> = explained.iter().map(Explained::json).collect();
        write_json(out, &document("explain", json!({ "faults": faults })))?;
    } else {
        for fault in &explained {
            out.write_all(fault.text().as_bytes())?;
        }
    }
    Ok(Found::Nothing)
}

/// All lines with a number, or with the highest.
fn explained(
    number: Option<u64>,
    faults: &[Fault],
    texts: &dyn Texts,
) -> Result<Vec<Explained>, CommandError> {
    let latest = faults.last().map(|fault| fault.sequence);
    let number = number.or(latest).ok_or_else(|| CommandError::Nothing("fault".to_owned()))?;
    let wanted: Vec<&Fault> = faults.iter().filter(|fault| fault.sequence == number).collect();
    if wanted.is_empty() {
        return Err(CommandError::Nothing(format!("fault {number} in the log of the latest")));
    }
    let machine = Machine::read(texts)?;
    let domains = all(texts, "domains")?;
    let domains: Vec<Domain> = domains.iter().filter_map(|(_, text)| Domain::parse(text)).collect();
    Ok(wanted.into_iter().map(|fault| explain_one(fault, &machine, &domains)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(numbers: &[u64]) -> Vec<Fault> {
        let line = |number: &u64| {
            format!("#{number} 0000--00--04.0 write at iova 0x1000: words (reason 0x5)\n")
        };
        fault::faults(&numbers.iter().map(line).collect::<String>())
    }

    fn numbers(faults: &[Fault]) -> Vec<u64> {
        faults.iter().map(|fault| fault.sequence).collect()
    }

    #[test]
    fn each_line_is_shown_once() {
        let mut shown = Shown::default();
        let mut news = |log_of: &[u64]| {
            let (missed, faults) = shown.news(&log(log_of));
            (missed, numbers(&faults))
        };
        assert_eq!(news(&[]), (0, vec![]));
        assert_eq!(news(&[1, 2]), (0, vec![1, 2]));
        assert_eq!(news(&[1, 2]), (0, vec![]));
        assert_eq!(news(&[1, 2, 2, 3]), (0, vec![2, 3]), "a notice has the number of the last");
        assert_eq!(news(&[3, 9]), (5, vec![9]), "the log forgets the oldest");
        assert_eq!(news(&[1]), (0, vec![1]), "a new server");
    }
}
