//! `xtask bench`: every target of performance that this machine can measure, in one table.
//!
//! The host's part is the program in `tests/bench`, with its peers in the same run. Instructions and register
//! accesses are counted in the bare guest, where they are the same in every run. The Linux guest times reads from a
//! disk, alternately translated and untranslated.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::options::{BareOptions, BenchOptions, DemoOptions, Story};
use crate::report::Report;
use crate::workspace::{cargo, root, target};
use crate::{bare, demo};

mod confined;

/// One line of the table.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct Line {
    row: u32,
    what: String,
    measured: String,
    target: String,
    peer: String,
    ratio: Option<f64>,
    /// `met`, `missed`, `not measured`, or empty for a line without a target.
    verdict: String,
}

/// Parts that run on the host, by their names in that program, and parts that run in guests.
const HOST: [&str; 10] =
    ["core", "range", "iova", "pool", "calls", "sockets", "alone", "probe", "memory", "storm"];
const GUESTS: [&str; 2] = ["bare", "nvme"];

/// Measures and prints the table. Returns whether everything could be run. A missed target does not fail the command.
///
/// # Errors
/// A part is unknown, or the program on the host could not be built.
pub(crate) fn run(options: &BenchOptions) -> Result<bool> {
    if let Some(part) =
        options.rows.iter().find(|row| !HOST.iter().chain(&GUESTS).any(|p| p == row))
    {
        bail!("{part} is no part: {}, {}", HOST.join(", "), GUESTS.join(", "));
    }
    let wanted =
        |part: &&str| options.rows.is_empty() || options.rows.iter().any(|row| row == part);
    let parts: Vec<&str> = HOST.into_iter().filter(wanted).collect();
    let mut lines = if parts.is_empty() { Vec::new() } else { host(&parts)? };
    let mut complete = true;
    for part in GUESTS.iter().filter(|part| wanted(part)) {
        let started = Instant::now();
        let measured = match *part {
            "bare" => {
                bare::measured(BareOptions::default()).map(|(guest, ok)| (counted(&guest), ok))
            }
            _ => nvme(options.whole),
        };
        let (more, ok) = measured.unwrap_or_else(|error| (unmeasured(part, &error), false));
        lines.extend(more);
        complete &= ok;
        eprintln!("measured: {part}, in {:.0} s", started.elapsed().as_secs_f32());
    }
    lines.sort_by_key(|line| line.row);
    print!("{}", table(&lines));
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&lines)?;
        std::fs::write(file, text + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(complete)
}

/// The lines for a guest that could not be built or started.
fn unmeasured(part: &str, error: &anyhow::Error) -> Vec<Line> {
    let why = format!("{error:#}");
    let mut lines = if part == "bare" { counted(&Report::new(&[])) } else { told(&[]) };
    for line in &mut lines {
        line.measured = format!("not measured: {why}");
    }
    lines
}

/// Runs the story of the NVMe driver, which times reads.
fn nvme(whole_table: bool) -> Result<(Vec<Line>, bool)> {
    let story = Story::Nvme;
    let guest =
        demo::tell(&DemoOptions { story, whole_table, measured: true, ..DemoOptions::default() })?;
    Ok((told(guest.logs()), guest.counts().1 == 0))
}

/// The lines for the guest with the NVMe driver.
fn told(logs: &[String]) -> Vec<Line> {
    let mut lines = vec![calls(logs)];
    lines.extend(reads(logs));
    lines.extend(confined::lines(logs));
    lines
}

