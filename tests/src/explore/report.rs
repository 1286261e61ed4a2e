//! The printed report of a run, and `ORDERING.md`.

use std::fmt::Write as _;

use super::exhaust::Exhausted;
use super::free::Covered;
use super::scenario::SCENARIOS;
use super::scene::Vendor;
use super::stages::Report;
use super::stats::Stats;
use super::sweep::Sweep;

/// Describes the coverage of free choice on a machine.
#[must_use]
pub fn freely(words: &str, vendor: Vendor, covered: &Covered) -> String {
    let Covered { depth, states, transitions, interleavings, again, scenarios } = covered;
    let (vendor, seen) = (vendor.name(), counted(scenarios));
    format!(
        "free choice ({words}, {vendor}): every choice to depth {depth}: {states} states, {transitions} \
         transitions, {interleavings} interleavings, {again} states carried on again; {seen}"
    )
}

/// Lists the scenarios seen, each with its number of choices.
fn counted(scenarios: &[u64; 32]) -> String {
    let seen = scenarios.iter().zip(1..).filter(|(count, _)| **count > 0);
    let seen: Vec<String> = seen.map(|(count, number)| format!("S{number} {count}")).collect();
    seen.join(", ")
}

impl Report {
    /// Numbers of the scenarios that no interleaving exercised.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        (1..=32).filter(|number| self.total.scenarios[number - 1] == 0).collect()
    }

    /// Failures injected over the units of both vendors.
    #[must_use]
    pub fn swept(&self) -> Sweep {
        let mut swept = Sweep::default();
        self.sweeps.iter().for_each(|sweep| swept.add(sweep));
        swept
    }

    /// Returns the printed report.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn words(&self) -> String {
        let mut out = String::new();
        for played in &self.plays {
            let Stats { interleavings, events, states, .. } = &played.stats;
            let (name, scene, vendor) = (played.name, played.scene, played.vendor.name());
            writeln!(out, "{interleavings:9} interleavings, {events:9} events, {:5} states, {:5.1} s: {name} ({scene}, {vendor})", states.len(), played.seconds).unwrap();
        }
        for (words, vendor, covered) in &self.free {
            writeln!(out, "{}", freely(words, *vendor, covered)).unwrap();
        }
        for scenario in &SCENARIOS {
            let count = self.total.scenarios[scenario.number - 1];
            let (number, title, invariants) =
                (scenario.number, scenario.title, scenario.invariants);
            writeln!(out, "S{number:<2} {count:9} interleavings, {invariants:<8} {title}").unwrap();
        }
        for caught in &self.controls {
            let (flaw, shows, broken) = (caught.flaw, caught.shows, &caught.found.broken);
            let (invariant, how) = (broken.invariant, &broken.how);
            writeln!(out, "control: {flaw} ({shows}): caught by {invariant:?}: {how}").unwrap();
        }
        let Sweep { allocations, retries, steps, descriptors, deaths, refused, bystander, .. } =
            self.swept();
        writeln!(out, "failures: {allocations} allocations ({retries} retries granted), {steps} hardware steps, {descriptors} descriptors, {deaths} deaths on the way to taking over; {refused} requests refused, {bystander} of a bystander granted").unwrap();
        writeln!(out, "{}", without_memory(&self.exhausted)).unwrap();
        writeln!(out, "{}", at_random(&self.random)).unwrap();
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
        let Sweep { allocations, retries, steps, descriptors, deaths, refused, bystander, .. } =
            self.swept();
        writeln!(
            out,
            "\nS7 beyond that: {allocations} allocations failed one by one ({retries} refused, each granted at \
             once when tried again), a unit died at each of {steps} actions of the CPU, its queue stopped behind \
             each of {descriptors} descriptors: {refused} requests refused, {bystander} requests of a bystander \
             behind the other unit granted.\n\nS28 beyond that: a server that was taking over died at each of \
             {deaths} actions of the CPU, and a third one took over from both."
        )
        .unwrap();
        out.push_str(FAILED);
        let kinds: std::collections::BTreeSet<_> =
            self.sweeps.iter().flat_map(|sweep| sweep.kinds.keys()).collect();
        for kind in kinds {
            let [vtd, amd] = self.sweeps.each_ref().map(|sweep| {
                let [allocations, steps, descriptors] =
                    sweep.kinds.get(kind).copied().unwrap_or_default();
                format!("{allocations} | {steps} | {descriptors}")
            });
            writeln!(out, "| {kind} | {vtd} | {amd} |").unwrap();
        }
        writeln!(out, "\n{}", without_memory(&self.exhausted)).unwrap();
        out.push_str(FREE);
        for (words, vendor, covered) in &self.free {
            let Covered { depth, states, transitions, interleavings, again, scenarios } = covered;
            let (vendor, seen) = (vendor.name(), counted(scenarios));
            writeln!(out, "| {words} | {vendor} | {depth} | {states} | {transitions} | {interleavings} | {again} | {seen} |").unwrap();
        }
        out.push_str(PLAYS);
        for played in &self.plays {
            let (name, scene, vendor) = (played.name, played.scene, played.vendor.name());
            let (interleavings, states) = (played.stats.interleavings, played.stats.states.len());
            let numbers = (1..=32).filter(|number| played.stats.scenarios[number - 1] > 0);
            let scenarios: Vec<String> = numbers.map(|number| format!("S{number}")).collect();
            let scenarios = scenarios.join(" ");
            writeln!(
                out,
                "| {name} | {scene} | {vendor} | {interleavings} | {states} | {scenarios} |"
            )
            .unwrap();
        }
        let (interleavings, states) = (self.total.interleavings, self.total.states.len());
        writeln!(out, "| all | | | {interleavings} | {states} | |").unwrap();
        out.push_str(CONTROLLED);
        for caught in &self.controls {
            let (flaw, shows) = (caught.flaw, caught.shows);
            writeln!(out, "| {flaw} | {shows} | {:?} |", caught.found.broken.invariant).unwrap();
        }
        out
    }
}

