//! The whole server over the VT-d backend over the software unit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod few_domains;
#[path = "../server/mod.rs"]
mod server;
mod unproved;

/// VT-d.
mod vendor {
    pub(crate) use iommud_tests::conformance::vtd::{Subject, matrix};
    use iommud_tests::vtd::Config;

    /// A few units that the server must treat differently.
    pub(crate) fn subjects() -> Vec<Subject> {
        let names = ["server", "qemu", "qemu, caching mode"];
        let mut all = matrix();
        all.retain(|subject| names.contains(&subject.name));
        // Without large pages the domain of `compat` alone would have a million entries.
        all.push(Subject {
            name: "early, 2 MiB",
            config: Config { large_2m: true, ..Config::early() },
        });
        all
    }

    /// Two different units of one machine.
    pub(crate) fn pair() -> [Subject; 2] {
        ["server", "qemu, caching mode"]
            .map(|name| matrix().into_iter().find(|subject| subject.name == name).unwrap())
    }

    /// The reason of a fault at an absent page (VT-d 4.1 chapter 7: 5h for writes, 6h for reads).
    pub(crate) const fn absent_page(write: bool) -> u16 {
        if write { 5 } else { 6 }
    }
}
