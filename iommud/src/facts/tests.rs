//! Stores that are cut short at every word, damaged, full, or of another format.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use std::boxed::Box;
use std::format;
use std::vec;

use iommu_protocol::ids::{PciAddress, Slot};
use iommu_protocol::wire::Access;
use proptest::prelude::*;

use super::cell::{decode, encode, freed};
use super::*;
use crate::addr::{Iova, IovaRange};
use crate::policy::{
    BufferId, ClientId, FactBook, MappingFact, ObjectFact, SessionFact, SessionId, SlotFact,
};

/// Every store of a word so far: cell, word, value.
type Stores = Vec<(u32, usize, u64)>;

/// Memory that records every store. Copies share it.
#[derive(Clone, Default)]
struct Recorded {
    cells: Rc<RefCell<Vec<Cell>>>,
    stores: Rc<RefCell<Stores>>,
}

impl Recorded {
    fn new(count: usize) -> Self {
        Self { cells: Rc::new(RefCell::new(vec![[0; 4]; count])), ..Self::default() }
    }

    /// The memory of so many zeros after these stores.
    fn after(count: usize, stores: &[(u32, usize, u64)]) -> Self {
        let mut memory = Self::new(count);
        stores.iter().for_each(|(cell, word, value)| memory.write_word(*cell, *word, *value));
        memory
    }
}

impl CellMemory for Recorded {
    fn count(&self) -> u32 {
        u32::try_from(self.cells.borrow().len()).unwrap()
    }

    fn read(&self, cell: u32) -> Cell {
        self.cells.borrow()[cell as usize]
    }

    fn write(&mut self, cell: u32, words: &Cell) {
        (0..4).for_each(|word| self.write_word(cell, word, words[word]));
    }

    fn write_word(&mut self, cell: u32, word: usize, value: u64) {
        self.stores.borrow_mut().push((cell, word, value));
        self.cells.borrow_mut()[cell as usize][word] = value;
    }
}

fn session(number: u32, attached: bool) -> ObjectFact {
    let device = PciAddress::new(0, 0, u8::try_from(number & 31).unwrap(), 0).unwrap();
    let (session, client) = (SessionId(number), ClientId(number + 100));
    ObjectFact::Session(SessionFact { session, client, device, attached })
}

fn slot(record: u32, of: u32, pages: u64) -> ObjectFact {
    ObjectFact::Slot(SlotFact {
        record,
        session: SessionId(of),
        slot: Slot(record + 1),
        buffer: BufferId(record + 2),
        length: pages * 0x1000,
    })
}

fn mapping(record: u32, first: u64, pages: u64) -> ObjectFact {
    ObjectFact::Mapping(MappingFact {
        record,
        range: IovaRange::new(Iova(first), pages * 0x1000).unwrap(),
        offset: 0,
        access: Access::READ,
        grant: false,
        list: false,
    })
}

/// The words of each kind of cell, as the head of `cell` lays them out, and the checksum computed by hand.
#[test]
fn cells_have_the_words_of_the_format() {
    let attached = ObjectFact::Session(SessionFact {
        session: SessionId(5),
        client: ClientId(7),
        device: PciAddress::new(1, 0, 4, 0).unwrap(),
        attached: true,
    });
    // 0x9_0101 ^ 0xe000_0000_a000 ^ 0x2004_0000_0000 is 0xc004_0009_a101; its 16-bit parts, by exclusive or, are 0x610c.
    assert_eq!(encode(&attached, 9), [0x610c_0000_0009_0101, 0x7_0000_0005, 0x1_0020, 0]);
    let slot = encode(&slot(3, 5, 2), 0xab_cdef);
    assert_eq!(
        (slot[0] & 0xffff_ffff_ffff, slot[1..].to_vec()),
        (0xab_cdef_0002, vec![0x5_0000_0003, 0x5_0000_0004, 0x2000],)
    );
    let granted = ObjectFact::Mapping(MappingFact {
        record: 3,
        range: IovaRange::new(Iova(0x7f_ffff_f000), 0x1000).unwrap(),
        offset: 0x5000,
        access: Access::WRITE,
        grant: true,
        list: false,
    });
    let cell = encode(&granted, 1);
    assert_eq!(cell[0] & 0xffff_ffff_ffff, 0x1_0603);
    assert_eq!(cell[1..], [0x5_0000_0003, 0x7f_ffff_f000, 0x1000]);
}

