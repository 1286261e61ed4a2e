//! The lines that a server logs.

use std::cell::RefCell;
use std::thread_local;

use log::{LevelFilter, Log, Metadata, Record};

thread_local! {
    /// The lines of this thread, while a test wants them.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Keeps lines, each for the thread that it comes from: tests run side by side.
struct Keeper;

impl Log for Keeper {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.push(format!("{} {}", record.level(), record.args()));
            }
        });
    }

    fn flush(&self) {}
}

/// The lines that are logged while `act` runs: level and text.
pub(super) fn logged(act: impl FnOnce()) -> Vec<String> {
    // An error only says that another test was first.
    let _ = log::set_logger(&Keeper);
    log::set_max_level(LevelFilter::Info);
    LINES.set(Some(Vec::new()));
    act();
    LINES.take().unwrap()
}
