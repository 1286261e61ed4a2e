//! An interval as text.

use std::fmt::Write as _;
use std::time::Duration;

use super::Interval;
use crate::names;
use crate::output::{Look, Tone};
use crate::server::activity::{Activity, DeviceActivity, UnitActivity};
use crate::tree::owner_words;

/// The ranges of time, in words. They are those of Linux's `dmar_perf_latency`.
const RANGES: [&str; 7] = [
    "below 0.1 us",
    "0.1 to 1 us",
    "1 to 10 us",
    "10 to 100 us",
    "0.1 to 1 ms",
    "1 to 10 ms",
    "10 ms or more",
];

/// Columns of the longest bar.
const BAR: u64 = 40;

/// Most devices on a terminal.
const ON_TERMINAL: usize = 20;

/// The text of an interval. `processes` finds names of processes.
#[must_use]
pub fn text(interval: &Interval, look: Look, processes: &dyn Fn(u32) -> Option<String>) -> String {
    let Interval { elapsed, restarted, counts } = interval;
    let mut out = String::new();
    // Writing to a string cannot fail.
    if *restarted {
        let _ =
            writeln!(out, "{}", look.paint(Tone::Odd, "iommud was started anew: counted since"));
    }
    let _ = writeln!(out, "{}", look.paint(Tone::Strong, heading(counts, *elapsed)));
    for unit in &counts.units {
        unit_lines(unit, *elapsed, &mut out);
    }
    device_lines(counts, *elapsed, look, processes, &mut out);
    out
}

fn heading(counts: &Activity, elapsed: Option<Duration>) -> String {
    let each = |count| number(count, elapsed);
    let mut line = match elapsed {
        Some(elapsed) => format!("iommud, per second over {:.1} s: ", elapsed.as_secs_f64()),
        None => "iommud, since it started: ".to_owned(),
    };
    let (calls, refusals, faults) =
        (each(counts.calls), each(counts.refusals), each(counts.faults));
    let _ = write!(line, "{calls} calls, {refusals} refused, {faults} faults");
    if counts.stray_faults > 0 {
        let _ = write!(line, " ({} of no known device)", each(counts.stray_faults));
    }
    if counts.lost_faults > 0 {
        let _ = write!(line, ", {} faults lost in hardware", each(counts.lost_faults));
    }
    line
}

fn unit_lines(unit: &UnitActivity, elapsed: Option<Duration>, out: &mut String) {
    let UnitActivity { index, kind, state, .. } = unit;
    let (commands, waits) = (number(unit.commands, elapsed), number(unit.waits, elapsed));
    let _ = write!(out, "unit {index}, {kind} {state}: {commands} invalidations, {waits} waits");
    let timed = unit.times.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    if let Some(mean) = unit.nanoseconds.checked_div(timed) {
        let _ = write!(out, ", {} each that took time", time(mean));
    }
    if unit.unanswered > 0 {
        let _ = write!(out, ", {} NOT DONE", unit.unanswered);
    }
    let _ = match &unit.iotlb {
        Some(words) => writeln!(out, "; IOTLB: {words}"),
        None => writeln!(out),
    };
    if unit.waits == unit.unanswered {
        return;
    }
    let rows = || [("at once", unit.at_once)].into_iter().chain(RANGES.into_iter().zip(unit.times));
    let most = rows().map(|(_, count)| count).max().unwrap_or(0);
    for (words, count) in rows() {
        let row = format!("  {words:13} {count:>9} {}", bar(count, most));
        let _ = writeln!(out, "{}", row.trim_end());
    }
}

/// A bar as long as its share of the longest. One that is not 0 has a length.
fn bar(count: u64, most: u64) -> String {
    let length = u128::from(count) * u128::from(BAR) / u128::from(most.max(1));
    let length = usize::try_from(length).unwrap_or(0).max(usize::from(count > 0));
    "#".repeat(length)
}

fn device_lines(
    counts: &Activity,
    elapsed: Option<Duration>,
    look: Look,
    processes: &dyn Fn(u32) -> Option<String>,
    out: &mut String,
) {
    let most = if look.width.is_some() { ON_TERMINAL } else { usize::MAX };
    let names = ["maps", "unmaps", "mapped", "unmapped", "faults"];
    let heading = row("device", &names.map(str::to_owned), "owner", "name");
    let _ = writeln!(out, "{}", look.paint(Tone::Faint, heading));
    for device in counts.devices.iter().take(most) {
        let cells = [
            number(device.maps, elapsed),
            number(device.unmaps, elapsed),
            bytes(device.mapped, elapsed),
            bytes(device.unmapped, elapsed),
            number(device.faults, elapsed),
        ];
        let owner = device.owner.as_deref().unwrap_or("nobody");
        let owner = owner_words(owner, processes);
        let line = row(&names::address(device.address), &cells, &owner, &name(device));
        let _ = writeln!(out, "{line}");
    }
    let hidden = u64::try_from(counts.devices.len().saturating_sub(most)).unwrap_or(u64::MAX);
    match hidden.saturating_add(counts.not_listed) {
        0 => {}
        more => {
            let _ = writeln!(out, "{more} more devices");
        }
    }
}

fn row(device: &str, cells: &[String; 5], owner: &str, name: &str) -> String {
    let [maps, unmaps, mapped, unmapped, faults] = cells;
    format!(
        "{device:12} {maps:>9} {unmaps:>9} {mapped:>10} {unmapped:>10} {faults:>9}  {owner:20}  {name}"
    )
}

