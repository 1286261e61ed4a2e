//! Files that no server wrote are refused, and nothing panics.

use iommuctl::replay::{Problem, replay};
use iommud::trace::{self, Kind, RECORD_BYTES};
use iommud_tests::conformance::vtd;

use crate::play::play;
use crate::{assert_same, bytes, entries, subject};

#[test]
fn a_file_without_a_life_is_refused() {
    let files: [&[u8]; 3] = [&[], &[0; 63], b"not a trace"];
    for file in files {
        let finding = replay(file).finding.unwrap();
        assert_eq!((finding.index, finding.problem), (0, Problem::NoLife));
    }
    let finding = replay(&[0; 64]).finding.unwrap();
    assert!(matches!(finding.problem, Problem::Unreadable(_)), "{finding:?}");
    let recorded = play(&subject(vtd::matrix(), "server"));
    let second = entries(&recorded)[1].index;
    let finding = replay(&recorded[second * RECORD_BYTES..]).finding.unwrap();
    assert_eq!((finding.index, finding.problem), (0, Problem::NoLife));
}

/// A trace that ends anywhere is one of a server that died: it is replayed as far as it goes.
#[test]
fn a_file_that_is_cut_off_is_replayed_as_far_as_it_goes() {
    let recorded = play(&subject(vtd::matrix(), "server"));
    let entries = entries(&recorded);
    for cut in [1, 9, 30, entries.len() / 2, entries.len() - 1] {
        let end = entries[cut].index * RECORD_BYTES;
        let replayed = assert_same(&recorded[..end]);
        let seals = entries[..cut].iter().filter(|entry| entry.kind == Kind::Seal).count();
        assert_eq!(replayed.events, cut - seals);
        // The rest of a record is left out, as a server leaves it that dies while it writes.
        assert_eq!(assert_same(&recorded[..end + 40]).events, cut - seals);
    }
    let list = entries.iter().find(|entry| entry.records > 2).unwrap();
    let end = (list.index + 2) * RECORD_BYTES;
    let finding = replay(&recorded[..end]).finding.unwrap();
    assert_eq!(finding.index, list.index);
    assert!(matches!(finding.problem, Problem::Unreadable(_)), "{finding:?}");
}

/// Words are changed at random, in a trace without seals: one that a server left which died.
#[test]
fn hostile_words_do_no_harm() {
    let mut records = trace::records(&play(&subject(vtd::matrix(), "server")));
    records.retain(|record| record[0] & 0xff != 72);
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state ^ state >> 33
    };
    for _ in 0..300 {
        let mut changed = records.clone();
        for _ in 0..=next() % 3 {
            let at = usize::try_from(next() % u64::try_from(records.len()).unwrap()).unwrap();
            let word = usize::try_from(next() % 8).unwrap();
            let bits = next();
            changed[at][word] = match next() % 4 {
                0 => bits,
                1 => u64::MAX,
                2 => changed[at][word] ^ 1 << (bits % 64),
                _ => 0,
            };
        }
        let _ = replay(&bytes(&changed));
    }
}
