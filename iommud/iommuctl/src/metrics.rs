//! Counters of the server, as text, JSON and in the exposition format of Prometheus.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Names that only grow. All others are gauges.
const COUNTERS: [&str; 13] = [
    "opens",
    "calls",
    "refusals",
    "quarantine_returned_bytes",
    "units_recovered",
    "memory_added_bytes",
    "plans",
    "plans_undone",
    "facts_committed",
    "facts_missed",
    "faults",
    "fault_interrupts",
    "faults_lost_in_hardware",
];

/// What each number counts.
const HELP: [(&str, &str); 33] = [
    ("opens", "Handles that clients asked for"),
    ("calls", "Calls on sessions"),
    ("refusals", "Requests that were refused"),
    ("handles", "Open handles"),
    ("claims_waiting", "Claims that wait for their unit"),
    ("clients", "Clients with a session or buffer"),
    ("sessions", "Open sessions"),
    ("sessions_attached", "Sessions whose device is attached"),
    ("groups_claimed", "Groups that have an owner"),
    ("domains", "Domains, those of policy included"),
    ("buffers", "Buffers"),
    ("buffer_bytes", "Bytes of buffers"),
    ("buffer_bytes_pool", "Bytes that there are for buffers"),
    ("mappings", "Live mappings of clients"),
    ("iotlb_entries", "Entries that an IOTLB needs for the domains of clients"),
    ("quarantined_bytes", "Bytes that a unit may still reach"),
    ("quarantine_returned_bytes", "Bytes given back out of quarantine"),
    ("units_recovered", "Units brought up again"),
    ("table_frames", "Frames of page tables in use"),
    ("table_frames_reserved", "Frames that are kept for tables of units that are not up"),
    ("table_frames_free", "Frames of page tables that are free"),
    ("table_frames_promised", "Frames of page tables that are promised to domains"),
    ("table_frames_share", "Frames of page tables that one domain may have"),
    ("memory_added_bytes", "Bytes of memory that the server took after its start"),
    ("plans", "Plans that were run"),
    ("plans_undone", "Plans that were undone"),
    ("facts_committed", "Plans whose facts are kept for the next server"),
    ("facts_kept", "Sessions, slots and mappings that are kept for the next server"),
    ("facts_missed", "Sessions, slots and mappings that the store had no room for"),
    ("faults", "Faults that were recorded"),
    ("fault_interrupts", "Interrupts of units that had faults"),
    ("silenced", "Requesters whose faults are not reported"),
    ("faults_lost_in_hardware", "Faults that units had no room for"),
];

/// Reads `name value` lines.
#[must_use]
pub fn parse(text: &str) -> Vec<(String, u64)> {
    let read = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(read).collect()
}

/// The numbers as JSON.
#[must_use]
pub fn json(metrics: &[(String, u64)]) -> Value {
    let fields = metrics.iter().map(|(name, value)| (name.clone(), Value::from(*value)));
    let mut document = Map::new();
    document.insert("metrics".to_owned(), Value::Object(fields.collect()));
    Value::Object(document)
}

/// The numbers for Prometheus (text format 0.0.4).
#[must_use]
pub fn prometheus(metrics: &[(String, u64)]) -> String {
    let mut out = String::new();
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    for (name, value) in metrics.iter().filter(|(name, _)| plain(name)) {
        let counter = COUNTERS.contains(&name.as_str());
        let (kind, end) = if counter { ("counter", "_total") } else { ("gauge", "") };
        let full = format!("iommud_{name}{end}");
        // Writing to a string cannot fail.
        if let Some((_, help)) = HELP.iter().find(|(of, _)| of == name) {
            let _ = writeln!(out, "# HELP {full} {help}.");
        }
        let _ = writeln!(out, "# TYPE {full} {kind}\n{full} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_gets_names_types_and_help() {
        let metrics = parse("opens 5\nhandles 2\nnew_number 7\nBad{x} 1\n");
        let expected = "\
# HELP iommud_opens_total Handles that clients asked for.
# TYPE iommud_opens_total counter
iommud_opens_total 5
# HELP iommud_handles Open handles.
# TYPE iommud_handles gauge
iommud_handles 2
# TYPE iommud_new_number gauge
iommud_new_number 7
";
        assert_eq!(prometheus(&metrics), expected);
        assert_eq!(json(&metrics[..2]).to_string(), r#"{"metrics":{"handles":2,"opens":5}}"#);
    }

    #[test]
    fn every_counter_has_its_words() {
        for counter in COUNTERS {
            assert!(HELP.iter().any(|(name, _)| *name == counter), "{counter}");
        }
    }
}