fn name(device: &DeviceActivity) -> String {
    let known = device.id.map(|(vendor, device)| names::device(vendor, device));
    let mut name = known.unwrap_or_else(|| "gone".to_owned());
    if device.silenced {
        name.push_str(", silenced");
    }
    name
}

/// A count, or its rate: with a decimal while it is small.
fn number(count: u64, elapsed: Option<Duration>) -> String {
    match elapsed.map(|elapsed| tenths(count, elapsed)) {
        None => count.to_string(),
        Some(tenths @ ..100) if count > 0 => decimal(tenths),
        Some(tenths) => whole(tenths),
    }
}

/// A number of bytes, or its rate, in the largest unit that it has one of.
fn bytes(count: u64, elapsed: Option<Duration>) -> String {
    let all = || u128::from(count) * 10;
    let mut value = elapsed.map_or_else(all, |elapsed| tenths(count, elapsed));
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 10 * 1024 {
            break;
        }
        (value, unit) = (value / 1024, next);
    }
    let words = if unit == "B" { whole(value) } else { decimal(value) };
    format!("{words} {unit}")
}

/// The rate in a second, in tenths; 0 without any time.
fn tenths(count: u64, elapsed: Duration) -> u128 {
    const TENTH: u128 = 10 * 1_000_000_000;
    let nanos = elapsed.as_nanos();
    (u128::from(count) * TENTH).saturating_add(nanos / 2).checked_div(nanos).unwrap_or(0)
}

fn decimal(tenths: u128) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn whole(tenths: u128) -> String {
    ((tenths + 5) / 10).to_string()
}

/// A time in the largest unit that it has one of.
fn time(nanoseconds: u64) -> String {
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    match units.into_iter().find(|(unit, _)| nanoseconds >= *unit) {
        Some((unit, name)) => {
            format!("{}.{} {name}", nanoseconds / unit, nanoseconds % unit * 10 / unit)
        }
        None => format!("{nanoseconds} ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LATER, interval};
    use super::*;

    fn processes(process: u32) -> Option<String> {
        (process == 12).then(|| "nvmed".to_owned())
    }

    #[test]
    fn an_interval_is_laid_out_in_columns() {
        let expected = "\
iommud, per second over 0.5 s: 1200 calls, 2.0 refused, 32 faults, 8.0 faults lost in hardware
unit 0, vt-d enabled: 200 invalidations, 100 waits, 555.5 us each that took time
  at once              30 ########################################
  below 0.1 us          0
  0.1 to 1 us          10 #############
  1 to 10 us            5 ######
  10 to 100 us          0
  0.1 to 1 ms           0
  1 to 10 ms            3 ####
  10 ms or more         0
unit 1, vt-d failed: 0 invalidations, 0 waits
device            maps    unmaps     mapped   unmapped    faults  owner                 name
0000:01:00.0       600       598    2.3 MiB    2.3 MiB         0  process 12 (nvmed)    Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983
0000:00:04.0         0         0        0 B        0 B        32  nobody                Intel 82574L Gigabit Network Connection, silenced
0000:03:00.0       2.0         0    4.0 MiB        0 B         0  client 7              device fefe:0001
0000:02:00.0         0         0        0 B        0 B         0  nobody                gone
2 more devices
";
        assert_eq!(text(&interval(), Look::default(), &processes), expected);
    }

    #[test]
    fn the_whole_time_is_laid_out_in_counts() {
        let whole = Interval::whole(&Activity::parse(LATER));
        let text = text(&whole, Look::default(), &processes);
        let first = "\
iommud, since it started: 640 calls, 2 refused, 19 faults (1 of no known device), 4 faults lost in hardware
unit 0, vt-d enabled: 112 invalidations, 60 waits, 652.1 us each that took time, 1 NOT DONE
";
        assert!(text.starts_with(first), "{text}");
        let row = "\n0000:01:00.0       320       314    1.2 MiB    1.2 MiB         0  process 12 (nvmed) ";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn a_new_server_is_said() {
        let mut seen = interval();
        seen.restarted = true;
        let text = text(&seen, Look::default(), &processes);
        assert!(text.starts_with("iommud was started anew: counted since\niommud, per "), "{text}");
    }

    #[test]
    fn a_terminal_shows_those_that_do_most() {
        let mut seen = interval();
        let one = seen.counts.devices[0].clone();
        seen.counts.devices = vec![one; 23];
        let look = Look { colour: false, width: Some(80) };
        let text = text(&seen, look, &processes);
        assert_eq!(text.matches("0000:01:00.0").count(), 20);
        assert!(text.ends_with("\n5 more devices\n"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        let second = Some(Duration::from_secs(1));
        let words = [0, 9, 10, 12_345].map(|count| number(count, second));
        assert_eq!(words, ["0", "9.0", "10", "12345"]);
        assert_eq!(number(1, Some(Duration::from_secs(1000))), "0.0");
        assert_eq!((number(9, None), number(5, Some(Duration::ZERO))), ("9".into(), "0.0".into()));
        let words = [0, 1023, 1024, 1536, 5 << 20, u64::MAX].map(|count| bytes(count, None));
        assert_eq!(words, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "15.9 EiB"]);
        let words = [0, 999, 1_000, 1_550, 999_999, 20_000_000, 3_100_000_000].map(time);
        assert_eq!(words, ["0 ns", "999 ns", "1.0 us", "1.5 us", "999.9 us", "20.0 ms", "3.1 s"]);
        assert_eq!(
            [bar(0, 0), bar(1, u64::MAX), bar(5, 10)],
            ["".into(), "#".into(), "#".repeat(20)]
        );
        assert_eq!(bar(u64::MAX, u64::MAX).len(), 40);
    }
}
