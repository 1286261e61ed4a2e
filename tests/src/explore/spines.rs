//! Sequences of requests for the sweep of failures.

use iommud::policy::Mode;

use super::act::{Act, client};
use super::plays::{C1, D1, D2, LAST_OF_A_TABLE, LIST, Play, U2};
use super::scene::{Scene, Vendor};
use Act::{
    Added, Allocate, Arrive, Attach, Batch, Claim, ClaimUnder, Close, Detach, Die, Grant, Import,
    List, Map, Release, Removed, Reserve, Restart, Revoke, Storm, Unmap,
};

/// Sequences of requests for the sweep of failures. They contain every kind of plan.
#[must_use]
pub(super) fn spines(vendor: Vendor) -> Vec<Play> {
    let apart = || Scene::apart(Mode::Strict);
    let mut all: Vec<(Scene, Vec<Act>)> = [
        Scene::pair(Mode::Strict),
        Scene::pair(Mode::Compat).with_caching_mode(),
        Scene::apart(Mode::Compat),
        apart().with_reserved(),
    ]
    .map(|scene| (scene, requests()))
    .into();
    let begin = [Claim(D1), Attach(D1), Allocate(D1, 1)];
    let with = |more: &[Act]| begin.iter().chain(more).copied().collect::<Vec<_>>();
    all.push((
        apart().with_region_beyond(),
        with(&[ClaimUnder(D2, D1), Attach(D2), Close(D2), Die(C1)]),
    ));
    let hand_on = [Claim(D2), Attach(D2), Import(D2, C1, D1), Map(D2), Release(D1), Die(C1)];
    all.push((apart(), with(&hand_on)));
    all.push((Scene::apart(Mode::Compat).with_memory_taken(), with(&[Release(D1), Die(C1)])));
    // A unit that caches absent entries invalidates at each mapping. The second unit may fail after the first has
    // done so.
    let two = [ClaimUnder(D2, D1), Attach(D2), Map(D1), List(D1, 0, LIST), Grant(D1, 1), Die(C1)];
    let mut told = vec![Claim(D1), Attach(D1), Reserve(D1, 3), Allocate(D1, 3)];
    told.extend(two);
    all.push((apart().with_caching_mode(), told));
    all.push((apart().with_late_unit(), with(&[Arrive(U2), Claim(D2)])));
    for mode in [Mode::Strict, Mode::Compat] {
        all.push((Scene::apart(mode), with(&[Restart, Claim(D1), Attach(D1), Detach(D1)])));
    }
    all.push((Scene::beside(Mode::Strict), with(&[Added(D2), Restart, Claim(D2), Attach(D2)])));
    let play = |(scene, acts): (Scene, Vec<Act>)| {
        let scene = Scene { vendor, ..scene };
        Play { name: scene.name, scene, streams: vec![client(1, &acts)] }
    };
    all.into_iter().map(play).collect()
}

fn requests() -> Vec<Act> {
    vec![
        Claim(D1),
        ClaimUnder(D2, D1),
        Attach(D1),
        Allocate(D1, 3),
        Map(D1),
        List(D1, LAST_OF_A_TABLE, LIST),
        Storm(D1),
        Attach(D2),
        Batch(D1),
        Unmap(D1),
        Reserve(D2, 3),
        Grant(D2, 1),
        Revoke(D2, 1),
        Release(D1),
        Detach(D1),
        Attach(D1),
        Allocate(D2, 1),
        Close(D1),
        Removed(D2),
        Added(D2),
        Claim(D2),
        Attach(D2),
        Allocate(D2, 1),
        Die(C1),
    ]
}
