//! Report lines to the host of the guest, over the second serial port.
//!
//! ```text
//! @@ok NUMBER | detail      a check passed
//! @@fail NUMBER | detail    a check failed
//! @@unchecked text          this machine cannot show it: neither passed nor failed
//! @@log text                progress
//! @@data text               a line for a file of the host
//! @@plug edu|rng            asks the host to plug a device in behind the hot-plug port
//! @@unplug                  asks the host to pull the device out
//! @@end                     the last line: every check was tried
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

static PORT: Mutex<Option<File>> = Mutex::new(None);

/// Opens the port. Until then, and if opening fails, lines go to the console.
pub(crate) fn open() {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/ttyS1")
        && let Ok(mut port) = PORT.lock()
    {
        *port = Some(file);
    }
}

fn line(text: &str) {
    let text = format!("{}\n", text.replace(['\n', '\r'], " / "));
    let Ok(mut port) = PORT.lock() else { return };
    let sent = match port.as_mut() {
        Some(file) => file.write_all(text.as_bytes()),
        None => std::io::stdout().write_all(text.as_bytes()),
    };
    // The failure cannot be reported. The host counts the line as missing.
    drop(sent);
}

/// Reports progress.
pub(crate) fn log(text: &str) {
    line(&format!("@@log {text}"));
}

/// Reports data that the host keeps in a file.
pub(crate) fn data(text: &str) {
    line(&format!("@@data {text}"));
}

/// Reports a property that this machine cannot show. May be repeated.
pub(crate) fn unchecked(text: &str) {
    line(&format!("@@unchecked {text}"));
}

/// Requests an action of the host: `plug edu`, `plug rng` or `unplug`.
pub(crate) fn please(what: &str) {
    line(&format!("@@{what}"));
}

/// Ends the report.
pub(crate) fn end() {
    line("@@end");
}

/// Runs check `number` and reports its result: the detail that it returns, or its error.
pub(crate) fn check(number: usize, body: impl FnOnce() -> anyhow::Result<String>) -> bool {
    let start = Instant::now();
    let result = body();
    let ms = start.elapsed().as_millis();
    match &result {
        Ok(detail) => line(&format!("@@ok {number} | {detail} [{ms} ms]")),
        Err(error) => line(&format!("@@fail {number} | {error:#} [{ms} ms]")),
    }
    result.is_ok()
}
