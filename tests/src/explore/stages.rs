//! The stages of a run: plays over the units of both vendors, controls, failures, random interleavings.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use iommud::policy::Mode;

use super::controls::CONTROLS;
use super::exhaust::{Exhausted, exhaust};
use super::free::{Covered, free};
use super::plays::{Play, plays, plays_on_amd};
use super::random::random;
use super::scene::{Scene, Start, Vendor};
use super::search::Explorer;
use super::shipped::Real;
use super::spines::spines;
use super::stats::{Found, Stats};
use super::sweep::{Sweep, sweep};
use crate::conformance::{amdvi, vtd};

/// The shipped server over VT-d units.
type OnVtd = Real<vtd::Subject>;
/// The shipped server over AMD-Vi units.
type OnAmd = Real<amdvi::Subject>;

/// Random interleavings for each vendor's units, without and with `long`.
const RANDOM: (u32, u32) = (100, 3000);

/// Free choice on a machine, with the depths without and with `long`.
pub struct Choice {
    /// The machine, in words.
    pub words: &'static str,
    scene: Scene,
    depths: (usize, usize),
}

/// The coverage of one play.
pub struct Played {
    /// The play.
    pub name: &'static str,
    /// Its machine.
    pub scene: &'static str,
    /// The vendor of its units.
    pub vendor: Vendor,
    /// Its coverage.
    pub stats: Stats,
    /// Its duration.
    pub seconds: f32,
}

/// The result of a control.
pub struct Caught {
    /// Its flaw.
    pub flaw: &'static str,
    /// The scenario or situation that exposes it.
    pub shows: &'static str,
    /// The invariant, and how it was broken.
    pub found: Found,
}

