//! Shares reckoned by hand. `P` is a promise, which is also a piece of the pool.

use alloc::vec::Vec;

use super::*;
use crate::addr::{PhysAddr, PhysRange};
use crate::policy::config::Config;
use crate::policy::ids::{ClientId, DomainId, GroupId};
use crate::policy::state::domain::{Domain, Purpose, Shape};
use crate::policy::state::objects::{Account, Buffer, Group, Owner};
use crate::policy::state::pool::Pool;
use crate::policy::state::tags::Tags;
use crate::topology::capabilities::{DomainTag, PageSizes, TableFormat};
use crate::topology::firmware::Firmware;
use crate::topology::tags::{HeldTags, TagRing};

const P: u64 = 64 << 10;

/// A pool of this many bytes, in pieces of `P`; groups, of which as many are claimed as there are owners; and clients
/// with domains and bytes taken.
fn state(capacity: u64, groups: u32, owners: usize, clients: &[(u32, u64)]) -> State {
    let mut state = State::new(Config::default(), Firmware::default(), &[], &[]);
    state.pool = Pool { capacity, granule: P };
    for group in 0..groups {
        assert_eq!(state.machine.groups.insert(Group::default()), Some(group));
    }
    for _ in 0..owners {
        let groups = Vec::from([GroupId(0)]);
        state.machine.owners.insert(Owner { client: 0, domain: None, sessions: 1, groups });
    }
    for (number, (domains, taken)) in (0..).zip(clients.iter().copied()) {
        let account = Account { domains, taken, sessions: 1, ..Account::new(ClientId(number)) };
        assert_eq!(state.accounts.insert(account), Some(number));
    }
    state
}

/// Half of 64 pieces are enough for two promises, and half of 40 for 20 of 100: then for 5 of one client.
#[test]
fn a_promise_is_for_each_domain_or_for_a_quarter_of_the_places() {
    let enough = state(64 * P, 2, 0, &[]);
    let promised = [0, 1, 5].map(|domains| enough.promise_of(domains, 2, P));
    assert_eq!(promised, [0, P, 5 * P]);
    let scarce = state(40 * P, 100, 0, &[]);
    let promised = [0, 4, 5, 6, 100].map(|domains| scarce.promise_of(domains, 20, P));
    assert_eq!(promised, [0, 4 * P, 5 * P, 5 * P, 5 * P]);
    assert_eq!(scarce.promise_of(9, 3, P), P, "one at least");
    assert_eq!(scarce.buffer_promise(7), (5 * P, P));
}

#[test]
fn a_share_is_a_promise_and_a_quarter_of_the_rest() {
    let share = |capacity, groups, domains| state(capacity, groups, 0, &[]).share_of(domains);
    // 62 pieces are common.
    assert_eq!(share(64 * P, 2, 1), P + 62 * P / 4);
    assert_eq!(share(64 * P, 2, 0), P + 62 * P / 4, "of a client that has no domain yet");
    assert_eq!(share(64 * P, 2, 2), 2 * P + 62 * P / 4);
    assert_eq!(share(64 * P, 2, 60), 64 * P, "all that there is");
    // Scarce: 20 of 40 are promised, 5 of them to one client.
    assert_eq!(share(40 * P, 100, 1), P + 5 * P);
    assert_eq!(share(40 * P, 100, 7), 5 * P + 5 * P);
    // Eleven of 23 are promised, two of them to one client.
    assert_eq!(share(23 * P, 100, 9), 2 * P + 3 * P);
    // Three of six are promised, one of them to one client. With its part of the rest it would have 7/4 pieces.
    assert_eq!(share(6 * P, 100, 3), 6 * P / 4, "a quarter in all");
    // One piece each, however few there are, but no more than there is.
    assert_eq!(share(2 * P, 100, 3), P);
    assert_eq!(share(P, 1, 1), P);
    assert_eq!(share(P / 2, 1, 1), P / 2);
    assert_eq!(share(0, 1, 1), 0);
}

#[test]
fn without_a_session_a_client_is_entitled_to_nothing() {
    let state = state(64 * P, 2, 0, &[]);
    let account = |sessions| Account { domains: 1, sessions, ..Account::new(ClientId(1)) };
    let entitled = [0, 1, 2].map(|sessions| state.entitled(&account(sessions)));
    assert_eq!(entitled, [0, P + 62 * P / 4, P + 62 * P / 4]);
}

/// Buffers of 4 KiB at the start of piece 1, in the middle of piece 4, and, not charged, in piece 8.
#[test]
fn a_piece_is_new_unless_a_charged_buffer_lies_in_it() {
    let range = |first, length| PhysRange::new(PhysAddr(first), length).unwrap();
    let mut state = state(64 * P, 2, 0, &[]);
    for (first, charged) in [(P, true), (4 * P + P / 2, true), (8 * P, false)] {
        let memory = Memory::One(range(first, PAGE_SIZE));
        let buffer = Buffer {
            client: 0,
            length: PAGE_SIZE,
            memory,
            taken: Vec::new(),
            slots: 1,
            holds: 0,
            unproved: false,
            charged,
        };
        let number = state.buffers.insert(buffer).unwrap();
        state.note_memory(number, true);
    }
    let new = |ranges: &[(u64, u64)]| {
        let segments: Vec<_> =
            ranges.iter().map(|(first, length)| range(*first, *length)).collect();
        state.new_pieces(&Memory::new(&segments).unwrap()) / P
    };
    let page = |at| new(&[(at, PAGE_SIZE)]);
    assert_eq!([page(0), page(P - PAGE_SIZE), page(2 * P)], [1, 1, 1], "beside the first");
    assert_eq!([page(P + PAGE_SIZE), page(2 * P - PAGE_SIZE)], [0, 0], "with the first");
    assert_eq!([page(4 * P), page(5 * P - PAGE_SIZE)], [0, 0], "with the second");
    assert_eq!([page(4 * P - PAGE_SIZE), page(5 * P)], [1, 1], "beside the second");
    assert_eq!(page(8 * P + PAGE_SIZE), 1, "with one that is not charged");
    // Whole pieces are new, since nothing else lies in them; so are the parts of others.
    assert_eq!(new(&[(2 * P, 2 * P)]), 2);
    assert_eq!(new(&[(2 * P, 2 * P + PAGE_SIZE)]), 2);
    assert_eq!(new(&[(5 * P - PAGE_SIZE, 2 * P)]), 2);
    assert_eq!(new(&[(5 * P, PAGE_SIZE), (5 * P + 2 * PAGE_SIZE, P)]), 2, "a piece counts once");
    assert_eq!(new(&[(10 * P, PAGE_SIZE), (12 * P, PAGE_SIZE)]), 2);
}