#[test]
fn a_cell_with_any_bit_changed_or_in_another_place_is_damaged() {
    let facts = [session(4, true), slot(3, 4, 2), mapping(3, 0x1000, 1)];
    for fact in facts {
        let cell = encode(&fact, 77);
        assert_eq!(decode(&cell, 77), Ok(Some(fact)));
        assert!(decode(&cell, 78).is_err());
        for bit in 0..256 {
            let mut changed = cell;
            changed[bit / 64] ^= 1 << (bit % 64);
            assert!(decode(&changed, 77).is_err(), "bit {bit} of {fact:?}");
        }
    }
    assert_eq!((decode(&[0; 4], 77), decode(&freed(77), 77)), (Ok(None), Ok(None)));
    assert!(decode(&freed(77), 78).is_err());
}

/// Changes of one plan.
#[derive(Clone, Debug)]
enum Act {
    Enter(ObjectFact),
    Change(usize, ObjectFact),
    Remove(usize),
}

/// Commits plans to a store; returns every store of a word, and after each commit the number of those and what a reader
/// finds.
fn committed(count: usize, plans: &[Vec<Act>]) -> (Stores, Vec<(usize, Option<Left>)>) {
    let memory = Recorded::new(count);
    let mut store = Store::begin(Box::new(memory.clone())).unwrap();
    let (mut cells, mut found) = (Vec::new(), Vec::new());
    let mut look = || found.push((memory.stores.borrow().len(), read(&memory).unwrap()));
    look();
    for plan in plans {
        for act in plan {
            match act {
                Act::Enter(fact) => cells.push(store.enter(fact)),
                Act::Change(at, fact) => store.change(cells[*at].unwrap(), fact),
                Act::Remove(at) => store.remove(cells[*at].unwrap()),
            }
        }
        store.commit();
        look();
    }
    (memory.stores.take(), found)
}

/// A life with every kind of change; some plans change several cells, some the same one twice.
fn life() -> Vec<Vec<Act>> {
    let enter = Act::Enter;
    vec![
        vec![enter(session(1, false))],
        vec![enter(slot(10, 1, 8)), Act::Change(0, session(1, true))],
        vec![
            enter(mapping(10, 0x1000, 1)),
            enter(mapping(10, 0x2000, 2)),
            enter(mapping(10, 0x8000, 1)),
        ],
        vec![],
        vec![Act::Remove(3), enter(mapping(10, 0x3000, 1))],
        vec![enter(mapping(10, 0x9000, 1)), Act::Remove(6)],
        vec![enter(session(2, false)), enter(slot(11, 2, 1)), enter(mapping(11, 0x1000, 1))],
        vec![Act::Remove(2), Act::Remove(4), Act::Remove(5), Act::Remove(1), Act::Remove(0)],
        vec![Act::Change(7, session(2, true))],
    ]
}

/// A server may die after any store of a word. The next one finds what was committed before, or with the commit that was
/// under way; never another state, and never a store that cannot be read.
fn check_every_cut(
    count: usize,
    stores: &Stores,
    found: &[(usize, Option<Left>)],
) -> Result<(), String> {
    for cut in 0..=stores.len() {
        let left = read(&Recorded::after(count, &stores[..cut]));
        let at = found.partition_point(|(stores, _)| *stores <= cut);
        let before = at.checked_sub(1).map_or(&None, |at| &found[at].1);
        let after = found.get(at).map_or(before, |(_, left)| left);
        if left.as_ref() != Ok(before) && left.as_ref() != Ok(after) {
            return Err(format!("after {cut} stores: {left:?}, not {before:?} or {after:?}"));
        }
    }
    Ok(())
}

#[test]
fn a_store_that_is_cut_after_any_word_has_the_state_before_or_after() {
    let (stores, found) = committed(128, &life());
    let sessions = |at: usize| found[at].1.as_ref().unwrap().sessions.len();
    assert_eq!([0, 1, 7, 8].map(sessions), [0, 1, 2, 1]);
    check_every_cut(128, &stores, &found).unwrap();
}

