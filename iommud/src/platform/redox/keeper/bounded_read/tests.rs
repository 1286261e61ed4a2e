//! Tests over a clock that steps back, like the kernel's.

use std::cell::Cell;

use super::*;

const MS: u64 = 1_000_000;

/// A system whose times are in nanoseconds. Alarms are set by the clock, like those of the time scheme, but arrive by
/// the true time.
#[derive(Default)]
struct Machine {
    /// The true time.
    time: Cell<u64>,
    /// The amounts by which the next readings of the clock are too low, repeated in a cycle.
    low: Vec<u64>,
    readings: Cell<usize>,
    /// Alarms whose events are pending, and the count of all that were ever set.
    pending: Vec<u64>,
    alarms: usize,
    /// A watched file wakes the wait this often. 0: never.
    file_every: u64,
}

impl Machine {
    fn stepping_back(low: &[u64]) -> Self {
        Self { time: Cell::new(1000 * MS), low: low.to_vec(), ..Self::default() }
    }

    /// Reads the clock, which takes 10 µs.
    fn clock(&self) -> u64 {
        let reading = self.readings.get();
        self.readings.set(reading + 1);
        self.time.set(self.time.get() + MS / 100);
        self.time.get() - self.low.get(reading % self.low.len().max(1)).copied().unwrap_or(0)
    }
}

impl Waits for Machine {
    fn alarm(&mut self, after: Duration) -> io::Result<()> {
        self.pending.push(self.clock() + u64::try_from(after.as_nanos()).unwrap());
        self.alarms += 1;
        assert!(self.pending.len() < 3, "alarms are set faster than they come");
        Ok(())
    }

    /// Waits for the next event. `Deadlock` when no event would ever arrive.
    fn next(&mut self) -> io::Result<Woken> {
        let first = self.pending.iter().copied().min();
        let file = (self.file_every > 0).then(|| self.time.get() + self.file_every);
        if let Some(file) = file.filter(|file| first.is_none_or(|first| *file < first)) {
            self.time.set(file);
            return Ok(Woken::File);
        }
        let first = first.ok_or(io::ErrorKind::Deadlock)?;
        self.pending.retain(|alarm| *alarm != first);
        self.time.set(self.time.get().max(first));
        Ok(Woken::Timer)
    }
}

/// Steps of a clock that were observed: of one tick, and of several on a busy host.
const STEPS: [&[u64]; 5] = [
    &[0, 4 * MS, 0, 0, 4 * MS, 0, 0],
    &[0, 0, 0, 48 * MS],
    &[0, 12 * MS, 48 * MS, 0, 4 * MS],
    &[4 * MS],
    &[0, 5 * MS, 0, 20 * MS, 0, 48 * MS, 0, 0, 0, 30 * MS],
];

fn nothing() -> io::Result<usize> {
    Err(io::ErrorKind::WouldBlock.into())
}

fn lives() -> io::Result<bool> {
    Ok(false)
}

/// Decides by the clock whether the event of an alarm has come, as an earlier version of the keeper did. It shows
/// that the test bed finds the defect.
fn wait_by_the_clock(machine: &mut Machine, limit: u64) -> io::Result<usize> {
    let slice = u64::try_from(SLICE.as_nanos()).unwrap();
    let started = machine.clock();
    let mut armed = None;
    loop {
        if machine.clock().saturating_sub(started) >= limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let now = machine.clock();
        if armed.is_none_or(|armed| armed <= now) {
            machine.alarm(SLICE)?;
            armed = Some(now + slice);
        }
        machine.next()?;
    }
}

#[test]
fn a_wait_ends_whatever_the_clock_does() {
    for low in STEPS {
        for limit in [0, 1, 100, 10_000] {
            let mut patience = Patience::new(Machine::stepping_back(low));
            let ended = patience.read(Duration::from_millis(limit), lives, nothing);
            let error = ended.expect_err("nothing comes");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{low:?} {limit} ms");
            // The times by which alarms come early do not add up to more than the steps.
            let took = (patience.waits.time.get() - 1000 * MS) / MS;
            assert!(took <= limit + 100, "{took} ms of {limit} with {low:?}");
            let steps = low.iter().sum::<u64>() / MS;
            let readings = u64::try_from(low.len()).unwrap();
            assert!(took + limit * steps / readings / 20 + 50 >= limit, "{took} ms of {limit}");
        }
    }
}

