//! What happened between two readings of `activity`, as text and as JSON.

mod layout;
mod present;

use std::time::Duration;

use crate::server::activity::{Activity, DeviceActivity, UnitActivity};

pub use layout::text;
pub use present::json;

/// What happened in some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The time; `None` for all of it since the server started.
    pub elapsed: Option<Duration>,
    /// The server was started anew in it: this is what happened since.
    pub restarted: bool,
    /// Counts of what happened. The devices are in order of what they did.
    pub counts: Activity,
}

impl Interval {
    /// What happened since the server started.
    #[must_use]
    pub fn whole(now: &Activity) -> Self {
        Self { elapsed: None, restarted: false, counts: sorted(now.clone()) }
    }

    /// What happened between two readings. Counts that are smaller than before are a new server's: it began at 0.
    #[must_use]
    pub fn between(before: &Activity, now: &Activity, elapsed: Duration) -> Self {
        let restarted = now.opens < before.opens
            || now.calls < before.calls
            || now.refusals < before.refusals
            || now.faults < before.faults;
        let none = Activity::default();
        let counts = since(if restarted { &none } else { before }, now);
        Self { elapsed: Some(elapsed), restarted, counts: sorted(counts) }
    }
}

/// What was added to a count. One that is smaller than before began anew.
const fn added(now: u64, before: u64) -> u64 {
    match now.checked_sub(before) {
        Some(more) => more,
        None => now,
    }
}

fn since(before: &Activity, now: &Activity) -> Activity {
    let unit = |unit: &UnitActivity| {
        let known = before.units.iter().find(|known| known.index == unit.index);
        unit_since(known, unit)
    };
    // Both are in order of addresses, but a text may say anything.
    let known: std::collections::BTreeMap<_, _> =
        before.devices.iter().map(|device| (device.address, device)).collect();
    let device = |now: &DeviceActivity| match known.get(&now.address) {
        Some(before) => device_since(before, now),
        None => now.clone(),
    };
    Activity {
        opens: added(now.opens, before.opens),
        calls: added(now.calls, before.calls),
        refusals: added(now.refusals, before.refusals),
        faults: added(now.faults, before.faults),
        stray_faults: added(now.stray_faults, before.stray_faults),
        lost_faults: added(now.lost_faults, before.lost_faults),
        units: now.units.iter().map(unit).collect(),
        devices: now.devices.iter().map(device).collect(),
        not_listed: now.not_listed,
    }
}

/// A unit that was replaced has counts that began anew, all of them.
fn unit_since(before: Option<&UnitActivity>, now: &UnitActivity) -> UnitActivity {
    let Some(before) = before.filter(|before| before.commands <= now.commands) else {
        return now.clone();
    };
    let mut times = now.times;
    for (count, before) in times.iter_mut().zip(before.times) {
        *count = added(*count, before);
    }
    UnitActivity {
        commands: added(now.commands, before.commands),
        waits: added(now.waits, before.waits),
        unanswered: added(now.unanswered, before.unanswered),
        at_once: added(now.at_once, before.at_once),
        times,
        nanoseconds: added(now.nanoseconds, before.nanoseconds),
        ..now.clone()
    }
}

fn device_since(before: &DeviceActivity, now: &DeviceActivity) -> DeviceActivity {
    DeviceActivity {
        maps: added(now.maps, before.maps),
        unmaps: added(now.unmaps, before.unmaps),
        mapped: added(now.mapped, before.mapped),
        unmapped: added(now.unmapped, before.unmapped),
        faults: added(now.faults, before.faults),
        ..now.clone()
    }
}

