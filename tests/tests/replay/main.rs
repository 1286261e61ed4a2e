//! Traces: the whole server records a play, and `iommuctl replay` runs it again. Planted differences are found where
//! they are.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod hostile;
mod planted;
mod play;

use std::collections::BTreeSet;

use iommuctl::replay::{Replayed, replay};
use iommud::trace::{self, Entry, Kind, Record};
use iommud_tests::conformance::{UnderTest, amdvi, vtd};

/// The entries of a trace.
fn entries(bytes: &[u8]) -> Vec<Entry> {
    let records = trace::records(bytes);
    let (mut out, mut index) = (Vec::new(), 0);
    while index < records.len() {
        let entry = trace::read(&records, index).unwrap();
        index += entry.records;
        out.push(entry);
    }
    out
}

fn bytes(records: &[Record]) -> Vec<u8> {
    records.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
}

fn assert_same(bytes: &[u8]) -> Replayed {
    let replayed = replay(bytes);
    assert_eq!(replayed.finding, None, "{}", replayed.text());
    replayed
}

fn subject<T: UnderTest>(matrix: Vec<T>, name: &str) -> T {
    matrix.into_iter().find(|subject| subject.name() == name).unwrap()
}

/// Everything that a play is to have, so that no kind is forgotten.
const PLAYED: [Kind; 33] = [
    Kind::Life,
    Kind::Seal,
    Kind::Pool,
    Kind::Tags,
    Kind::Installed,
    Kind::Lost,
    Kind::NotAdmitted,
    Kind::UnitReady,
    Kind::UnitFailed,
    Kind::Proved,
    Kind::FunctionAdded,
    Kind::FunctionsAdded,
    Kind::FunctionRemoved,
    Kind::FunctionsRemoved,
    Kind::MemoryTaken,
    Kind::MemoryReturned,
    Kind::Storm,
    Kind::Attach,
    Kind::Detach,
    Kind::Release,
    Kind::Drop,
    Kind::Close,
    Kind::Shutdown,
    Kind::Claim,
    Kind::Allocate,
    Kind::Import,
    Kind::ImportShared,
    Kind::Hold,
    Kind::One,
    Kind::Batch,
    Kind::MapList,
    Kind::CutOff,
    Kind::FoundOff,
];

fn without_a_difference<T: UnderTest>(subject: T) {
    let recorded = play::play(&subject);
    let entries = entries(&recorded);
    let kinds: BTreeSet<u8> = entries.iter().map(|entry| entry.kind.code()).collect();
    let missing: Vec<Kind> =
        PLAYED.into_iter().filter(|kind| !kinds.contains(&kind.code())).collect();
    assert!(missing.is_empty(), "{}: {missing:?}", subject.name());
    let states: BTreeSet<u8> = entries.iter().map(|entry| entry.status.state as u8).collect();
    assert!([1, 2, 3].iter().all(|state| states.contains(state)), "{states:?}");
    let replayed = assert_same(&recorded);
    let seals = entries.iter().filter(|entry| entry.kind == Kind::Seal).count();
    assert_eq!((replayed.events, replayed.lives), (entries.len() - seals, 2));
}

#[test]
fn a_play_on_vtd_is_replayed_without_a_difference() {
    without_a_difference(subject(vtd::matrix(), "server"));
    without_a_difference(subject(vtd::matrix(), "qemu, caching mode"));
}

#[test]
fn a_play_on_amdvi_is_replayed_without_a_difference() {
    without_a_difference(subject(amdvi::matrix(), "server"));
    without_a_difference(subject(amdvi::matrix(), "qemu"));
}
