//! Runs everything, prints what was covered, and writes `ORDERING.md`.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::controls::CONTROLS;
use super::plays::plays;
use super::random::random;
use super::real::Real;
use super::scenario::SCENARIOS;
use super::search::{Explorer, Stats};
use super::sweep::{Sweep, sweep};

/// Random interleavings without `long`, and with.
const RANDOM: (u32, u32) = (150, 4000);

/// What a run covered.
pub struct Report {
    long: bool,
    /// Name, machine and what was covered, of each play.
    plays: Vec<(&'static str, &'static str, Stats)>,
    /// Flaw, where it shows, what caught it.
    controls: Vec<(&'static str, &'static str, String)>,
    /// All plays together.
    pub total: Stats,
    /// Injected failures.
    pub sweep: Sweep,
    /// Random runs.
    pub random: Stats,
    seconds: f32,
}

/// Explores all plays on all processors, sweeps over failures, runs the controls and random interleavings.
///
/// # Errors
/// What was found, in words.
///
/// # Panics
/// When a thread did.
pub fn run(long: bool) -> Result<Report, String> {
    let started = Instant::now();
    let all = plays(long);
    let results = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(play) = all.get(at) else { break };
            let result = Explorer::<Real>::explore(play.scene.clone(), play.streams.clone());
            let result = result.map_err(|found| format!("{}: {found}", play.name));
            results.lock().unwrap().push((at, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(at, _)| *at);
    let mut total = Stats::default();
    let mut covered = Vec::new();
    for ((_, result), play) in results.into_iter().zip(&all) {
        let stats = result?;
        total.add(&stats);
        covered.push((play.name, play.scene.name, stats));
    }
    let mut controls = Vec::new();
    for control in &CONTROLS {
        let found = control.caught().ok_or_else(|| format!("{}: not caught", control.flaw))?;
        if !control.expected.contains(&found.broken.invariant) {
            return Err(format!("{}: {found}", control.flaw));
        }
        let sound = control.passes_when_sound();
        sound.map_err(|found| format!("without {}: {found}", control.flaw))?;
        let how = format!("{:?}: {}", found.broken.invariant, found.broken.how);
        controls.push((control.flaw, control.shows, how));
    }
    let sweep = sweep::<Real>().map_err(|found| found.to_string())?;
    let random = random::<Real>(if long { RANDOM.1 } else { RANDOM.0 }, 1)?;
    let seconds = started.elapsed().as_secs_f32();
    Ok(Report { long, plays: covered, controls, total, sweep, random, seconds })
}

impl Report {
    /// Numbers of the scenarios that no interleaving exercised.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        (1..=32).filter(|number| self.total.scenarios[number - 1] == 0).collect()
    }

    /// What is printed.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn words(&self) -> String {
        let mut out = String::new();
        for (name, scene, stats) in &self.plays {
            let (interleavings, events) = (stats.interleavings, stats.events);
            let states = stats.states.len();
            writeln!(out, "{interleavings:9} interleavings, {events:9} events, {states:5} states: {name} ({scene})").unwrap();
        }
        for scenario in &SCENARIOS {
            let count = self.total.scenarios[scenario.number - 1];
            let (number, title, invariants) =
                (scenario.number, scenario.title, scenario.invariants);
            writeln!(out, "S{number:<2} {count:9} interleavings, {invariants:<8} {title}").unwrap();
        }
        for (flaw, shows, how) in &self.controls {
            writeln!(out, "control: {flaw} ({shows}): caught by {how}").unwrap();
        }
        let Sweep { allocations, retries, steps, descriptors, refused, bystander } = self.sweep;
        writeln!(out, "failures: {allocations} allocations ({retries} retries granted), {steps} hardware steps, {descriptors} descriptors; {refused} requests refused, {bystander} of a bystander granted").unwrap();
        let Stats { interleavings, events, states, .. } = &self.random;
        writeln!(
            out,
            "random: {interleavings} interleavings, {events} events, {} states",
            states.len()
        )
        .unwrap();
        let Stats { interleavings, events, states, instants, .. } = &self.total;
        writeln!(out, "all: {interleavings} distinct interleavings, {events} events checked, {} states, {instants} instants, {:.1} s{}", states.len(), self.seconds, if self.long { ", long" } else { "" }).unwrap();
        out
    }

    /// The text of `ORDERING.md`.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = String::from(INTRODUCTION);
        for scenario in &SCENARIOS {
            let count = self.total.scenarios[scenario.number - 1];
            let result = if count > 0 { "holds" } else { "NOT EXERCISED" };
            writeln!(
                out,
                "| S{} | {} | {} | {} | {result}, {count} |",
                scenario.number, scenario.title, scenario.observed, scenario.invariants
            )
            .unwrap();
        }
        let Sweep { allocations, retries, steps, descriptors, refused, bystander } = self.sweep;
        writeln!(
            out,
            "\nS7 beyond that: {allocations} allocations failed one by one ({retries} refused, each granted at \
             once when tried again), a unit died at each of {steps} actions of the CPU, its queue stopped behind \
             each of {descriptors} descriptors: {refused} requests refused, {bystander} requests of a bystander \
             behind the other unit granted."
        )
        .unwrap();
        out.push_str(PLAYS);
        for (name, scene, stats) in &self.plays {
            let (interleavings, states) = (stats.interleavings, stats.states.len());
            let numbers = (1..=32).filter(|number| stats.scenarios[number - 1] > 0);
            let scenarios: Vec<String> = numbers.map(|number| format!("S{number}")).collect();
            let scenarios = scenarios.join(" ");
            writeln!(out, "| {name} | {scene} | {interleavings} | {states} | {scenarios} |")
                .unwrap();
        }
        let (interleavings, states) = (self.total.interleavings, self.total.states.len());
        writeln!(out, "| all | | {interleavings} | {states} | |").unwrap();
        out.push_str(CONTROLLED);
        for (flaw, shows, how) in &self.controls {
            let invariant = how.split(':').next().unwrap_or_default();
            writeln!(out, "| {flaw} | {shows} | {invariant} |").unwrap();
        }
        out
    }
}

const INTRODUCTION: &str = "\
# Ordering: what is shown

Written by `cargo xtask explore --write`; `cargo test -p iommud-tests --test ordering` fails when it is not what a
run says. The counts are those of the short mode; `cargo xtask explore --long` tries many more and has not ended well yet.

Each interleaving is one order of the requests of two or three clients and of what happens to the machine, run to
its end through the shipped policy, engine and server over two software VT-d units. After each event what every
function reaches, through tables and caches in any mixture, is compared with what clients were granted; at each
instant within an event (a store, a descriptor executed) every function tries addresses. The server is not asked,
except where what it tells is the matter (ids, texts, groups). `tests/src/explore/check.rs` has I1 to I8. The last
column counts interleavings in which the middle one was observed and every check passed.

| | scenario | observed | invariants | result, interleavings |
|---|---|---|---|---|
";

const PLAYS: &str = "
## Plays

Machines: `apart` has two functions behind two units; `pair` one group of two behind the first and one function
behind the second; `growing` a third member that comes; `bridge` a bridge with two functions behind it; `broken` a
dead unit, a late one, and a function behind none.

| play | machine | interleavings | states | scenarios |
|---|---|---|---|---|
";

const CONTROLLED: &str = "
## Controls

Servers that are wrong on purpose, over the same units, met by the same checks. The same server without the flaw,
and the shipped one, pass each of these plays.

| flaw | shows in | caught by |
|---|---|---|
";
