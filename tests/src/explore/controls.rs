//! The controls: plays that a correct server passes, and the flaws that the checks must find in them.

use iommud::policy::Mode;

use super::act::{Act, Failure, Stream, client, machine};
use super::check::Invariant;
use super::flawed::Racy;
use super::scene::Scene;
use super::search::Explorer;
use super::shipped::Real;
use super::stats::{Found, Stats};
use super::subject::Subject;
use crate::conformance::vtd;
use Act::{Added, Allocate, Arrive, Attach, Claim, ClaimWithin, Die, Release, Restart};

/// A machine and streams.
type Play = fn() -> (Scene, Vec<Stream>);

/// One control.
pub struct Control {
    /// The flaw of the server.
    pub flaw: &'static str,
    /// The scenario or the situation that exposes it.
    pub shows: &'static str,
    /// The invariants that may catch it. The search order decides which one comes first.
    pub expected: &'static [Invariant],
    /// The play.
    pub play: Play,
    run: fn(Play) -> Result<Stats, Found>,
    /// Only the shipped server can play it. The control server has neither waiting claims nor a previous server.
    shipped_alone: bool,
}

fn explore<S: Subject>(play: Play) -> Result<Stats, Found> {
    let (scene, streams) = play();
    Explorer::<S>::explore(scene, streams)
}

/// S1: two clients probe one device.
fn s1() -> (Scene, Vec<Stream>) {
    (Scene::pair(Mode::Strict), vec![client(1, &[Claim(0)]), client(2, &[Claim(0)])])
}

/// S2: two members of a group appear.
fn s2() -> (Scene, Vec<Stream>) {
    let streams = vec![machine(&[Added(0)]), machine(&[Added(1)])];
    (Scene::pair(Mode::Strict).empty(), streams)
}

/// S10: a client sets up DMA while the server is still walking a unit that has just come up.
fn s10() -> (Scene, Vec<Stream>) {
    let scene = Scene::apart(Mode::Strict).with_late_unit();
    (scene, vec![machine(&[Arrive(1)]), client(2, &[Claim(1), Attach(1)])])
}

fn give_back() -> (Scene, Vec<Stream>) {
    let acts = [Claim(0), Attach(0), Allocate(0, 1), Release(0)];
    (Scene::apart(Mode::Strict), vec![client(1, &acts), machine(&[Die(0)])])
}

fn default_domain() -> (Scene, Vec<Stream>) {
    let mut scene = Scene::pair(Mode::Compat).empty();
    scene.functions[2].unit = None;
    (scene, vec![machine(&[Added(0)]), client(1, &[Claim(0), Attach(0)])])
}

/// Two clients wait for one device, and the first of them may die.
fn claims_wait() -> (Scene, Vec<Stream>) {
    let scene = Scene::apart(Mode::Strict).with_late_unit();
    let claim = |number| client(number, &[ClaimWithin(1)]);
    (scene, vec![claim(1), claim(2), machine(&[Arrive(1)]), machine(&[Die(0)])])
}

/// S28: the next server creates its domains in another order.
fn tags_again() -> (Scene, Vec<Stream>) {
    let driver = client(1, &[Claim(0), Attach(0), Allocate(0, 1)]);
    (Scene::beside(Mode::Strict), vec![driver, machine(&[Added(1), Restart])])
}

fn failed_allocation() -> (Scene, Vec<Stream>) {
    let acts = client(1, &[Claim(0), Attach(0), Allocate(0, 1), Allocate(0, 1)]);
    (Scene::apart(Mode::Strict), vec![acts.with_failure(2, Failure::Table(0))])
}

fn death_without_memory() -> (Scene, Vec<Stream>) {
    let acts = client(1, &[Claim(0), Attach(0), Allocate(0, 1)]);
    let death = machine(&[Die(0)]).with_failure(0, Failure::Exhausted);
    (Scene::apart(Mode::Strict), vec![acts, death])
}

/// All controls.
pub const CONTROLS: [Control; 11] = [
    Control {
        flaw: "the order of 2022: record, group and default domain in separate steps",
        shows: "S1",
        expected: &[Invariant::I1],
        play: s1,
        run: explore::<Racy<1>>,
        shipped_alone: false,
    },
    Control {
        flaw: "the order of 2022",
        shows: "S2",
        expected: &[Invariant::I2, Invariant::I3],
        play: s2,
        run: explore::<Racy<1>>,
        shipped_alone: false,
    },
    Control {
        flaw: "the order of 2022",
        shows: "S10",
        expected: &[Invariant::I4],
        play: s10,
        run: explore::<Racy<1>>,
        shipped_alone: false,
    },
    Control {
        flaw: "memory is freed before the flush",
        shows: "a buffer is given back",
        expected: &[Invariant::I6],
        play: give_back,
        run: explore::<Racy<2>>,
        shipped_alone: false,
    },
    Control {
        flaw: "a device attaches before its group has a default domain",
        shows: "an attach while the device is being added",
        expected: &[Invariant::I3],
        play: default_domain,
        run: explore::<Racy<3>>,
        shipped_alone: false,
    },
    Control {
        flaw: "state is changed before the effect that fails",
        shows: "an allocation that fails",
        expected: &[Invariant::I5],
        play: failed_allocation,
        run: explore::<Racy<4>>,
        shipped_alone: false,
    },
    Control {
        flaw: "the newest of several claims that waited is answered first",
        shows: "a unit that comes",
        expected: &[Invariant::I7],
        play: claims_wait,
        run: explore::<Real<vtd::Subject, 1>>,
        shipped_alone: true,
    },
    Control {
        flaw: "claims that wait outlive their client",
        shows: "a client that dies waiting",
        expected: &[Invariant::I7],
        play: claims_wait,
        run: explore::<Real<vtd::Subject, 2>>,
        shipped_alone: true,
    },
    Control {
        flaw: "a claim that waited is answered twice",
        shows: "a unit that comes",
        expected: &[Invariant::I7],
        play: claims_wait,
        run: explore::<Real<vtd::Subject, 3>>,
        shipped_alone: true,
    },
    Control {
        flaw: "a new server takes the tags of the one before while units hold them",
        shows: "S28",
        // A stale walk lets a device reach forbidden memory, or denies memory that was granted.
        expected: &[Invariant::I4, Invariant::I8],
        play: tags_again,
        run: explore::<Real<vtd::Subject, 4>>,
        shipped_alone: true,
    },
    Control {
        flaw: "an end of life is dropped when there is no memory",
        shows: "a client that dies when all memory is gone",
        expected: &[Invariant::I4, Invariant::I9],
        play: death_without_memory,
        run: explore::<Real<vtd::Subject, 5>>,
        shipped_alone: false,
    },
];

impl Control {
    /// Runs the flawed server and returns the violation that caught it.
    #[must_use]
    pub fn caught(&self) -> Option<Found> {
        (self.run)(self.play).err()
    }

    /// Checks that the control server without the flaw, and the shipped server, pass the same play.
    ///
    /// # Errors
    /// The violation found.
    pub fn passes_when_sound(&self) -> Result<(), Found> {
        if !self.shipped_alone {
            explore::<Racy<0>>(self.play)?;
        }
        explore::<Real<vtd::Subject>>(self.play).map(drop)
    }
}
