//! The sanitizer, over the whole server and a software unit of either vendor: drivers with one bug each, and the exact
//! report; and drivers without one, of which nothing is reported.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod innocent;
mod planted;

use std::sync::{Arc, Mutex};

use iommu_client::{BugReport, BusMasterPermission, Device};
use iommud_tests::model::Model;

struct Lab {
    device: Device,
    reports: Arc<Mutex<Vec<BugReport>>>,
    _permission: BusMasterPermission,
    model: Model,
}

fn lab(model: Model) -> Lab {
    let (device, permission) = model.attached();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let log = reports.clone();
    device.sanitize_with(move |report| log.lock().unwrap().push(*report));
    Lab { device, reports, _permission: permission, model }
}

impl Lab {
    /// The reports since the last call. A place is given as `<line>`; all are in the file of the planted bugs.
    fn reports(&self) -> Vec<String> {
        let reports = std::mem::take(&mut *self.reports.lock().unwrap());
        reports.iter().map(|report| lines_only(&report.to_string())).collect()
    }

    fn writes(&self, iova: u64, bytes: &[u8]) -> bool {
        self.model.device_write(self.device.address(), iova, bytes).is_ok()
    }

    fn reads(&self, iova: u64) -> bool {
        self.model.device_read(self.device.address(), iova, 1).is_ok()
    }

    /// Reads all faults, as a driver does in its loop.
    fn faults(&self) -> usize {
        self.device.faults().map(Result::unwrap).count()
    }
}

/// Replaces `file:line:column` by `<line>`.
fn lines_only(text: &str) -> String {
    let mut parts = text.split("drivers/client/tests/sanitizer/planted.rs:");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (line, rest) = part.split_once(':').unwrap();
        out.push_str(&format!("<{line}>"));
        out.push_str(rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}
