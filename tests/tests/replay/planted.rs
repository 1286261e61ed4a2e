//! Planted differences are found at the record where they are.

use iommuctl::replay::{Problem, replay};
use iommud::trace::{self, Entry, Kind, Record, State};
use iommud_model::invariant::Invariant;
use iommud_tests::conformance::vtd;

use crate::play::play;
use crate::{assert_same, bytes, entries, subject};

fn recorded() -> (Vec<Record>, Vec<Entry>) {
    let recorded = play(&subject(vtd::matrix(), "server"));
    assert_same(&recorded);
    (trace::records(&recorded), entries(&recorded))
}

/// The first entry of this kind that was carried out, behind the first life's start.
fn committed(entries: &[Entry], kind: Kind) -> &Entry {
    let is = |entry: &&Entry| entry.kind == kind && entry.status.state == State::Committed;
    entries.iter().find(is).unwrap()
}

/// Most are found in their record. The others change a time, what the machine is, or nothing that is decided.
#[test]
fn a_changed_bit_is_found() {
    let (records, entries) = recorded();
    let (mut tried, mut there) = (0, 0);
    for (place, entry) in entries.iter().enumerate().filter(|(place, _)| place % 7 == 0) {
        for word in 0..8 {
            let mut changed = records.clone();
            changed[entry.index][word] ^= 1 << (tried * 11 % 64);
            let Some(found) = replay(&bytes(&changed)).finding else {
                panic!("entry {place}, word {word}: {entry:?}")
            };
            there += usize::from(found.index == entry.index);
            tried += 1;
        }
    }
    assert!(tried > 100 && there > tried / 2, "{there} of {tried} in their record");
}

/// The address of each element of a batch is an outcome too.
#[test]
fn a_changed_element_is_found_in_its_list() {
    let (mut records, entries) = recorded();
    let batch = committed(&entries, Kind::Batch);
    records[batch.index + 2][4] ^= 0x1000;
    let finding = replay(&bytes(&records)).finding.unwrap();
    assert_eq!((finding.index, finding.kind), (batch.index, Some(Kind::Batch)));
    let Problem::Different { recorded, replayed, failure: None } = finding.problem else {
        panic!("{finding:?}")
    };
    assert_eq!(recorded[4], replayed[4] ^ 0x1000);
}

#[test]
fn a_record_that_is_missing_is_found() {
    let (records, entries) = recorded();
    for kind in [Kind::Claim, Kind::Allocate, Kind::One, Kind::Batch, Kind::Tags, Kind::UnitReady] {
        let entry = committed(&entries, kind);
        let mut left = records.clone();
        left.drain(entry.index..entry.index + entry.records);
        let finding = replay(&bytes(&left)).finding.unwrap();
        assert_eq!(finding.index, entry.index, "{kind:?}");
        assert!(matches!(finding.problem, Problem::Number { .. }), "{finding:?}");
    }
}

#[test]
fn records_in_another_order_are_found() {
    let (mut records, entries) = recorded();
    let entry = committed(&entries, Kind::One);
    records.swap(entry.index, entry.index + 1);
    let finding = replay(&bytes(&records)).finding.unwrap();
    let expected = Problem::Number { expected: entry.number, found: entry.number + 1 };
    assert_eq!((finding.index, finding.problem), (entry.index, expected));
}

/// A server that dies in an event leaves its record without an outcome: the last one. Anywhere else I7 is broken.
#[test]
fn an_event_without_an_answer_is_the_last_one() {
    let (records, entries) = recorded();
    for kind in [Kind::Claim, Kind::Attach, Kind::Allocate, Kind::One, Kind::Batch, Kind::MapList] {
        let entry = committed(&entries, kind);
        let mut open = records.clone();
        open[entry.index][6..].fill(0);
        if kind == Kind::Batch {
            (1..entry.records).for_each(|item| open[entry.index + item][4] = 0);
        }
        assert_same(&bytes(&open[..entry.index + entry.records]));
        let finding = replay(&bytes(&open)).finding.unwrap();
        assert_eq!(finding.index, entry.index, "{kind:?}");
        let Problem::Broken(broken) = finding.problem else { panic!("{finding:?}") };
        assert_eq!(broken.invariant, Invariant::I7);
    }
}

/// Renumbers records, as somebody who hides that one is missing.
fn renumbered(records: &mut [Record], from: usize) {
    for record in &mut records[from..] {
        // Records of lists are not numbered: those behind `from` have none here.
        record[1] -= 1;
    }
}

/// A map is taken out, and nothing shows it but what comes of it: its unmap is refused.
#[test]
fn a_request_that_never_was_shows_by_what_follows() {
    let (records, entries) = recorded();
    let map = committed(&entries, Kind::One);
    let unmap = entries.iter().find(|entry| entry.index == map.index + 1).unwrap();
    assert_eq!(unmap.kind, Kind::One);
    let mut short = records[..=unmap.index].to_vec();
    short.remove(map.index);
    renumbered(&mut short, map.index);
    let finding = replay(&bytes(&short)).finding.unwrap();
    assert_eq!(finding.index, map.index);
    let Problem::Different { recorded, replayed, .. } = finding.problem else {
        panic!("{finding:?}")
    };
    assert_eq!((recorded[7] & 0xf, replayed[7] & 0xf), (1, 2), "carried out, now refused");
}

/// An event that hardware failed is recorded as carried out: a replay that has memory agrees, and what follows differs.
#[test]
fn an_outcome_of_hardware_that_was_another_is_found() {
    let (mut records, entries) = recorded();
    let undone = entries.iter().find(|entry| entry.status.state == State::Undone).unwrap();
    let refusal = undone.status.refusal;
    records[undone.index][7] = records[undone.index][7] & !0xffff | 1;
    let finding = replay(&bytes(&records)).finding.unwrap();
    assert!(finding.index >= undone.index && refusal != 0, "{finding:?}");
}