/// Parses the guest's log line about calls: `map and unmap: N ns against M of two empty calls, ratio R (...)`.
fn calls(logs: &[String]) -> Line {
    let what = "end to end in QEMU: processes, library, socket, iommud, VT-d";
    let target = "<= 1.1x";
    let found = logs.iter().find_map(|log| {
        let (pair, rest) = log.strip_prefix("map and unmap: ")?.split_once(" ns against ")?;
        let (calls, rest) = rest.split_once(" of two empty calls, ratio ")?;
        Some((pair, calls, rest.split_whitespace().next()?.parse::<f64>().ok()?))
    });
    let Some((pair, calls, ratio)) = found else {
        return not_measured(7, what, target, "the guest did not tell");
    };
    Line {
        row: 7,
        what: what.into(),
        measured: format!("{pair} ns"),
        target: target.into(),
        peer: format!("two empty calls {calls} ns"),
        ratio: Some(ratio),
        verdict: if ratio <= 1.1 { "met" } else { "missed" }.into(),
    }
}

/// Parses the guest's log lines about reads: `KIND: N against M a second, ratio R (...)`.
fn reads(logs: &[String]) -> Vec<Line> {
    let told = |kind: &str| {
        let rest = logs.iter().find_map(|log| log.strip_prefix(kind)?.strip_prefix(": "))?;
        let (ours, rest) = rest.split_once(" against ")?;
        let (theirs, rest) = rest.split_once(" a second, ratio ")?;
        let ratio = rest.split_whitespace().next()?.parse::<f64>().ok()?;
        Some((ours.to_owned(), theirs.to_owned(), ratio))
    };
    let mut lines = Vec::new();
    for (kind, least) in [("4 KiB random reads", Some(0.97)), ("128 KiB sequential reads", None)] {
        let what = format!("NVMe {kind} in QEMU, translated");
        let target = if least.is_some() { ">= 0.97x untranslated" } else { "" };
        let Some((ours, theirs, ratio)) = told(kind) else {
            lines.push(not_measured(14, &what, target, "the guest did not tell"));
            continue;
        };
        let verdict = match least {
            Some(least) if ratio >= least => "met",
            Some(_) => "missed",
            None => "",
        };
        lines.push(Line {
            row: 14,
            what,
            measured: format!("{ours} a second"),
            target: target.into(),
            peer: format!("untranslated {theirs}"),
            ratio: Some(ratio),
            verdict: verdict.into(),
        });
    }
    lines
}

/// Runs the measurements on the host.
fn host(rows: &[&str]) -> Result<Vec<Line>> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--manifest-path"]);
    command.arg(root().join("tests/bench/Cargo.toml"));
    command.arg("--target-dir").arg(target().join("bench")).arg("--").args(rows);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the measurements ended with {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_string())).collect()
}

fn not_measured(row: u32, what: &str, target: &str, why: &str) -> Line {
    Line {
        row,
        what: what.into(),
        measured: format!("not measured: {why}"),
        target: target.into(),
        peer: String::new(),
        ratio: None,
        verdict: "not measured".into(),
    }
}

/// The lines counted in the bare guest.
fn counted(guest: &Report) -> Vec<Line> {
    let count = |name: &str| {
        let found = guest.measured().iter().find(|(known, _)| known == name);
        found.map(|(_, value)| *value)
    };
    let mut lines = Vec::new();
    let mut line = |row, what: &str, target: &str, limit: u64, unit: &str, value: Option<u64>| {
        lines.push(match value {
            Some(value) => Line {
                row,
                what: what.into(),
                measured: format!("{value} {unit}"),
                target: target.into(),
                peer: String::new(),
                ratio: None,
                verdict: if value <= limit { "met" } else { "missed" }.into(),
            },
            None => not_measured(row, what, target, "the guest did not count it"),
        });
    };
    let sum = |a: &str, b: &str| Some(count(a)? + count(b)?);
    line(
        4,
        "slowest of 20,000 pairs at 20,000 live (1 instruction = 1 ns)",
        "<= 1 us",
        1000,
        "instructions",
        count("instructions of the slowest of 20000 such pairs"),
    );
    let writes = count("register writes of the server to map and unmap 4 KiB");
    line(
        5,
        "register writes, one call to map, one to unmap 4 KiB",
        "1: one invalidation, one wait",
        1,
        "",
        writes,
    );
    let writes = count("register writes of the server to unmap 512 scattered pages");
    line(5, "the same, 512 scattered pages unmapped in one call", "1", 1, "", writes);
    let pair =
        sum("instructions of the server to map 4 KiB", "instructions of the server to unmap 4 KiB");
    line(
        7,
        "server, map + unmap 4 KiB, decoded to answered, by the path for one change",
        "<= 1800 instructions",
        1800,
        "instructions",
        pair,
    );
    let pages = sum(
        "instructions of the server to map 512 scattered pages",
        "instructions of the server to unmap 512 scattered pages",
    );
    let list = sum(
        "instructions of the server to map 512 pages as a list",
        "instructions of the server to unmap 512 pages of a list",
    );
    line(
        8,
        "server, 512 scattered pages in one call, map + unmap, a page: as a list, one range",
        "<= 40 instructions",
        40,
        "instructions",
        list.map(|all| all / 512),
    );
    line(
        8,
        "the same, each page at an address of its own",
        "<= 300 instructions",
        300,
        "instructions",
        pages.map(|all| all / 512),
    );
    let start = count("instructions to start the server");
    line(
        13,
        "server started: table read, units up, devices under policy (1 instruction = 1 ns)",
        "<= 50,000,000",
        50_000_000,
        "instructions",
        start,
    );
    lines
}

