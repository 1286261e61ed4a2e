//! `top`: what happens, again and again. Each interval costs the server one text, however much happens.

use std::io::Write;
use std::time::{Duration, Instant};

use super::arguments::Top;
use super::outcome::{CommandError, Found};
use crate::output::{Look, document, write_json, write_lines};
use crate::server::Texts;
use crate::server::activity::Activity;
use crate::top::{Interval, json, text};
use crate::tree::process_name;

/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Waits between two readings.
pub(super) trait Pace {
    /// Waits until the next reading is due; returns the time since the last.
    fn pause(&mut self) -> Duration;
}

/// A pace by the clock.
pub(super) struct Steady {
    interval: Duration,
    last: Instant,
}

impl Steady {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, last: Instant::now() }
    }
}

impl Pace for Steady {
    fn pause(&mut self) -> Duration {
        std::thread::sleep(self.interval.saturating_sub(self.last.elapsed()));
        let elapsed = self.last.elapsed();
        self.last += elapsed;
        elapsed
    }
}

/// How intervals are shown.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) json: bool,
    pub(super) look: Look,
}

pub(super) fn top(
    options: &Top,
    texts: &dyn Texts,
    pace: &mut dyn Pace,
    page: Page,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let first = read(texts)?;
    if options.once {
        let whole = Interval::whole(&first);
        if page.json {
            write_json(out, &document("top", json(&whole, &process_name)))?;
        } else {
            write_lines(out, page.look, &text(&whole, page.look, &process_name))?;
        }
        return Ok(Found::Nothing);
    }
    let mut watch = Watch { texts, page, before: Some(first), elapsed: Duration::ZERO };
    let mut shown = 0;
    while options.count.is_none_or(|count| shown < count) {
        shown += u64::from(watch.step(pace.pause(), out)?);
        out.flush()?;
    }
    Ok(Found::Nothing)
}

fn read(texts: &dyn Texts) -> Result<Activity, iommu_client::Error> {
    Ok(Activity::parse(&texts.text("activity")?))
}

/// The readings.
struct Watch<'a> {
    texts: &'a dyn Texts,
    page: Page,
    /// The last one; `None` when the server has gone since.
    before: Option<Activity>,
    /// The time since the last one.
    elapsed: Duration,
}