/// Describes the run without memory.
#[must_use]
pub fn without_memory(exhausted: &Exhausted) -> String {
    let Exhausted { times, events, ends, owed } = exhausted;
    format!(
        "All memory gone, at every event of every play and for up to two events more: {times} times, {events} events \
         without any, {ends} of them ends of life, each cut off at once; {owed} times work was left, and done \
         when memory was back."
    )
}

/// Describes the coverage of random interleavings.
#[must_use]
pub fn at_random(stats: &Stats) -> String {
    let Stats { interleavings, events, states, .. } = stats;
    format!("random: {interleavings} interleavings, {events} events, {} states", states.len())
}

const INTRODUCTION: &str = "\
# Ordering: what is shown

| | invariant |
|---|---|
| I1 | each device record is created exactly once; its id never changes while it lives |
| I2 | the partition into groups does not depend on the order of discovery |
| I3 | exactly one default domain for each group, made before any member may attach |
| I4 | at no instant does translation let a device through to memory that was not granted to it |
| I5 | a refused or failed request leaves the state, hardware tables included, bit-identical |
| I6 | freed memory is not reachable by DMA: the invalidation has completed before the release |
| I7 | every request is answered exactly once |
| I8 | a live translation changes only on its owner's request, or on the owner's death |
| I9 | an event that cannot be refused (death, removal, a unit's failure, shutdown) is carried out: cut off at once, the rest at the latest when there is memory |
| I10 | *not shown yet:* the server may die at any instant, and the next one goes on with every session |

`cargo xtask explore --write` writes this file; `cargo test -p iommud-tests --test ordering` fails when a run says something
else. The counts are those of the short mode. `cargo xtask explore --long` runs more streams in most plays, all plays over
AMD-Vi units as well, free choice some steps deeper, and 3000 random runs for each vendor: more than a million interleavings
in plays alone, in a quarter of an hour on two processors.

An interleaving is one order of the requests of two or three clients and of what happens to the machine. It runs to its end
through the shipped policy, engine and server, over two software units, VT-d or AMD-Vi. After each event the reach of every
function, through tables and caches in any mixture, is compared with a list of what clients were granted. At each instant
within an event (a store, a command executed by a unit) every function tries addresses, through what its unit has cached and
by the tables alone. It gets nowhere that is not granted before or after the event (I4). What it goes on reaching is not
denied in between (I8). The server is not asked, except where its answer is the matter (ids, texts, groups). One more check: a
device can use its grant when the reply is there, whatever its unit has cached. The last column counts interleavings in which
the middle column was observed and every check passed.

A unit that never translated (dead, failed on the way up, not there yet) confines nothing, as before the server started. This
breaks neither I4 nor I6: no translation lets the device through, and memory is not withheld from all clients for one dead
unit. `status` and the texts of its devices must say `NOT CONFINED`, which is checked. What a unit that translated once and
failed may still reach is given to nobody else.

| | scenario | observed | invariants | result, interleavings |
|---|---|---|---|---|
";

const FAILED: &str = "
By what was under way: allocations that failed, actions of the CPU at which a unit died, descriptors behind which its
queue stopped. A step that cannot fail has none; what allocates nothing has none. A bring-up over AMD-Vi units, which
writes 65536 entries that no unit knows yet, fails at the last 8 actions and at 8 others, with `--long` at 200. So do the deaths of a
server that takes them over.

| under way | VT-d: allocations | actions | descriptors | AMD-Vi: allocations | actions | descriptors |
|---|---|---|---|---|---|---|
";

const FREE: &str = "
## Free choice

No streams: at each state any of three clients claims, attaches, detaches, allocates, unmaps, closes or dies, or a
unit comes up or dies, or a function goes, comes or is reset, or the server is killed and followed by the next, each
checked as above. Breadth first, complete to the depth told. The number at a scenario is that of the choices at which
it was seen, the first time on the way to a state; scenarios without one need more events than the depth has (S13,
S18, S20, S24, S25), or such as only plays have: failures (S7, S8), queues that stop (S17), other machines (S5, S22,
S23, S30), requests without a session, guesses and batches (S6, S21, S32), storms (S31).
States are one when nothing tells them apart (`tests/src/explore/name.rs`); every 16th of those met again was
carried on nevertheless, and led to the same states as the first.

| machine | units | depth | states | transitions | interleavings | carried on again | scenarios |
|---|---|---|---|---|---|---|---|
";

const PLAYS: &str = "
## Plays

Machines: `apart` has two functions behind two units; `pair` one group of two behind the first and one function
behind the second; `beside` two functions behind one unit, of which one comes; `growing` a third member that comes; `bridge` a bridge with two functions behind it; `broken` a
dead unit, a late one, and a function behind none.

| play | machine | units | interleavings | states | scenarios |
|---|---|---|---|---|---|
";

const CONTROLLED: &str = "
## Controls

Servers that are wrong on purpose, over the same units, met by the same checks. The same server without the flaw,
and the shipped one, pass each of these plays.

| flaw | shows in | caught by |
|---|---|---|
";
