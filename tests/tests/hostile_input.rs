//! The fuzzing targets over kept inputs, over random bytes, and over damaged tables.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::path::{Path, PathBuf};

use iommud_tests::fuzz::tables::repaired;
use iommud_tests::fuzz::{TARGETS, files, pci, protocol, tables, units};
use proptest::prelude::*;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Inputs that failed once, and the fuzzer's starting inputs.
#[test]
fn kept_inputs_of_every_target() {
    for (name, target) in TARGETS {
        let inputs = files_in(&data().join("fuzz").join(name));
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for input in inputs {
            println!("{}", input.display());
            target(&std::fs::read(&input).unwrap());
        }
    }
}

/// Valid tables: those of QEMU, and of real machines where they are available.
fn good_tables() -> Vec<Vec<u8>> {
    let mut found = files_in(&data().join("acpi/qemu"));
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/acpi-tables");
    if real.is_dir() {
        found.extend(files_in(&real));
    }
    let tables = found.iter().filter(|path| path.extension().is_some_and(|name| name == "bin"));
    tables.map(|path| std::fs::read(path).unwrap()).collect()
}

/// A change to a table.
#[derive(Clone, Debug)]
enum Damage {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, u8),
    Repeat(prop::sample::Index, u8),
    Add(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    use any as a;
    let interesting = prop_oneof![Just(0u8), Just(1), Just(4), Just(0xff), Just(0xf0), a::<u8>()];
    prop_oneof![
        4 => (a::<prop::sample::Index>(), interesting).prop_map(|(at, to)| Damage::Set(at, to)),
        2 => (a::<prop::sample::Index>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => a::<prop::sample::Index>().prop_map(Damage::Cut),
        1 => (a::<prop::sample::Index>(), 1..24u8).prop_map(|(at, n)| Damage::Remove(at, n)),
        1 => (a::<prop::sample::Index>(), 1..64u8).prop_map(|(at, n)| Damage::Repeat(at, n)),
        1 => prop::collection::vec(a::<u8>(), 1..40).prop_map(Damage::Add),
    ]
}

impl Damage {
    /// Damages the bytes after the fixed part.
    fn apply(&self, table: &mut Vec<u8>) {
        let places = table.len() - 48;
        if places == 0 {
            return;
        }
        let place = |index: &prop::sample::Index| 48 + index.index(places);
        match self {
            Self::Set(at, value) => table[place(at)] = *value,
            Self::Flip(at, bit) => table[place(at)] ^= 1 << bit,
            Self::Cut(at) => table.truncate(place(at)),
            Self::Remove(at, count) => {
                let from = place(at);
                let to = table.len().min(from + usize::from(*count));
                table.drain(from..to);
            }
            Self::Repeat(at, count) => {
                let from = place(at);
                let to = table.len().min(from + usize::from(*count));
                let again = table[from..to].to_vec();
                table.splice(to..to, again);
            }
            Self::Add(bytes) => table.extend(bytes),
        }
    }
}

fn run(table: &[u8]) {
    if table.starts_with(b"DMAR") { tables::dmar(table) } else { tables::ivrs(table) }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_tables(index: prop::sample::Index, damages in prop::collection::vec(damage(), 1..8)) {
        let good = good_tables();
        let mut table = index.get(&good).clone();
        for damage in damages {
            damage.apply(&mut table);
        }
        let signature = table[..4].try_into().unwrap();
        run(&table);
        run(&repaired(signature, &table));
    }

    #[test]
    fn tables_cut_anywhere(index: prop::sample::Index, length: prop::sample::Index) {
        let good = good_tables();
        let table = index.get(&good);
        let cut = &table[..length.index(table.len())];
        tables::dmar(cut);
        tables::ivrs(cut);
        files::decode(cut);
    }

    #[test]
    fn random_tables(bytes in bytes(600)) {
        tables::dmar(&bytes);
        tables::ivrs(&bytes);
        files::decode(&bytes);
    }

    #[test]
    fn random_messages(bytes in bytes(300)) {
        protocol::messages(&bytes);
        protocol::paths(&bytes);
        files::policy(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_configuration_space(bytes in bytes(4000)) {
        pci::walk(&bytes);
    }

    #[test]
    fn random_units(bytes in bytes(2000)) {
        units::vtd(&bytes);
        units::amdvi(&bytes);
    }
}

/// The units of these targets work with their drivers. Otherwise no operation after the bring-up would be fuzzed.
#[test]
fn units_that_nothing_is_done_to_work() {
    let input = [0, 1, 2, 3, 4, 5, 6, 7].map(|operation| [operation, 8, 0, 1, 0, 0, 0, 0]).concat();
    let input = [vec![0; 400], input].concat();
    assert!(units::run_vtd(&input).unwrap() > 16);
    let done = units::run_amdvi(&input).unwrap();
    assert!(done > 16, "{done}");
}

/// Tables in which every item is compared with every other. The largest accepted ones are timed against ones of an
/// eighth of their size. Comparing pairs costs 64 times as much; a higher power would cost 512 times.
#[test]
fn the_largest_tables_cost_no_more_than_pairs() {
    compare("units", |part| many_units(4092 / part), tables::dmar);
    compare("scopes", |part| many_scopes(4091 / part), tables::dmar);
    compare("entries", |part| many_entries(16_361 / part), tables::ivrs);
}

fn compare(name: &str, table: fn(u16) -> Vec<u8>, run: fn(&[u8])) {
    let cost = |part| {
        let bytes = table(part);
        let once = || {
            let started = std::time::Instant::now();
            run(&bytes);
            started.elapsed()
        };
        (0..2).map(|_| once()).min().unwrap()
    };
    let (large, small) = (cost(1), cost(8));
    println!("{name}: {large:?} and {small:?}");
    assert!(large < small * 200, "{name}: {large:?} and {small:?}");
}

/// Builds a DMAR of units with adjacent register pages.
fn many_units(count: u16) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    for index in 0..u64::from(count) {
        bytes.extend([0, 0, 16, 0, 0, 0, 0, 0]);
        bytes.extend((0x1_0000_0000 + (index << 12)).to_le_bytes());
    }
    bytes
}

/// Builds a DMAR of two units that name `count` devices each.
fn many_scopes(count: u16) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    for unit in 0..2u8 {
        bytes.extend([0, 0]);
        bytes.extend((16 + 8 * count).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((0xfed9_0000 + (u64::from(unit) << 12)).to_le_bytes());
        for index in 0..count {
            let [bus, function] = index.to_be_bytes();
            bytes.extend([1, 8, 0, 0, 0, bus | unit << 7, function >> 3, function & 7]);
        }
    }
    bytes
}

/// Builds an IVRS of one unit that names `count` devices.
fn many_entries(count: u16) -> Vec<u8> {
    let mut block = vec![0x10, 0, 0, 0, 2, 0, 0x40, 0, 0, 0, 0xb8, 0xfe];
    block.resize(24, 0);
    for id in 0..count {
        block.push(2);
        block.extend(id.to_le_bytes());
        block.push(0);
    }
    let length = u16::try_from(block.len()).unwrap();
    block[2..4].copy_from_slice(&length.to_le_bytes());
    [&[0; 48][..], &block].concat()
}
