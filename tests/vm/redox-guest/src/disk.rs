//! Reads the disk through its driver, which does not use iommud.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::Seen;
use crate::pattern::{SECTOR, SECTORS, sector};

/// Time limit for a driver to appear.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sectors of one transfer.
const TRANSFER: u64 = 8;

/// Waits for a scheme whose name starts with `start` and contains `part`. Returns its name.
pub(crate) fn scheme(start: &str, part: &str) -> Result<String, String> {
    let started = Instant::now();
    let mut seen = String::new();
    while started.elapsed() < PATIENCE {
        seen.clear();
        let names = fs::read_dir("/scheme").map_err(|error| format!("/scheme: {error}"))?;
        for entry in names.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(start) && name.contains(part) {
                return Ok(name);
            }
            seen.push(' ');
            seen.push_str(&name);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!("no scheme {start}*{part} among{seen}"))
}

/// The disk.
pub(crate) struct Disk {
    file: File,
    path: String,
    /// State of the generator of pseudorandom positions.
    state: u64,
}

impl Disk {
    pub(crate) fn open() -> Result<Self, String> {
        let path = format!("/scheme/{}/1", scheme("disk.", "nvme")?);
        let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        Ok(Self { file, path, state: 0x1234_5678_9abc_def1 })
    }

    /// Reads one transfer from a pseudorandom position, and checks every byte.
    pub(crate) fn read(&mut self) -> Result<(), String> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let first = self.state % (SECTORS / TRANSFER) * TRANSFER;
        let mut bytes = vec![0; SECTOR * usize::try_from(TRANSFER).unwrap_or(1)];
        self.file
            .read_exact_at(&mut bytes, first * SECTOR as u64)
            .map_err(|error| format!("{} sector {first}: {error}", self.path))?;
        for (number, found) in (first..).zip(bytes.chunks(SECTOR)) {
            if found != sector(number) {
                return Err(format!("{} sector {number}: {:02x?}", self.path, found.get(..16)));
            }
        }
        Ok(())
    }
}

/// Makes some transfers and checks all of them.
pub(crate) fn check() -> Seen {
    let mut disk = Disk::open()?;
    for _ in 0..32 {
        disk.read()?;
    }
    Ok(format!("32 transfers of {TRANSFER} sectors from {}, every byte right", disk.path))
}

/// Reads until the file [`STOP`] exists, and writes the result to [`TALLY`].
pub(crate) fn load() -> Result<(), String> {
    let mut disk = Disk::open()?;
    let (mut before, mut after) = (0_u64, 0_u64);
    let mut longest = Duration::ZERO;
    let mut wrong = Vec::new();
    loop {
        let started = Instant::now();
        let result = disk.read();
        longest = longest.max(started.elapsed());
        // Bounded: a disk that only fails would fill the memory with messages.
        if let Err(error) = result
            && wrong.len() < 4
        {
            wrong.push(error);
        }
        // The scheme is announced once translation is on.
        if fs::metadata("/scheme/iommu/status").is_ok() {
            after += 1
        } else {
            before += 1
        }
        // Looked at once: between two looks the file may come, and the tally would lack what was counted last.
        let stop = fs::metadata(STOP).is_ok();
        if before % 50 == 1 || stop {
            let text = format!("{before} {after} {} {wrong:?}", longest.as_millis());
            fs::write(TALLY, text).map_err(|error| format!("{TALLY}: {error}"))?;
        }
        if stop {
            return fs::write(DONE, "").map_err(|error| format!("{DONE}: {error}"));
        }
    }
}

/// File with the reader's results.
pub(crate) const TALLY: &str = "/scheme/file/tally";
/// File whose creation ends the reader.
pub(crate) const STOP: &str = "/scheme/file/stop";
/// File created when the tally is complete.
pub(crate) const DONE: &str = "/scheme/file/done";

/// Lets the reader continue for a while, ends it, and judges its results.
pub(crate) fn judge() -> Seen {
    std::thread::sleep(Duration::from_secs(1));
    fs::write(STOP, "").map_err(|error| format!("{STOP}: {error}"))?;
    let started = Instant::now();
    while fs::metadata(DONE).is_err() {
        if started.elapsed() > PATIENCE {
            let last = fs::read_to_string(TALLY).unwrap_or_default();
            return Err(format!("the reader does not end; its last words: {last}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = fs::read_to_string(TALLY).map_err(|error| format!("{TALLY}: {error}"))?;
    let mut words = text.splitn(4, ' ');
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let (before, after, longest) = (number(), number(), number());
    let wrong = words.next().unwrap_or("?");
    let detail = format!(
        "{before} transfers before, {after} after; the longest took {longest} ms; wrong: {wrong}"
    );
    if before > 0 && after > 0 && wrong == "[]" { Ok(detail) } else { Err(detail) }
}