/// 32 pieces for 8 groups: a promise to each, and 24 common, so that a client of one domain may have 7. Five groups are
/// claimed. Four clients have 25 pieces; the fifth, and last, has one.
const FULL: [(u32, u64); 5] = [(1, 7 * P), (1, 7 * P), (1, 7 * P), (1, 4 * P), (1, P)];

fn check(state: &State, more: u64) -> Result<(), Refusal> {
    state.check_buffer_share(4, more)
}

#[test]
fn a_client_may_have_what_is_not_promised_to_others() {
    let three_unclaimed = state(32 * P, 8, 5, &FULL);
    assert_eq!(check(&three_unclaimed, 3 * P), Ok(()));
    assert_eq!(check(&three_unclaimed, 3 * P + 1), Err(Refusal::NoMemory));
    assert_eq!(check(&three_unclaimed, 6 * P), Err(Refusal::NoMemory));
    assert_eq!(check(&three_unclaimed, 6 * P + 1), Err(Refusal::Quota), "beyond its share");
    assert_eq!(check(&three_unclaimed, 0), Ok(()));
    assert_eq!(three_unclaimed.check_buffer_share(5, P), Err(Refusal::BadHandle));
    // A sixth client that has a domain, and nothing yet.
    let one_short = state(32 * P, 8, 6, &[&FULL[..], &[(1, 0)]].concat());
    assert_eq!(check(&one_short, 3 * P), Ok(()));
    assert_eq!(check(&one_short, 3 * P + 1), Err(Refusal::NoMemory));
    // A sixth owner that has no domain needs nothing.
    let no_domain = state(32 * P, 8, 6, &FULL);
    assert_eq!(check(&no_domain, 4 * P), Ok(()));
    assert_eq!(check(&no_domain, 4 * P + 1), Err(Refusal::NoMemory));
}

/// Groups came when most of the memory was taken: not even their promises are left.
#[test]
fn a_client_has_its_promise_as_long_as_there_is_memory() {
    let state = |taken| state(32 * P, 8, 2, &[(1, taken), (1, 0), (0, 0), (0, 0), (1, P / 2)]);
    assert_eq!(check(&state(31 * P), P / 2), Ok(()));
    assert_eq!(check(&state(31 * P), P / 2 + 1), Err(Refusal::NoMemory), "that is more");
    assert_eq!(check(&state(31 * P + 1), P / 2), Err(Refusal::NoMemory), "there is none");
}

/// 16 pieces for 100 groups: eight promises, of which a client has two at most.
#[test]
fn where_memory_is_scarce_domains_beyond_a_quarter_are_not_promised() {
    let state =
        |last| state(16 * P, 100, 10, &[(5, 4 * P), (2, 4 * P), (1, 3 * P), (1, last), (1, 0)]);
    // The promises of the five clients are 2, 2, 1, 1 and 1: one place is left for the other groups.
    assert_eq!(check(&state(P), 3 * P), Ok(()));
    assert_eq!(check(&state(P + 1), 3 * P), Err(Refusal::NoMemory));
    assert_eq!(check(&state(P + 1), 3 * P - 1), Ok(()));
    assert_eq!(check(&state(P), 3 * P + 1), Err(Refusal::Quota));
}

/// Sixteen tags, half of which are promised at most, to four groups. One is claimed.
#[test]
fn a_client_has_a_first_domain_and_then_a_quarter_of_the_tags() {
    let check = |taken, domains| {
        let mut state = state(P, 4, 1, &[]);
        state.tags = Tags::of(TagRing::new(HeldTags::Nothing, 33), HeldTags::Nothing, Vec::new());
        let page_sizes = PageSizes::SIZE_4K;
        let format = TableFormat { levels: 4, page_sizes, coherent: true, forces_snoop: true };
        let shape = Shape { format, physical_bits: 46, iova_bits: 48 };
        for number in 0..taken {
            let domain = Domain::new(Purpose::Client, DomainTag(2), shape);
            assert_eq!(state.domains.insert(domain).map(DomainId), Some(DomainId(number)));
        }
        state.check_tag_share(domains)
    };
    let refused = Err(Refusal::Quota);
    assert_eq!(
        [0, 1, 3, 4, 5].map(|own| check(5, own)),
        [Ok(()), Ok(()), Ok(()), refused, refused]
    );
    // Three groups are not claimed: the last three tags are theirs.
    assert_eq!([12, 13, 16].map(|taken| check(taken, 1)), [Ok(()), refused, refused]);
    assert_eq!([13, 16].map(|taken| check(taken, 0)), [Ok(()), Ok(())], "promised");
}
