//! An interval as JSON.

use serde_json::{Value, json};

use super::Interval;
use crate::names;
use crate::server::activity::{DeviceActivity, UnitActivity};

/// The interval as JSON. `processes` finds names of processes.
#[must_use]
pub fn json(interval: &Interval, processes: &dyn Fn(u32) -> Option<String>) -> Value {
    let Interval { elapsed, restarted, counts } = interval;
    let devices = counts.devices.iter().map(|device| device_json(device, processes));
    json!({
        "seconds": elapsed.map(|elapsed| elapsed.as_secs_f64()),
        "restarted": restarted,
        "calls": counts.calls,
        "refusals": counts.refusals,
        "faults": counts.faults,
        "faults_of_unknown_devices": counts.stray_faults,
        "faults_lost": counts.lost_faults,
        "units": counts.units.iter().map(unit_json).collect::<Vec<_>>(),
        "devices": devices.collect::<Vec<_>>(),
        "devices_not_listed": counts.not_listed,
    })
}

fn unit_json(unit: &UnitActivity) -> Value {
    json!({
        "unit": unit.index,
        "kind": unit.kind,
        "state": unit.state,
        "invalidations": unit.commands,
        "waits": unit.waits,
        "waits_not_done": unit.unanswered,
        "waits_at_once": unit.at_once,
        "waits_by_time": unit.times,
        "nanoseconds": unit.nanoseconds,
        "iotlb": unit.iotlb,
    })
}

fn device_json(device: &DeviceActivity, processes: &dyn Fn(u32) -> Option<String>) -> Value {
    let owner = device.owner.as_deref();
    let process = owner.and_then(|owner| owner.strip_prefix("process ")?.parse::<u32>().ok());
    json!({
        "address": names::address(device.address),
        "name": device.id.map(|(vendor, device)| names::device(vendor, device)),
        "owner": owner,
        "process": process,
        "process_name": process.and_then(processes),
        "silenced": device.silenced,
        "maps": device.maps,
        "unmaps": device.unmaps,
        "mapped_bytes": device.mapped,
        "unmapped_bytes": device.unmapped,
        "faults": device.faults,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::interval;
    use super::*;

    #[test]
    fn all_counts_are_there() {
        let json = json(&interval(), &|process| (process == 12).then(|| "nvmed".to_owned()));
        let expected = r#"{"calls":600,"devices":[{"address":"0000:01:00.0","faults":0,"mapped_bytes":1228800,"maps":300,"#;
        assert!(json.to_string().starts_with(expected), "{json}");
        let device = &json["devices"][0];
        assert_eq!((&device["process"], &device["process_name"]), (&12.into(), &"nvmed".into()));
        assert_eq!(json["devices"][3]["name"], Value::Null);
        assert_eq!((&json["seconds"], &json["restarted"]), (&0.5.into(), &false.into()));
        assert_eq!(json["faults_lost"], 4);
        let unit = &json["units"][0];
        let times = Value::from(vec![0, 10, 5, 0, 0, 3, 0]);
        assert_eq!((&unit["waits_by_time"], &unit["waits_at_once"]), (&times, &30.into()));
        assert_eq!((&unit["invalidations"], &unit["iotlb"]), (&100.into(), &Value::Null));
    }
}