/// Controls: the mark before the record; cells before the mark; a record without a mark. Each must be caught.
#[test]
fn flawed_orders_are_caught() {
    let (stores, found) = committed(128, &life());
    let is_mark = |store: &(u32, usize, u64)| (store.0, store.1) == (0, 2);
    let cells = |store: &(u32, usize, u64)| store.0 > 16;
    // `Layout::of(128)`: two records of 8 places from cell 1 on, so cells begin at 17.
    let mut early = stores.clone();
    let mut late = stores.clone();
    for at in 0..stores.len() {
        let Some(commit) =
            found.iter().rposition(|(count, _)| *count <= at).filter(|_| is_mark(&stores[at]))
        else {
            continue;
        };
        let start = found[commit].0;
        early[start..=at].rotate_right(1);
        let end = found.get(commit + 1).map_or(stores.len(), |(count, _)| *count);
        late[at..end].rotate_left(1);
    }
    assert!(stores.iter().any(cells) && early != stores && late != stores);
    let mark_first = check_every_cut(128, &early, &found).unwrap_err();
    let mark_last = check_every_cut(128, &late, &found).unwrap_err();
    std::println!("mark first: {mark_first}\nmark last: {mark_last}");
    let without: Stores = stores.iter().copied().filter(|store| !is_mark(store)).collect();
    let left = read(&Recorded::after(128, &without));
    assert_ne!(
        left.as_ref(),
        Ok(&found.last().unwrap().1),
        "commits that nobody marked are not counted"
    );
}

/// A commit of more cells than a record has places: a reader may find a void store until it is whole.
#[test]
fn a_large_commit_leaves_a_void_store_if_it_is_cut() {
    let many: Vec<Act> = (0..20).map(|at| Act::Enter(mapping(10, at * 0x1000, 1))).collect();
    let plans = [vec![Act::Enter(session(1, true)), Act::Enter(slot(10, 1, 8))], many];
    let (stores, found) = committed(128, &plans);
    let left = found[2].1.as_ref().unwrap();
    assert_eq!((left.commits, left.sessions[0].mappings), (2, 20));
    let mut void = 0;
    for cut in found[1].0..=stores.len() {
        match read(&Recorded::after(128, &stores[..cut])) {
            Err(Unreadable::Void) => void += 1,
            left => {
                assert!([Ok(&found[1].1), Ok(&found[2].1)].contains(&left.as_ref()), "{left:?}")
            }
        }
    }
    // From the first store to the last but one: 20 cells of 4 words, and the mark.
    assert_eq!(void, 82);
}

#[test]
fn a_new_store_is_empty_whatever_was_there() {
    let (stores, found) = committed(128, &life());
    assert!(found.last().unwrap().1.as_ref().unwrap().sessions.len() == 1);
    let memory = Recorded::after(128, &stores);
    let cut = memory.stores.borrow().len();
    drop(Store::begin(Box::new(memory.clone())));
    assert_eq!(read(&memory), Ok(Some(Left::default())));
    let all = memory.stores.take();
    let old = read(&Recorded::after(128, &all[..cut])).unwrap();
    for end in cut..=all.len() {
        let left = read(&Recorded::after(128, &all[..end]));
        let expected = [Ok(old.clone()), Ok(None), Ok(Some(Left::default()))];
        assert!(expected.contains(&left), "{end}: {left:?}");
    }
    assert!(Store::begin(Box::new(Recorded::new(15))).is_none(), "no place for a record");
}

#[test]
fn what_is_wrong_with_a_store_is_said() {
    let (stores, _) = committed(128, &life());
    let with = |changes: &[(u32, usize, u64)]| {
        let memory = Recorded::after(128, &[&stores[..], changes].concat());
        read(&memory).unwrap_err()
    };
    let put = |cell: u32, fact: ObjectFact| {
        let words = encode(&fact, cell);
        let changes: Vec<_> = (0..4).map(|word| (cell, word, words[word])).collect();
        with(&changes)
    };
    assert_eq!(with(&[(0, 0, 0x3263_6664_756d_6d6f)]), Unreadable::Format(0x3263_6664_756d_6d6f));
    assert_eq!(with(&[(0, 1, 7)]), Unreadable::Places(7));
    assert_eq!(with(&[(0, 2, 9 << 16 | 9)]), Unreadable::Places(8));
    assert_eq!(with(&[(0, 3, 1 << 63)]), Unreadable::Void);
    assert_eq!(with(&[(100, 2, 1)]), Unreadable::Damaged(100));
    assert_eq!(put(100, slot(20, 9, 1)), Unreadable::Orphan(100));
    assert_eq!(put(100, mapping(20, 0x1000, 1)), Unreadable::Orphan(100));
    assert_eq!(put(100, session(2, false)), Unreadable::Twice(100));
    assert_eq!(put(100, slot(11, 2, 1)), Unreadable::Twice(100));
    assert_eq!(put(100, mapping(11, 0x5000, 2)), Unreadable::Beyond(100));
    assert_eq!(put(100, mapping(11, 0x1000, 1)), Unreadable::Overlap(0x1000));
    for error in [Unreadable::Void, Unreadable::Damaged(5), Unreadable::Overlap(0x1000)] {
        assert!(!format!("{error}").is_empty());
    }
}