/// Formats the lines as a table.
fn table(lines: &[Line]) -> String {
    let ratio = |line: &Line| line.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x"));
    let cells = |line: &Line| {
        [
            line.row.to_string(),
            line.what.clone(),
            line.measured.clone(),
            line.target.clone(),
            line.peer.clone(),
            ratio(line),
            line.verdict.clone(),
        ]
    };
    let heads = ["#", "what", "measured", "target", "peer", "ratio", ""].map(String::from);
    let rows: Vec<_> = std::iter::once(heads).chain(lines.iter().map(cells)).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join(" | ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_counted_is_not_met() {
        let mut guest = Report::new(&[]);
        guest.take("@@count 400 instructions of the server to map 4 KiB");
        let lines = counted(&guest);
        assert!(lines.iter().all(|line| line.verdict == "not measured"), "{lines:?}");
        guest.take("@@count 1401 instructions of the server to unmap 4 KiB");
        let lines = counted(&guest);
        let pair = lines.iter().find(|line| line.row == 7).unwrap();
        assert_eq!(
            (pair.measured.as_str(), pair.verdict.as_str()),
            ("1801 instructions", "missed")
        );
    }

    #[test]
    fn reads_are_judged_by_the_ratio_of_their_pairs() {
        let log = "4 KiB random reads: 2417 against 2600 a second, ratio 0.969 (median of 9 pairs, 0.8 to 1.1)";
        let lines = reads(&[log.to_owned()]);
        assert_eq!((lines[0].ratio, lines[0].verdict.as_str()), (Some(0.969), "missed"));
        assert_eq!(lines[0].peer, "untranslated 2600");
        assert_eq!(lines[1].verdict, "not measured");
        assert_eq!(reads(&[log.replace("0.969", "0.970")])[0].verdict, "met");
    }

    #[test]
    fn calls_are_judged_by_the_ratio_of_their_pairs() {
        let log = "map and unmap: 90000 ns against 84000 of two empty calls, ratio 1.101 (median of 201 pairs, half of them 1.0 to 1.2)";
        let line = calls(&[log.to_owned()]);
        assert_eq!((line.ratio, line.verdict.as_str()), (Some(1.101), "missed"));
        assert_eq!(
            (line.measured.as_str(), line.peer.as_str()),
            ("90000 ns", "two empty calls 84000 ns")
        );
        assert_eq!(calls(&[log.replace("1.101", "1.100")]).verdict, "met");
        assert_eq!(calls(&[]).verdict, "not measured");
    }

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let text = table(&[not_measured(14, "NVMe", "x", "no driver")]);
        let mut lines = text.lines().map(|line| line.find(" | "));
        assert_eq!(lines.next(), lines.next());
    }
}
