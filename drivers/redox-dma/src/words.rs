//! What is said to people. Each line once, however many allocations meet its cause.

use std::fmt::Display;
use std::io::{Write, stderr};
use std::sync::Once;

/// The device is not confined, and the driver goes on.
pub(crate) fn not_confined(why: impl Display) {
    static SAID: Once = Once::new();
    say(&SAID, format_args!("this driver's device is not confined: {why}"));
}

/// The driver gets no memory, since its device cannot be confined.
pub(crate) fn refused(why: impl Display) {
    static SAID: Once = Once::new();
    say(&SAID, format_args!("no DMA memory for this driver: {why}"));
}

/// The server refused memory of this length.
pub(crate) fn no_memory(device: impl Display, length: usize, why: impl Display) {
    static SAID: Once = Once::new();
    say(&SAID, format_args!("{device} gets no {length} bytes: {why}"));
}

/// The server ended.
pub(crate) fn gone(device: impl Display) {
    static SAID: Once = Once::new();
    say(&SAID, format_args!("iommud ended, and {device} is cut off: start its driver again"));
}

fn say(once: &Once, words: impl Display) {
    // A driver whose output is closed goes on.
    once.call_once(|| drop(writeln!(stderr(), "redox-dma: {words}")));
}