/// The coverage of a run.
pub struct Report {
    /// Whether it was the long mode.
    pub long: bool,
    /// The plays.
    pub plays: Vec<Played>,
    /// The controls.
    pub controls: Vec<Caught>,
    /// All plays together.
    pub total: Stats,
    /// Free choice: the machine in words, the vendor, the coverage.
    pub free: Vec<(&'static str, Vendor, Covered)>,
    /// Injected failures, VT-d and AMD-Vi.
    pub sweeps: [Sweep; 2],
    /// The run without memory.
    pub exhausted: Exhausted,
    /// Random runs.
    pub random: Stats,
    /// The duration.
    pub seconds: f32,
}

/// Applies `act` to each item on all processors. The results are in the items' order.
fn on_all_processors<I: Sync, O: Send>(items: &[I], act: impl Fn(&I) -> O + Sync) -> Vec<O> {
    let results = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { break };
            let result = act(item);
            results.lock().unwrap().push((at, result));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

fn explore(play: &Play) -> Result<Played, String> {
    let Play { name, scene, streams } = play;
    let vendor = scene.vendor;
    let started = Instant::now();
    let stats = match vendor {
        Vendor::Vtd => Explorer::<OnVtd>::explore(scene.clone(), streams.clone()),
        Vendor::Amd => Explorer::<OnAmd>::explore(scene.clone(), streams.clone()),
    };
    let stats = stats.map_err(|found| format!("{name} ({}): {found}", vendor.name()))?;
    let seconds = started.elapsed().as_secs_f32();
    eprintln!("{name} ({}): {} interleavings, {seconds:.1} s", vendor.name(), stats.interleavings);
    Ok(Played { name, scene: scene.name, vendor, stats, seconds })
}

/// The machines for free choice.
fn choices() -> Vec<Choice> {
    let late = |mut scene: Scene| {
        scene.units.fill(Start::Late);
        scene
    };
    let apart = Scene::apart(Mode::Strict);
    let pair = Scene::pair(Mode::Strict);
    let choice = |words, scene, depths| Choice { words, scene, depths };
    vec![
        choice("D1 and D2 behind two units, none up", late(apart.clone()), (5, 8)),
        choice("the same, absent entries cached", late(apart.with_caching_mode()), (4, 7)),
        choice("D1 and D2 one group, D3 behind the other unit", pair, (3, 6)),
        choice("D1 and D2 behind two units", Scene::apart(Mode::Strict), (4, 6)),
        choice(
            "D1 and D2 behind two units, none up",
            late(Scene::apart(Mode::Strict).on_amd()),
            (2, 4),
        ),
    ]
}

fn free_of(choice: &Choice, long: bool) -> Result<(&'static str, Vendor, Covered), String> {
    let (scene, vendor) = (choice.scene.clone(), choice.scene.vendor);
    let depth = if long { choice.depths.1 } else { choice.depths.0 };
    let covered = match vendor {
        Vendor::Vtd => free::<OnVtd>(scene, depth),
        Vendor::Amd => free::<OnAmd>(scene, depth),
    };
    let covered = covered.map_err(|found| format!("{}: {found}", choice.words))?;
    Ok((choice.words, vendor, covered))
}

fn controls() -> Result<Vec<Caught>, String> {
    let mut caught = Vec::new();
    for control in &CONTROLS {
        let found = control.caught().ok_or_else(|| format!("{}: not caught", control.flaw))?;
        if !control.expected.contains(&found.broken.invariant) {
            return Err(format!("{}: {found}", control.flaw));
        }
        let sound = control.passes_when_sound();
        sound.map_err(|found| format!("without {}: {found}", control.flaw))?;
        caught.push(Caught { flaw: control.flaw, shows: control.shows, found });
    }
    Ok(caught)
}

fn sweep_of(vendor: Vendor, long: bool) -> Result<Sweep, String> {
    let swept = match vendor {
        Vendor::Vtd => sweep::<OnVtd>(vendor, long),
        Vendor::Amd => sweep::<OnAmd>(vendor, long),
    };
    swept.map_err(|found| format!("failures ({}): {found}", vendor.name()))
}

/// Exhausts all memory at every event of every play, over the units of both vendors.
///
/// # Errors
/// The violation, in words.
pub fn exhaust_all(long: bool) -> Result<Exhausted, String> {
    let mut all = plays(false);
    all.extend(plays_on_amd(long));
    for vendor in [Vendor::Vtd, Vendor::Amd] {
        all.extend(spines(vendor));
    }
    let each = |play: &Play| {
        let exhausted = match play.scene.vendor {
            Vendor::Vtd => exhaust::<OnVtd>(play),
            Vendor::Amd => exhaust::<OnAmd>(play),
        };
        let vendor = play.scene.vendor.name();
        exhausted.map_err(|found| format!("without memory: {} ({vendor}): {found}", play.name))
    };
    let mut total = Exhausted::default();
    for exhausted in on_all_processors(&all, each) {
        total.add(&exhausted?);
    }
    Ok(total)
}

fn random_of(vendor: Vendor, cases: u32, seed: u8) -> Result<Stats, String> {
    let stats = match vendor {
        Vendor::Vtd => random::<OnVtd>(vendor, cases, seed),
        Vendor::Amd => random::<OnAmd>(vendor, cases, seed),
    };
    stats.map_err(|found| format!("random ({}): {found}", vendor.name()))
}

/// Runs free choice alone, on the machine of this number and to this depth.
///
/// # Errors
/// The violation, in words; also when no machine has this number.
pub fn free_alone(number: usize, depth: usize) -> Result<(&'static str, Vendor, Covered), String> {
    let choice = choices().into_iter().nth(number).ok_or("no such machine")?;
    free_of(&Choice { depths: (depth, depth), ..choice }, false)
}

/// Runs the plays of this name alone, over the units of both vendors.
///
/// # Errors
/// The violation, in words; also when no play has this name.
pub fn plays_alone(name: &str, long: bool) -> Result<Vec<Played>, String> {
    let mut all = plays(long);
    all.extend(plays_on_amd(true));
    all.retain(|play| play.name == name);
    if all.is_empty() {
        return Err(format!("no play is called {name}"));
    }
    on_all_processors(&all, explore).into_iter().collect()
}

/// Runs the injected failures alone, over the units of each vendor.
///
/// # Errors
/// The violation, in words.
pub fn sweeps_alone(long: bool) -> Result<Vec<Sweep>, String> {
    let vendors = [Vendor::Vtd, Vendor::Amd];
    on_all_processors(&vendors, |vendor| sweep_of(*vendor, long)).into_iter().collect()
}

/// Runs random interleavings alone, this many on the units of each vendor.
///
/// # Errors
/// The violation, in words.
pub fn random_alone(cases: u32) -> Result<Stats, String> {
    let mut all = Stats::default();
    for vendor in [Vendor::Vtd, Vendor::Amd] {
        all.add(&random_of(vendor, cases, 1)?);
    }
    Ok(all)
}

/// Runs everything on all processors.
///
/// # Errors
/// The violation, in words.
///
/// # Panics
/// When a thread panicked.
pub fn run(long: bool) -> Result<Report, String> {
    let started = Instant::now();
    let mut all = plays(long);
    all.extend(plays_on_amd(long));
    let plays: Vec<Played> =
        on_all_processors(&all, explore).into_iter().collect::<Result<_, _>>()?;
    let mut total = Stats::default();
    plays.iter().for_each(|played| total.add(&played.stats));
    let free = on_all_processors(&choices(), |choice| free_of(choice, long));
    let free = free.into_iter().collect::<Result<_, _>>()?;
    let controls = controls()?;
    let vendors = [Vendor::Vtd, Vendor::Amd];
    let swept = on_all_processors(&vendors, |vendor| sweep_of(*vendor, long));
    let mut sweeps = [Sweep::default(), Sweep::default()];
    for (to, from) in sweeps.iter_mut().zip(swept) {
        *to = from?;
    }
    let exhausted = exhaust_all(long)?;
    let cases = if long { RANDOM.1 } else { RANDOM.0 };
    let mut random = Stats::default();
    for stats in on_all_processors(&vendors, |vendor| random_of(*vendor, cases, 1)) {
        random.add(&stats?);
    }
    let seconds = started.elapsed().as_secs_f32();
    Ok(Report { long, plays, free, controls, total, sweeps, exhausted, random, seconds })
}
