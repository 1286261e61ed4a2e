//! The streams of events, and the machine on which each set is explored. D1 to D4 are the functions of a scene in its
//! order, U1 and U2 its units, C1 to C3 the clients.

mod memory;

pub(super) use memory::{LAST_OF_A_TABLE, LIST};

use iommud::policy::Mode;

use super::act::{Act, Failure, Stream, client, machine};
use super::scene::{RESERVED, Scene};
use Act::{
    Added, Again, Allocate, Arrive, Attach, Batch, Claim, ClaimUnder, ClaimWithin, Close, Detach,
    Die, Expire, Grant, Guess, Import, List, Look, Map, MapFixed, Recover, Release, Removed,
    Reserve, Reset, Restart, Revoke, Stall, Storm, Tick, Unmap, UnmapAt,
};

/// Streams of events on a machine.
pub struct Play {
    /// Its name.
    pub name: &'static str,
    /// The machine.
    pub scene: Scene,
    /// The streams.
    pub streams: Vec<Stream>,
}

/// Plays that the short mode also runs over AMD-Vi units.
const QUICK_ON_AMD: [&str; 9] = [
    "probes",
    "queue stops at once",
    "removal, of a group",
    "a member more",
    "death, strict, not coherent",
    "one domain behind two units",
    "reserved",
    "lists of pages",
    "a table that grows",
];

pub(super) const D1: usize = 0;
pub(super) const D2: usize = 1;
const D3: usize = 2;
const D4: usize = 3;
pub(super) const C1: usize = 0;
const U1: usize = 0;
pub(super) const U2: usize = 1;

fn play(name: &'static str, scene: Scene, streams: &[Stream], more: &[Stream], long: bool) -> Play {
    // The mappings of policy `compat` take most of the time to read, and add no order.
    let grows = long && scene.mode == Mode::Strict;
    let more = more.iter().filter(|_| grows);
    Play { name, scene, streams: streams.iter().chain(more).cloned().collect() }
}

/// Returns all plays. With `long` most of them have one or two more streams, of a bystander or a death.
#[must_use]
pub fn plays(long: bool) -> Vec<Play> {
    let mut all = Vec::new();
    claims(&mut all, long);
    units(&mut all, long);
    hot_plug(&mut all, long);
    deaths(&mut all, long);
    restarts(&mut all, long);
    memory(&mut all, long);
    memory::more(&mut all, long);
    memory::failures(&mut all, long);
    all
}

fn claims(all: &mut Vec<Play>, long: bool) {
    all.push(play(
        "probes",
        Scene::pair(Mode::Strict),
        &[
            client(1, &[Claim(D1), Attach(D1)]),
            client(2, &[Claim(D1), Claim(D2), Attach(D2)]),
            client(3, &[Claim(D3), Attach(D3)]),
            machine(&[Die(C1)]),
        ],
        &[client(1, &[Look(D2), Allocate(D1, 1), Unmap(D1)])],
        long,
    ));
    all.push(play(
        "one owner",
        Scene::pair(Mode::Compat).with_caching_mode(),
        &[
            client(
                1,
                &[
                    Claim(D1),
                    Claim(D2),
                    ClaimUnder(D2, D1),
                    Attach(D1),
                    Attach(D2),
                    Attach(D2),
                    Allocate(D1, 1),
                    Detach(D1),
                    Detach(D2),
                ],
            ),
            client(2, &[Claim(D3), Guess(D3, C1)]),
        ],
        &[client(3, &[Look(D1), Claim(D2), Claim(D1)]), machine(&[Die(C1)])],
        long,
    ));
}