impl Watch<'_> {
    /// Reads once more and shows what happened. Says whether the server was there.
    fn step(&mut self, elapsed: Duration, out: &mut dyn Write) -> Result<bool, CommandError> {
        self.elapsed = self.elapsed.saturating_add(elapsed);
        let now = match read(self.texts) {
            Ok(now) => now,
            Err(iommu_client::Error::Disconnected) => {
                if self.before.take().is_some() && !self.page.json {
                    writeln!(out, "iommud is gone; waiting for the next one")?;
                }
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let elapsed = std::mem::take(&mut self.elapsed);
        let interval = match &self.before {
            Some(before) => Interval::between(before, &now, elapsed),
            None => {
                let from_its_start = Interval::between(&Activity::default(), &now, elapsed);
                Interval { restarted: true, ..from_its_start }
            }
        };
        self.before = Some(now);
        self.show(&interval, out)?;
        Ok(true)
    }

    fn show(&self, interval: &Interval, out: &mut dyn Write) -> Result<(), CommandError> {
        let Page { json: as_json, look } = self.page;
        if as_json {
            writeln!(out, "{}", document("top", json(interval, &process_name)))?;
            return Ok(());
        }
        if look.width.is_some() {
            out.write_all(CLEAR.as_bytes())?;
        }
        write_lines(out, look, &text(interval, look, &process_name))?;
        if look.width.is_none() {
            writeln!(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use iommu_client::{Error, Refusal};

    use super::*;
    use crate::server::activity::tests::TEXT;
    use crate::top::tests::LATER;

    /// A server that says these texts one after the other, and is gone where there is none.
    struct Script(RefCell<VecDeque<Option<String>>>);

    impl Script {
        fn new(texts: &[Option<&str>]) -> Self {
            Self(RefCell::new(texts.iter().map(|text| text.map(str::to_owned)).collect()))
        }
    }

    impl Texts for Script {
        fn text(&self, path: &str) -> Result<String, Error> {
            assert_eq!(path, "activity", "one text says all");
            match self.0.borrow_mut().pop_front() {
                Some(text) => text.ok_or(Error::Disconnected),
                None => Err(Refusal::NotFound.into()),
            }
        }

        fn names(&self, path: &str) -> Result<Vec<String>, Error> {
            panic!("nothing is listed, not even {path}");
        }
    }

    /// Two seconds each.
    struct Two;

    impl Pace for Two {
        fn pause(&mut self) -> Duration {
            Duration::from_secs(2)
        }
    }

    const PLAIN: Page = Page { json: false, look: Look { colour: false, width: None } };

    fn shown(count: Option<u64>, page: Page, texts: &[Option<&str>]) -> (String, Option<String>) {
        let options = Top { interval: Duration::from_secs(1), count, once: false };
        let script = Script::new(texts);
        let mut out = Vec::new();
        let result = top(&options, &script, &mut Two, page, &mut out);
        let error = result.err().map(|error| error.to_string());
        assert!(script.0.borrow().is_empty(), "one reading an interval");
        (String::from_utf8(out).unwrap(), error)
    }

    fn headings(text: &str) -> Vec<&str> {
        text.lines().filter(|line| line.starts_with("iommud")).collect()
    }

    #[test]
    fn each_interval_is_one_block_and_one_text() {
        let (text, error) = shown(Some(2), PLAIN, &[Some(TEXT), Some(LATER), Some(LATER)]);
        assert_eq!(error, None);
        let expected = [
            "iommud, per second over 2.0 s: 300 calls, 0.5 refused, 8.0 faults, 2.0 faults lost in hardware",
            "iommud, per second over 2.0 s: 0 calls, 0 refused, 0 faults",
        ];
        assert_eq!(headings(&text), expected);
        assert!(text.ends_with("\n2 more devices\n\n"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn a_terminal_is_drawn_anew() {
        let page = Page { look: Look { colour: false, width: Some(80) }, ..PLAIN };
        let (text, _) = shown(Some(2), page, &[Some(TEXT), Some(LATER), Some(LATER)]);
        assert_eq!(text.matches("\x1b[2J\x1b[Hiommud, ").count(), 2, "{text:?}");
        assert!(text.lines().all(|line| line.chars().count() <= 80 + CLEAR.len()), "{text:?}");
    }

    /// Counts that are smaller are a new server's, whether or not it was seen to be gone. It is said once.
    #[test]
    fn a_server_that_is_started_anew_is_counted_from_its_start() {
        let anew = "iommud was started anew: counted since";
        let texts = [Some(LATER), Some(TEXT), Some(LATER)];
        let (text, _) = shown(Some(2), PLAIN, &texts);
        let seen = headings(&text);
        let first = "iommud, per second over 2.0 s: 20 calls, 0.5 refused, 1.5 faults (0.5 of no known device)";
        assert_eq!((seen[0], seen[1], seen.len()), (anew, first, 3));

        let texts = [Some(TEXT), None, None, Some(LATER), Some(LATER)];
        let (text, _) = shown(Some(2), PLAIN, &texts);
        let seen = headings(&text);
        assert_eq!(seen[..2], ["iommud is gone; waiting for the next one", anew]);
        assert!(seen[2].starts_with("iommud, per second over 6.0 s: 107 calls, "), "{text}");
        assert_eq!((seen.len(), &seen[3][..35]), (4, "iommud, per second over 2.0 s: 0 ca"));
    }

    #[test]
    fn another_error_ends_it() {
        let (text, error) = shown(None, PLAIN, &[Some(TEXT), Some(LATER)]);
        assert_eq!(headings(&text).len(), 1);
        assert!(error.is_some(), "the script ends with a refusal");
    }

    #[test]
    fn json_is_a_document_a_line() {
        let page = Page { json: true, ..PLAIN };
        let texts = [Some(TEXT), Some(LATER), None, Some(TEXT)];
        let (text, _) = shown(Some(2), page, &texts);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [one, two] = &lines[..] else { panic!("{text}") };
        assert_eq!((&one["schema"], &one["seconds"]), (&"iommuctl.top/1".into(), &2.0.into()));
        assert_eq!((&one["calls"], &one["restarted"]), (&600.into(), &false.into()));
        assert_eq!((&two["calls"], &two["restarted"]), (&40.into(), &true.into()));
        assert_eq!(two["seconds"], 4.0);
    }

    #[test]
    fn a_pace_is_kept_by_the_clock() {
        let mut pace = Steady::new(Duration::from_millis(5));
        let (start, mut sum) = (pace.last, Duration::ZERO);
        for _ in 0..3 {
            let elapsed = pace.pause();
            assert!(elapsed >= Duration::from_millis(5), "{elapsed:?}");
            sum += elapsed;
        }
        assert_eq!(start + sum, pace.last, "no time is lost between two intervals");
    }
}
