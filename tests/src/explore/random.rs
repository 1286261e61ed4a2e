//! Longer interleavings than can be enumerated. They are chosen at random, and shrunk when they break an invariant.

use iommud::policy::Mode;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use super::act::{Act, Event, Failure, Stream};
use super::scene::{RESERVED, Scene, Vendor};
use super::search::{Explorer, MACHINE};
use super::stats::{Found, Stats};
use super::subject::Subject;

/// One choice: client, action, device, and failure.
type Choice = (u8, u8, u8, u8);

fn scene(choice: u8) -> Scene {
    match choice % 8 {
        0 => Scene::pair(Mode::Strict),
        1 => Scene::pair(Mode::Compat).with_caching_mode(),
        2 => Scene::apart(Mode::Compat),
        3 => Scene::apart(Mode::Strict).with_reserved(),
        4 => Scene::growing(Mode::Compat).with_late_unit(),
        5 => Scene::growing(Mode::Strict).with_reserved().with_caching_mode(),
        6 => Scene::apart(Mode::Strict).with_small_quota(),
        _ => Scene::pair(Mode::Strict).with_late_unit(),
    }
}

fn act(scene: &Scene, what: u8, device: u8, units: bool) -> Act {
    let count = scene.functions.len();
    let other = usize::from(device / 16) % count;
    let at = usize::from(device % 16) % count;
    match what % 32 {
        0..=2 => Act::Claim(at),
        3 | 4 => Act::ClaimUnder(at, other),
        5 => Act::Look(at),
        6..=9 => Act::Attach(at),
        10 => Act::Detach(at),
        11..=13 => Act::Allocate(at, 1 + u64::from(device % 3)),
        14 => Act::Map(at),
        15 => Act::MapFixed(at, if device.is_multiple_of(2) { RESERVED.0 } else { 0x70_0000 }),
        16 | 17 => Act::Unmap(at),
        18 => Act::UnmapAt(at, 0x70_0000),
        19 => Act::Release(at),
        20 => Act::Guess(at, other % 3),
        21 | 22 => Act::Close(at),
        23 => Act::Removed(at),
        24 | 25 => Act::Added(at),
        26 => Act::Reset(at),
        27 => Act::Arrive(1),
        28 => Act::Restart,
        29 => Act::Storm(at),
        30 if units => Act::Stall(usize::from(device % 2), u64::from(device / 2 % 4)),
        30 => Act::Tick,
        _ if units && device.is_multiple_of(4) => Act::Kill(usize::from(device / 4 % 2)),
        _ => Act::Die(other % 3),
    }
}

const fn of_machine(act: Act) -> bool {
    matches!(
        act,
        Act::Removed(_)
            | Act::Added(_)
            | Act::Reset(_)
            | Act::Arrive(_)
            | Act::Restart
            | Act::Storm(_)
            | Act::Stall(..)
            | Act::Kill(_)
            | Act::Tick
            | Act::Die(_)
    )
}

/// Whether an event is possible in the present state. A unit arrives once; a present function cannot appear; a server
/// does not take over dead units.
fn possible(explorer: &Explorer<impl Subject>, path: &super::search::Path, act: Act) -> bool {
    let ledger = &path.ledger;
    match act {
        Act::Arrive(unit) => ledger.units[unit] == super::ledger::Unit::Down,
        Act::Added(device) => !ledger.functions[device].present,
        Act::Removed(device) => ledger.functions[device].present,
        Act::Restart => {
            !ledger.troubled.contains(&true)
                && !ledger.units.contains(&super::ledger::Unit::Down)
                && explorer.subject.machine().table_frames() < 300
        }
        // A batch needs the third page of the first buffer.
        Act::Batch(_) => false,
        _ => true,
    }
}

fn run<S: Subject>(vendor: Vendor, first: (u8, bool), choices: &[Choice]) -> Result<Stats, Found> {
    let empty = Stream { client: None, events: Vec::new() };
    let scene = Scene { vendor, ..scene(first.0) };
    let (mut explorer, mut path) = Explorer::<S>::new(scene, vec![empty; 4])?;
    for (who, what, device, wrong) in choices {
        let client = usize::from(who % 3);
        let act = act(&explorer.scene, *what, *device, first.1);
        if !possible(&explorer, &path, act) || !path.ledger.alive[client] {
            continue;
        }
        let client = if of_machine(act) { MACHINE } else { client };
        let failure = match wrong {
            _ if client == MACHINE && !matches!(act, Act::Added(_)) => None,
            0..=15 => Some(Failure::Table(u64::from(wrong % 4))),
            16..=23 => Some(Failure::Buffer),
            _ => None,
        };
        explorer.again(&mut path, client, client, Event { act, failure })?;
        // A new client takes the number of a client that died.
        path.ledger.alive = [true; 4];
    }
    explorer.leaf(&path)?;
    Ok(explorer.stats)
}

/// Runs `cases` interleavings of 20 to 60 events, the same ones each time for a `seed`.
///
/// # Errors
/// The shortest interleaving found that breaks an invariant, in words.
///
/// # Panics
/// When proptest gives up.
pub fn random<S: Subject>(vendor: Vendor, cases: u32, seed: u8) -> Result<Stats, String> {
    let total = std::cell::RefCell::new(Stats::default());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let strategy = (any::<(u8, bool)>(), vec(any::<Choice>(), 20..60));
    let result = runner.run(&strategy, |(first, choices)| {
        let stats = run::<S>(vendor, first, &choices)
            .map_err(|found| proptest::test_runner::TestCaseError::fail(found.to_string()))?;
        total.borrow_mut().add(&stats);
        Ok(())
    });
    match result {
        Ok(()) => Ok(total.into_inner()),
        Err(TestError::Fail(reason, value)) => Err(format!("{reason}\n{value:?}")),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
