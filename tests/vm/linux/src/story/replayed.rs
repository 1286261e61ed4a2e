//! The trace of the whole story, replayed.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::run;
use crate::server::TRACE;

/// How long a replay may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A copy of the trace with a planted difference.
const PLANTED: &str = "/tmp/planted.trace";

/// Bytes of a record, and of a word.
const RECORD: usize = 64;
const WORD: usize = 8;

/// Kind of a record about one map, unmap, grant or revoke, and its words.
const ONE: (u64, &str) = (37, "map, unmap, grant or revoke");

/// The words of a record that hold the address, and the state with the refusal.
const ADDRESS: usize = 6;
const STATUS: usize = 7;

/// The state of an event that was carried out.
const COMMITTED: u64 = 1;

/// Check 16: `iommuctl replay` finds no difference in the trace of all servers so far. It finds one bit that is changed in
/// the address of a map, by the record's index.
pub(super) fn replayed() -> Result<String> {
    let (ended, output) = run("/bin/iommuctl", &["replay", TRACE], PATIENCE)?;
    ensure!(ended == 0, "iommuctl replay ended with {ended}: {output}");
    let mut bytes = fs::read(TRACE).context(TRACE)?;
    let maps: Vec<usize> =
        (0..bytes.len() / RECORD).filter(|index| is_map(&bytes, *index)).collect();
    let index = *maps.get(maps.len() / 2).context("no map was recorded")?;
    let planted = bytes.get_mut(index * RECORD + ADDRESS * WORD + 1).context("no such record")?;
    *planted ^= 0x10;
    fs::write(PLANTED, &bytes).context(PLANTED)?;
    let (ended, told) = run("/bin/iommuctl", &["replay", PLANTED], PATIENCE)?;
    ensure!(ended == 3, "a planted difference: iommuctl replay ended with {ended}: {told}");
    let place = format!("record {index} ({}): ", ONE.1);
    ensure!(told.contains(&place), "planted in record {index}: {told}");
    fs::remove_file(PLANTED)?;
    let said = output.lines().collect::<Vec<_>>().join("; ");
    Ok(format!("{said}; a planted one of {} maps is found, record {index}", maps.len()))
}

/// Whether this is the record of a request that was carried out and has an address: a map.
fn is_map(bytes: &[u8], index: usize) -> bool {
    let word = |word: usize| {
        let at = index * RECORD + word * WORD;
        let bytes = bytes.get(at..at + WORD).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    // An element of a list has no 37 there: elements of a batch begin with 1 to 4, ranges with a multiple of 4096.
    word(0) & 0xffff_ffff == ONE.0 && word(STATUS) & 0xffff == COMMITTED && word(ADDRESS) > 0
}