/// One reading of the clock is too low, at each position of a wait, by each amount: less than a slice, more, and nearly
/// as much as the machine has run. No wait is without an alarm ([`Machine::next`] would be a deadlock), nor late.
#[test]
fn a_step_at_any_reading_leaves_no_wait_without_an_alarm() {
    const LIMIT: Duration = Duration::from_secs(1);
    const READINGS: usize = 60;
    let ends = |low: &[u64], what: &str| {
        let mut patience = Patience::new(Machine::stepping_back(low));
        let ended = patience.read(LIMIT, lives, nothing).expect_err("nothing comes").kind();
        assert_eq!(ended, io::ErrorKind::TimedOut, "{what}");
        let took = patience.waits.time.get() - 1000 * MS;
        assert!(took <= 1100 * MS, "{what}: {took} ns");
        patience.waits.readings.get()
    };
    let readings = ends(&[0], "a clock that is right");
    assert!((50..READINGS).contains(&readings), "{readings}: not every reading is a position");
    for step in [1, 4 * MS, 19 * MS, 20 * MS, 21 * MS, 48 * MS, 900 * MS] {
        for first in 0..READINGS {
            for second in first..READINGS {
                let mut low = vec![0; READINGS];
                for wrong in [first, second] {
                    *low.get_mut(wrong).unwrap() = step;
                }
                ends(&low, &format!("{step} ns at {first} and {second}"));
            }
        }
    }
}

#[test]
fn who_asks_the_clock_waits_for_ever() {
    let hung = STEPS.iter().filter(|low| {
        let mut machine = Machine::stepping_back(low);
        let ended = wait_by_the_clock(&mut machine, 10_000 * MS).unwrap_err().kind();
        ended == io::ErrorKind::Deadlock
    });
    assert!(hung.count() >= 3, "the test bed does not show the defect");
    let mut steady = Machine::stepping_back(&[0]);
    let ended = wait_by_the_clock(&mut steady, 10_000 * MS).unwrap_err().kind();
    assert_eq!(ended, io::ErrorKind::TimedOut);
}

#[test]
fn one_alarm_is_set_at_a_time_from_one_read_to_the_next() {
    let mut patience = Patience::new(Machine::stepping_back(&[0, 48 * MS]));
    patience.waits.file_every = MS;
    for _ in 0..50 {
        let mut tries = 0;
        let read = patience.read(Duration::from_secs(1), lives, || {
            tries += 1;
            if tries < 8 { nothing() } else { Ok(5) }
        });
        assert_eq!(read.unwrap(), 5);
    }
    // There are 350 wakes of 1 ms each. Alarms arrive every 20 ms, or early.
    let (alarms, pending) = (patience.waits.alarms, patience.waits.pending.len());
    assert!(pending <= 1 && (10..=40).contains(&alarms), "{alarms} alarms, {pending} pending");
}

#[test]
fn files_that_wake_are_no_time_that_passes() {
    let mut patience = Patience::new(Machine::stepping_back(&[0]));
    patience.waits.file_every = MS;
    let started = patience.waits.time.get();
    let ended = patience.read(Duration::from_millis(200), lives, nothing);
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(patience.waits.time.get() - started >= 200 * MS);
}

#[test]
fn what_was_said_before_an_end_is_heard() {
    let mut patience = Patience::new(Machine::stepping_back(&[0]));
    let read = patience.read(Duration::from_secs(1), || Ok(true), || Ok(3));
    assert_eq!(read.unwrap(), 3);
    let ended = patience.read(Duration::from_secs(1), || Ok(true), nothing);
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // The server ends during the wait, and had written something before.
    let looks = Cell::new(0);
    let ended = || {
        looks.set(looks.get() + 1);
        Ok(looks.get() > 2)
    };
    let read = patience.read(Duration::from_secs(1), ended, || match looks.get() {
        1 | 2 => nothing(),
        _ => Ok(1),
    });
    assert_eq!(read.unwrap(), 1);
    assert_eq!(patience.waits.alarms, 2);
}

#[test]
fn what_the_system_refuses_ends_the_wait() {
    let mut patience = Patience::new(Machine::stepping_back(&[0]));
    let refused = || Err(io::ErrorKind::PermissionDenied.into());
    let read = patience.read(Duration::from_secs(1), lives, refused);
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let ended = patience.read(Duration::from_secs(1), refused_end, nothing);
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::NotFound);
}

fn refused_end() -> io::Result<bool> {
    Err(io::ErrorKind::NotFound.into())
}