/// Puts the devices that did most first; those that did the same are in order of addresses.
fn sorted(mut counts: Activity) -> Activity {
    let did = |device: &DeviceActivity| {
        device.maps.saturating_add(device.unmaps).saturating_add(device.faults)
    };
    counts.devices.sort_by_key(|device| (std::cmp::Reverse(did(device)), device.address));
    counts
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::server::activity::tests::TEXT;

    /// Half a second later.
    pub(crate) const LATER: &str = "\
opens: 10
calls: 640
refusals: 2
faults: 19
faults of unknown devices: 1
faults lost in hardware: 4
unit: 0, kind vt-d, state enabled, commands 112, waits 60, unanswered 1, at-once 34, times 1 12 5 0 0 5 0, nanoseconds 15000300, iotlb none
unit: 1, kind vt-d, state failed, commands 0, waits 0, unanswered 0, at-once 0, times 0 0 0 0 0 0 0, nanoseconds 0, iotlb none
device: 0000--00--04.0, id 8086:10d3, owner none, silenced true, maps 0, unmaps 0, mapped 0, unmapped 0, faults 18
device: 0000--01--00.0, id 144d:a808, owner process 12, silenced false, maps 320, unmaps 314, mapped 1310720, unmapped 1286144, faults 0
device: 0000--02--00.0, maps 1, unmaps 1, mapped 4096, unmapped 4096, faults 0
device: 0000--03--00.0, id fefe:0001, owner client 7, silenced false, maps 1, unmaps 0, mapped 2097152, unmapped 0, faults 0
devices not listed: 2
";

    pub(crate) const HALF: Duration = Duration::from_millis(500);

    pub(crate) fn interval() -> Interval {
        Interval::between(&Activity::parse(TEXT), &Activity::parse(LATER), HALF)
    }

    #[test]
    fn an_interval_is_what_was_added() {
        let Interval { elapsed, restarted, counts } = interval();
        assert_eq!((elapsed, restarted), (Some(HALF), false));
        assert_eq!((counts.opens, counts.calls, counts.refusals), (1, 600, 1));
        assert_eq!((counts.faults, counts.stray_faults, counts.lost_faults), (16, 0, 4));
        let unit = &counts.units[0];
        assert_eq!((unit.commands, unit.waits, unit.unanswered, unit.at_once), (100, 50, 0, 30));
        assert_eq!((unit.times, unit.nanoseconds), ([0, 10, 5, 0, 0, 3, 0], 10_000_000));
        let rows = counts.devices.iter().map(|device| {
            (device.address.to_string(), device.maps, device.unmaps, device.mapped, device.faults)
        });
        let expected = [
            ("0000--01--00.0".to_owned(), 300, 299, 1_228_800, 0),
            ("0000--00--04.0".to_owned(), 0, 0, 0, 16),
            ("0000--03--00.0".to_owned(), 1, 0, 2_097_152, 0),
            ("0000--02--00.0".to_owned(), 0, 0, 0, 0),
        ];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }

    /// Any count of the whole server that is smaller than before shows that it is a new one. Its counts began at 0.
    #[test]
    fn a_server_that_was_started_anew_is_counted_from_its_start() {
        let before = Activity::parse(LATER);
        let mut now = Activity::parse(TEXT);
        let seen = Interval::between(&before, &now, HALF);
        assert!(seen.restarted);
        assert_eq!((seen.counts.opens, seen.counts.calls), (9, 40));
        assert_eq!(seen.counts.devices[0].maps, 20, "all that the new one counted");
        now.opens = before.opens + 1;
        assert!(Interval::between(&before, &now, HALF).restarted, "by its calls");
        assert!(!Interval::between(&before, &before, HALF).restarted);
    }

    /// A unit that was brought up anew, or a device that came back, begins at 0 under the same server.
    #[test]
    fn a_count_that_began_anew_is_what_was_added() {
        let before = Activity::parse(LATER);
        let mut now = before.clone();
        now.units[0].commands = 5;
        now.units[0].waits = 4;
        now.devices[1].maps = 3;
        let seen = Interval::between(&before, &now, HALF);
        assert!(!seen.restarted);
        assert_eq!((seen.counts.units[0].commands, seen.counts.units[0].waits), (5, 4));
        assert_eq!(seen.counts.units[0].times, before.units[0].times);
        assert_eq!((seen.counts.devices[0].maps, seen.counts.devices[0].unmaps), (3, 0));
    }

    /// No two texts make it fail.
    #[test]
    fn any_two_readings_have_a_difference() {
        let most = TEXT.replace(['1', '2', '3'], "18446744073709551615");
        let texts = [TEXT, LATER, "", &most, "device: 0000--00--04.0\ndevice: 0000--00--04.0\n"];
        for (before, now) in
            texts.iter().flat_map(|before| texts.iter().map(move |now| (before, now)))
        {
            for elapsed in [Duration::ZERO, HALF, Duration::MAX] {
                let seen =
                    Interval::between(&Activity::parse(before), &Activity::parse(now), elapsed);
                let text = text(&seen, crate::output::Look::default(), &|_| None);
                assert!(text.starts_with("iommud") && json(&seen, &|_| None).is_object(), "{text}");
            }
        }
    }
}