/// Mappings take at most seven eighths of the cells; what finds no room is counted, and its children are no error.
#[test]
fn a_full_store_misses_facts_and_says_how_many() {
    // Two records of 8 places, so 111 cells, of which 13 are spared.
    let memory = Recorded::new(128);
    let mut store = Store::begin(Box::new(memory.clone())).unwrap();
    let mut cells = vec![store.enter(&session(1, true)), store.enter(&slot(10, 1, 8))];
    cells.extend((0..100).map(|at| store.enter(&mapping(10, at * 0x1000, 1))));
    store.commit();
    assert_eq!((cells.iter().flatten().count(), store.kept(), store.missed()), (98, 98, 4));
    let rest: Vec<_> = (2..17).map(|number| store.enter(&session(number, false))).collect();
    store.commit();
    assert_eq!((rest.iter().flatten().count(), store.missed()), (13, 6));
    // A cell that was freed is used again, by a session before a mapping.
    store.remove(cells[5].unwrap());
    assert_eq!(store.enter(&mapping(10, 0x90_0000, 1)), None);
    assert_eq!(store.enter(&session(20, false)), cells[5]);
    store.commit();
    let left = read(&memory).unwrap().unwrap();
    assert_eq!((left.missed, left.sessions.len(), left.commits), (7, 15, 3));
    let of_first = left.sessions.iter().find(|session| session.client == ClientId(101)).unwrap();
    assert_eq!((of_first.mappings, of_first.mapped_bytes, of_first.buffers), (95, 95 * 0x1000, 1));
}

/// One random choice of a change.
type Choice = (u8, u16, u8);

/// Plans that enter, change and remove, never below an object that is gone.
fn plans(choices: &[Vec<Choice>]) -> Vec<Vec<Act>> {
    let mut made = 0_usize;
    let (mut sessions, mut slots, mut mappings) = (Vec::new(), Vec::new(), Vec::new());
    let mut plan_of = |choices: &Vec<Choice>| {
        let mut plan = Vec::new();
        for &(kind, a, b) in choices {
            let number = u32::try_from(made).unwrap();
            match kind % 6 {
                0 => {
                    sessions.push((made, number));
                    plan.push(Act::Enter(session(number, b % 2 == 0)));
                    made += 1;
                }
                1 if !sessions.is_empty() => {
                    let (_, of) = sessions[usize::from(a) % sessions.len()];
                    slots.push((made, number));
                    plan.push(Act::Enter(slot(number, of, 4)));
                    made += 1;
                }
                2 | 3 if !slots.is_empty() => {
                    let (_, of) = slots[usize::from(a) % slots.len()];
                    mappings.push((made, of));
                    plan.push(Act::Enter(mapping(
                        of,
                        u64::from(number) * 0x4000,
                        1 + u64::from(b % 4),
                    )));
                    made += 1;
                }
                4 if !mappings.is_empty() => {
                    let (at, _) = mappings.swap_remove(usize::from(a) % mappings.len());
                    plan.push(Act::Remove(at));
                }
                5 if !sessions.is_empty() => {
                    let (at, number) = sessions[usize::from(a) % sessions.len()];
                    plan.push(Act::Change(at, session(number, b % 2 == 1)));
                }
                _ => {}
            }
        }
        plan
    };
    choices.iter().map(&mut plan_of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_life_can_be_cut_anywhere(
        choices in prop::collection::vec(prop::collection::vec(any::<Choice>(), 0..6), 0..12),
    ) {
        let (stores, found) = committed(256, &plans(&choices));
        check_every_cut(256, &stores, &found).map_err(TestCaseError::fail)?;
    }
}