fn units(all: &mut Vec<Play>, long: bool) {
    for (name, mode) in [("late unit, strict", Mode::Strict), ("late unit, compat", Mode::Compat)] {
        all.push(play(
            name,
            Scene::apart(mode).with_late_unit(),
            &[
                client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1)]),
                client(2, &[Claim(D2), Claim(D2), Attach(D2), Allocate(D2, 1)]),
                machine(&[Arrive(U2)]),
            ],
            &[client(3, &[Claim(D2), Look(D2), Claim(D1)])],
            long,
        ));
    }
    all.push(play(
        "three ways not to be there",
        Scene::broken(),
        &[
            client(1, &[Claim(D1), Attach(D1)]),
            client(2, &[Claim(D2), Claim(D2)]),
            client(3, &[Claim(D3)]),
            machine(&[Arrive(U2)]),
        ],
        &[client(3, &[Look(D1), Look(D3)])],
        long,
    ));
    for (name, scene, stall) in [
        ("claims that wait", Scene::apart(Mode::Strict).with_late_unit(), None),
        (
            "claims that wait in vain",
            Scene::apart(Mode::Strict).with_late_unit(),
            Some(Stall(U2, 0)),
        ),
    ] {
        let acts: Vec<Act> = stall.into_iter().chain([Arrive(U2)]).collect();
        all.push(play(
            name,
            scene,
            &[
                client(1, &[ClaimWithin(D2), Attach(D2), Close(D2)]),
                client(2, &[ClaimWithin(D2), Claim(D1)]),
                client(3, &[ClaimWithin(D2)]),
                machine(&acts),
                machine(&[Die(C1)]),
            ],
            &[machine(&[Expire]), machine(&[Removed(D2)])],
            long,
        ));
    }
    for (name, after) in [("queue stops at once", 0), ("queue stops after one", 1)] {
        all.push(play(
            name,
            Scene::apart(Mode::Strict),
            &[
                client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1), Unmap(D1)]),
                client(2, &[Claim(D2), Attach(D2)]),
                machine(&[Stall(U1, after), Die(C1), Recover(U1)]),
            ],
            &[client(2, &[Allocate(D2, 1), Unmap(D2)]), client(3, &[Claim(D1)])],
            long,
        ));
    }
    for (name, mode) in
        [("a unit comes back, strict", Mode::Strict), ("a unit comes back, compat", Mode::Compat)]
    {
        all.push(play(
            name,
            Scene::apart(mode),
            &[
                client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1)]),
                client(2, &[ClaimWithin(D1), Attach(D1)]),
                machine(&[Stall(U1, 0), Die(C1), Recover(U1), Again(U1)]),
            ],
            &[client(3, &[Claim(D2), Attach(D2)])],
            long,
        ));
    }
    all.push(play(
        "storm",
        Scene::apart(Mode::Strict),
        &[
            client(1, &[Claim(D1), Attach(D1)]),
            client(2, &[Claim(D2), Attach(D2), Allocate(D2, 1), Unmap(D2)]),
            machine(&[Storm(D1), Tick]),
        ],
        &[machine(&[Storm(D2), Die(C1)])],
        long,
    ));
}

fn hot_plug(all: &mut Vec<Play>, long: bool) {
    all.push(play(
        "any order of discovery",
        Scene::growing(Mode::Compat).empty().with_late_unit(),
        &[
            machine(&[Added(D1)]),
            machine(&[Added(D2)]),
            machine(&[Added(D3)]),
            machine(&[Added(D4)]),
            machine(&[Arrive(U2)]),
            client(1, &[Claim(D1)]),
        ],
        &[client(2, &[Claim(D4), Attach(D4)]), client(1, &[Attach(D1)])],
        long,
    ));
    for (name, scene) in [
        ("removal, alone", Scene::apart(Mode::Compat)),
        ("removal, of a group", Scene::pair(Mode::Strict)),
    ] {
        all.push(play(
            name,
            scene,
            &[
                client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1), Close(D1)]),
                client(2, &[Claim(D1)]),
                machine(&[Removed(D1), Added(D1)]),
                machine(&[Reset(D1)]),
            ],
            &[client(2, &[Attach(D1), Look(D2)]), client(3, &[Claim(D2)])],
            long,
        ));
    }
    all.push(play(
        "a member more",
        Scene::growing(Mode::Strict),
        &[
            client(1, &[Claim(D1), Attach(D1), ClaimUnder(D3, D1), Attach(D3)]),
            client(2, &[Claim(D3), Claim(D2)]),
            machine(&[Added(D3), Removed(D3)]),
        ],
        &[client(1, &[Allocate(D1, 1)]), machine(&[Die(C1)])],
        long,
    ));
    all.push(play(
        "bridge last",
        Scene::bridge(),
        &[
            machine(&[Added(D1), Added(D1)]),
            machine(&[Added(D2)]),
            machine(&[Added(D3)]),
            client(1, &[Claim(D2), Attach(D2), Close(D2)]),
        ],
        &[client(2, &[Claim(D4), Attach(D4), Allocate(D4, 1)])],
        long,
    ));
}

