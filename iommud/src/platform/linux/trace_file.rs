//! The trace of the server in a file, or in the handover page alone.
//!
//! Records go into a ring in the handover page, which outlives the server. The loop writes them to the file when half
//! of the ring is full, and once a second. What a server that died had not written, the next one writes before its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::addr::PhysRange;
use crate::platform::machine_facts::MachineFacts;
use crate::server::TableState;
use crate::trace::{RECORD_BYTES, Record, Ring, Snapshot, TableBytes, take_sealed};

/// Longest time that records wait for others, while there are any.
const OLDEST: Duration = Duration::from_secs(1);

/// Most records of the ring of a server without a file that the next one writes out: 64 KiB with the seal.
const LAST: usize = (64 << 10) / RECORD_BYTES - 1;

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform) enum TraceTo {
    /// To the ring only. The next server writes the last 64 KiB out if this one dies.
    Ring,
    /// To this file.
    File(PathBuf),
}

impl From<std::ffi::OsString> for TraceTo {
    fn from(word: std::ffi::OsString) -> Self {
        if word == "ring" { Self::Ring } else { Self::File(word.into()) }
    }
}

/// The writer of a trace.
#[derive(Debug)]
pub struct TraceFile {
    file: Option<File>,
    last: Instant,
}

impl TraceFile {
    /// Opens the trace over `memory`, and writes what a dead server left there: into the file, or without one into
    /// `left`. A file is continued: each server adds a life.
    ///
    /// # Errors
    /// A file cannot be opened or written.
    pub(in crate::platform) fn open(
        to: &TraceTo,
        memory: &'static mut [Record],
        left: &Path,
    ) -> io::Result<(Ring, Self)> {
        let mut ring = Ring::over(memory).ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = match to {
            TraceTo::Ring => None,
            TraceTo::File(path) => Some(continued(path)?),
        };
        match &mut file {
            Some(file) => write(&mut ring, file)?,
            None if ring.waiting() > 0 => write_last(&mut ring, left)?,
            None => {}
        }
        ring.clear();
        Ok((ring, Self { file, last: Instant::now() }))
    }

    /// Writes records that wait: those of half a ring, or older ones.
    pub(super) fn write_due(&mut self, ring: &mut Ring) {
        if ring.is_half_full() || ring.waiting() > 0 && self.last.elapsed() >= OLDEST {
            self.write_all(ring);
        }
    }

    /// Writes all records that wait. A file that cannot be written is given up.
    pub(super) fn write_all(&mut self, ring: &mut Ring) {
        let Some(file) = &mut self.file else { return };
        self.last = Instant::now();
        if let Err(error) = write(ring, file) {
            log::error!("the trace ends here, incomplete: {error}");
            self.file = None;
        }
    }

    /// Writes the last records of a server that ends as it should: the next one finds none.
    pub(super) fn finish(&mut self, ring: &mut Ring) {
        self.write_all(ring);
        ring.take(|_| ());
    }
}

/// Opens a trace to be continued. Part of a record, which a dead server left, is cut off. A pipe that nobody reads does
/// not keep the server waiting: it is an error.
fn continued(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(path)?;
    let length = file.metadata()?.len();
    let whole = length - length % 64;
    if whole < length {
        file.set_len(whole)?;
    }
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

fn write(ring: &mut Ring, file: &mut File) -> io::Result<()> {
    file.write_all(&take_sealed(ring, usize::MAX))
}

/// Writes the last 64 KiB of records that a dead server left.
fn write_last(ring: &mut Ring, left: &Path) -> io::Result<()> {
    let last = take_sealed(ring, LAST);
    std::fs::write(left, &last)?;
    let records = last.len() / RECORD_BYTES - 1;
    log::warn!("{}: the last {records} records of a server that died", left.display());
    Ok(())
}

/// The machine as the trace begins with it. The firmware's table is read again.
pub(super) fn snapshot(
    facts: &MachineFacts,
    policy: String,
    own: &[PhysRange],
    read: impl Fn(&str) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<Snapshot> {
    let bytes = |signature| read(signature).map(Option::unwrap_or_default);
    let table = match facts.table {
        TableState::Parsed("DMAR") => TableBytes::Dmar(bytes("DMAR")?),
        TableState::Parsed(_) => TableBytes::Ivrs(bytes("IVRS")?),
        _ => TableBytes::None,
    };
    Ok(Snapshot { policy, table, ram: facts.ram.clone(), own: own.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Fact, records};

    fn note(ring: &mut Ring, numbers: impl IntoIterator<Item = u64>) {
        numbers.into_iter().for_each(|capacity| Fact::Pool(capacity, 0).write(ring));
    }

    /// The first argument of each record: of a seal, the number of records before it.
    fn numbers(path: &Path) -> Vec<u64> {
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() % 64, 0);
        records(&bytes).iter().map(|record| record[2]).collect()
    }

    /// The memory that a server leaves which dies with a ring of `records`, after it recorded these numbers.
    fn left_after(records: usize, noted: impl IntoIterator<Item = u64>) -> &'static mut [Record] {
        let mut ring = Ring::over(vec![[0; 8]; records].leak()).unwrap();
        note(&mut ring, noted);
        ring.into_memory().leak()
    }

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("iommud-trace-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn a_file_has_every_life_and_what_the_dead_had_not_written() {
        let (file, left) = (path("file"), path("unused"));
        let to = TraceTo::from(file.clone().into_os_string());
        let fresh = vec![[0; 8]; 17].leak();
        let (mut ring, mut trace) = TraceFile::open(&to, fresh, &left).unwrap();
        note(&mut ring, 1..8);
        trace.write_due(&mut ring);
        assert!(numbers(&file).is_empty(), "less than half, and young");
        note(&mut ring, 8..9);
        trace.write_due(&mut ring);
        assert_eq!(numbers(&file), [1, 2, 3, 4, 5, 6, 7, 8, 8]);
        // A server died in the middle of a record.
        OpenOptions::new().append(true).open(&file).unwrap().write_all(&[7; 40]).unwrap();
        let (mut ring, mut trace) = TraceFile::open(&to, left_after(17, 9..11), &left).unwrap();
        assert_eq!(numbers(&file), [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 2]);
        note(&mut ring, [20]);
        trace.finish(&mut ring);
        assert!(numbers(&file).ends_with(&[20, 1]) && ring.waiting() == 0);
        std::fs::remove_file(&file).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn what_cannot_be_continued_is_an_error_at_once() {
        let (pipe, left) = (path("pipe"), path("unused-too"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for to in [pipe.clone(), std::env::temp_dir(), left.join("none")] {
            let to = TraceTo::File(to);
            assert!(TraceFile::open(&to, vec![[0; 8]; 17].leak(), &left).is_err(), "{to:?}");
        }
        std::fs::remove_file(&pipe).unwrap();
    }

    #[test]
    fn without_a_file_the_last_64_kib_of_a_dead_server_are_written() {
        let left = path("left");
        let (ring, mut trace) =
            TraceFile::open(&TraceTo::Ring, left_after(4097, 1..3001), &left).unwrap();
        assert_eq!(numbers(&left), (1978..=3000).chain([1023]).collect::<Vec<u64>>());
        std::fs::remove_file(&left).unwrap();
        let mut ring = ring;
        note(&mut ring, [1]);
        trace.finish(&mut ring);
        let memory = ring.into_memory().leak();
        TraceFile::open(&TraceTo::Ring, memory, &left).unwrap();
        assert!(!left.exists(), "it ended as it should");
    }
}
