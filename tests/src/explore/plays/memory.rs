//! Plays about buffers, mappings, domains and failures.

use super::*;

/// Pages out of order; and a list with a page that no buffer of three pages has.
pub(in crate::explore) const LIST: &[u32] = &[2, 0, 1];
const BEYOND_BUFFER: &[u32] = &[0, 3];
/// The last page of a GiB: the next one needs tables of its own.
pub(in crate::explore) const LAST_OF_A_TABLE: u64 = 0x1_4000_0000 - 0x1000;

pub(super) fn more(all: &mut Vec<Play>, long: bool) {
    all.push(play(
        "lists of pages",
        Scene::apart(Mode::Strict),
        &[
            client(
                1,
                &[
                    Claim(D1),
                    Attach(D1),
                    Allocate(D1, 3),
                    List(D1, LAST_OF_A_TABLE, LIST),
                    Unmap(D1),
                    List(D1, 0, BEYOND_BUFFER),
                    Unmap(D1),
                    Release(D1),
                ],
            ),
            client(2, &[Claim(D2), Attach(D2), Allocate(D2, 3), List(D2, 0, LIST)]),
        ],
        &[machine(&[Die(C1)])],
        long,
    ));
    all.push(play(
        "pages one by one",
        Scene::apart(Mode::Strict).with_caching_mode(),
        &[
            client(
                1,
                &[
                    Claim(D1),
                    Attach(D1),
                    Reserve(D1, 3),
                    Grant(D1, 1),
                    Grant(D1, 0),
                    Revoke(D1, 1),
                    Release(D1),
                ],
            ),
            client(2, &[Claim(D2), Guess(D2, C1)]),
            machine(&[Die(C1)]),
        ],
        &[client(2, &[Attach(D2), Allocate(D2, 1)])],
        long,
    ));
    all.push(play(
        "a buffer of two sessions",
        Scene::apart(Mode::Strict),
        &[
            client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1), Release(D1)]),
            client(1, &[Claim(D2), Attach(D2), Import(D2, C1, D1), Map(D2)]),
            machine(&[Die(C1)]),
        ],
        &[machine(&[Removed(D2)])],
        long,
    ));
    all.push(play(
        "memory that policy maps",
        Scene::apart(Mode::Compat).with_memory_taken(),
        &[
            client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1), Release(D1)]),
            client(2, &[Claim(D2), Allocate(D2, 1), Close(D2)]),
            machine(&[Die(C1)]),
        ],
        &[],
        long,
    ));
    all.push(play(
        "a table that grows",
        Scene::apart(Mode::Strict).with_region_beyond(),
        &[
            client(
                1,
                &[
                    Claim(D1),
                    Attach(D1),
                    Allocate(D1, 1),
                    ClaimUnder(D2, D1),
                    Attach(D2),
                    Close(D2),
                    Unmap(D1),
                ],
            ),
            client(2, &[Claim(D2), Close(D2)]),
            machine(&[Die(C1)]),
        ],
        &[machine(&[Removed(D2), Added(D2)])],
        long,
    ));
}

pub(super) fn failures(all: &mut Vec<Play>, long: bool) {
    all.push(play(
        "failed probes",
        Scene::pair(Mode::Strict),
        &[
            client(1, &[Claim(D1), Claim(D1), Attach(D1), Allocate(D1, 1), Allocate(D1, 1)])
                .with_failure(0, Failure::Table(0))
                .with_failure(3, Failure::Buffer),
            client(2, &[Look(D2), Claim(D2), Close(D2)]),
        ],
        &[client(3, &[Claim(D3), Attach(D3)]), machine(&[Die(C1)])],
        long,
    ));
    // A member that came while its group was claimed needs a domain of its own when the group is free: no claim has
    // prepared it.
    all.push(play(
        "work that an end leaves",
        Scene::growing(Mode::Strict).with_region_of_third(),
        &[
            client(1, &[Claim(D1), Attach(D1), Allocate(D1, 1)]),
            machine(&[Added(D3), Die(C1)]),
            client(2, &[Claim(D3), Close(D3)]),
        ],
        &[machine(&[Removed(D3)])],
        long,
    ));
}
