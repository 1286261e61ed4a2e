//! Runs a trace of the server again: the same requests to the same policy and engine, over software units.
//!
//! ```text
//! file -> lives -> for each: the machine of its snapshot (model) -> every record decided and run again (run)
//!                   the same records must come of it, word by word; the time is taken from the file
//!                   after each: what devices reach, by the tables and caches of the software units (checks),
//!                   against what the trace says was granted (grants)
//! ```
//!
//! The first difference, or broken invariant, ends the replay. A life whose server died is replayed as far as it went.
//! See [`iommud::trace`] for what a trace has.

mod checks;
mod grants;
mod model;
mod report;
mod run;

use iommud::trace::{self, Entry, Kind, Record, Said, Seal, TableBytes};
use iommud_model::backend::{amdvi, vtd};

use report::found;
pub use report::{Finding, Problem, Replayed};

/// Replays the trace in the bytes of a file.
#[must_use]
pub fn replay(bytes: &[u8]) -> Replayed {
    let records = trace::records(bytes);
    let mut done = Replayed { records: records.len(), lives: 0, events: 0, finding: None };
    let (entries, unreadable) = entries(&records);
    let mut rest = &entries[..];
    while let Some(first) = rest.first() {
        let is_life = |entry: &Entry| matches!(entry.said, Said::Life(_));
        let next = rest.iter().skip(1).position(is_life).map_or(rest.len(), |at| at + 1);
        let (life, later) = rest.split_at(next);
        rest = later;
        let Said::Life(snapshot) = &first.said else {
            done.finding = Some(*found(first, Problem::NoLife));
            return done;
        };
        done.lives += 1;
        let ended = match &snapshot.table {
            TableBytes::Ivrs(_) => run::life::<amdvi::Subject>(&records, life),
            TableBytes::Dmar(_) | TableBytes::None => run::life::<vtd::Subject>(&records, life),
        };
        done.events += ended.events;
        if let Some(finding) = ended.finding {
            done.finding = Some(finding);
            return done;
        }
    }
    done.finding = unreadable;
    done
}

/// Reads all entries up to the first one that is unreadable, or a seal that does not fit the records before it.
fn entries(records: &[Record]) -> (Vec<Entry>, Option<Finding>) {
    let (mut entries, mut index, mut unsealed) = (Vec::new(), 0, 0);
    while index < records.len() {
        match trace::read(records, index) {
            Ok(Entry { said: Said::Seal(seal), .. }) => {
                if !fits(seal, records.get(unsealed..index).unwrap_or_default()) {
                    let problem = Problem::Changed(seal.records);
                    return (entries, Some(Finding { index, kind: Some(Kind::Seal), problem }));
                }
                index += 1;
                unsealed = index;
            }
            Ok(entry) => {
                index += entry.records;
                entries.push(entry);
            }
            Err(why) => {
                let code = records.get(index).map_or(0, |record| record[0] & 0xff);
                let kind = u8::try_from(code).ok().and_then(Kind::from_code);
                let finding = Finding { index, kind, problem: Problem::Unreadable(why) };
                return (entries, Some(finding));
            }
        }
    }
    let empty = Finding { index: 0, kind: None, problem: Problem::NoLife };
    let finding = entries.is_empty().then_some(empty);
    (entries, finding)
}

/// Whether the last of the records are the sealed ones. A server that died left those before them without a seal.
fn fits(seal: Seal, unsealed: &[Record]) -> bool {
    let sealed = usize::try_from(seal.records).ok();
    let first = sealed.and_then(|sealed| unsealed.len().checked_sub(sealed));
    first.and_then(|first| unsealed.get(first..)).is_some_and(|records| Seal::of(records) == seal)
}