fn deaths(all: &mut Vec<Play>, long: bool) {
    for (name, scene) in [
        ("death, compat", Scene::apart(Mode::Compat)),
        ("death, strict, not coherent", Scene::apart(Mode::Strict).with_caching_mode()),
    ] {
        all.push(play(
            name,
            scene,
            &[
                client(1, &[Claim(D1), Attach(D1), Allocate(D1, 2), Map(D1), Unmap(D1)]),
                client(2, &[Claim(D1), Attach(D1), Allocate(D1, 1)]),
                machine(&[Die(C1)]),
            ],
            &[client(3, &[Claim(D2), Attach(D2), Allocate(D2, 1)])],
            long,
        ));
    }
    for (name, mode) in [("restart, strict", Mode::Strict), ("restart, compat", Mode::Compat)] {
        all.push(play(
            name,
            Scene::apart(mode),
            &[
                client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1), Claim(D1), Attach(D1)]),
                client(2, &[Claim(D2), Attach(D2)]),
                machine(&[Restart]),
            ],
            &[client(2, &[Allocate(D2, 1)]), machine(&[Restart]), client(3, &[Claim(D1)])],
            long,
        ));
    }
}

/// Restarts whose next server creates its domains in another order, because D2 is present from its start.
fn restarts(all: &mut Vec<Play>, long: bool) {
    let driver = client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1)]);
    all.push(play(
        "restart, domains in another order",
        Scene::beside(Mode::Strict),
        &[driver, machine(&[Added(D2)]), machine(&[Restart])],
        &[client(2, &[Claim(D2), Attach(D2)]), machine(&[Restart])],
        long,
    ));
}

fn memory(all: &mut Vec<Play>, long: bool) {
    all.push(play(
        "one domain behind two units",
        Scene::apart(Mode::Strict),
        &[
            client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1), Unmap(D1)]),
            client(1, &[ClaimUnder(D2, D1), Attach(D2), Detach(D2)]),
            client(2, &[Claim(D2)]),
        ],
        &[client(2, &[Claim(D1), Attach(D1)]), machine(&[Die(C1)])],
        long,
    ));
    all.push(play(
        "reserved",
        Scene::pair(Mode::Strict).with_reserved(),
        &[
            client(
                1,
                &[
                    Claim(D1),
                    Attach(D1),
                    Allocate(D1, 1),
                    MapFixed(D1, RESERVED.0),
                    UnmapAt(D1, RESERVED.0),
                    Detach(D1),
                ],
            ),
            client(2, &[Claim(D2), Attach(D2)]),
        ],
        &[machine(&[Die(C1)]), client(2, &[Claim(D1), Attach(D1), Allocate(D1, 1)])],
        long,
    ));
    all.push(play(
        "quota",
        Scene::apart(Mode::Strict).with_small_quota(),
        &[
            client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1), Map(D1), Map(D1), Allocate(D1, 2)]),
            client(2, &[Claim(D2), Attach(D2), Allocate(D2, 1)]),
        ],
        &[client(3, &[Claim(D1)]), machine(&[Die(C1)])],
        long,
    ));
    all.push(play(
        "batches",
        Scene::apart(Mode::Strict),
        &[
            client(1, &[Claim(D1), Attach(D1), Allocate(D1, 3), Batch(D1), Unmap(D1), Release(D1)]),
            client(2, &[Claim(D2), Attach(D2), Allocate(D2, 3), Batch(D2)]),
        ],
        &[client(3, &[Look(D1), Claim(D1), Attach(D1)])],
        long,
    ));
}

/// Returns the plays over AMD-Vi units, without the streams that `long` adds. Unless `long`, only the ones that are
/// quick there. A unit that comes up or is taken over has 65536 entries written, and all devices try at each of those
/// instants.
#[must_use]
pub fn plays_on_amd(long: bool) -> Vec<Play> {
    let on_amd = |play: Play| Play { scene: play.scene.on_amd(), ..play };
    let quick = |play: &Play| long || QUICK_ON_AMD.contains(&play.name);
    plays(false).into_iter().filter(quick).map(on_amd).collect()
}
