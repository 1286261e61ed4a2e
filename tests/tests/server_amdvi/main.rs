//! The whole server over the AMD-Vi backend over the software unit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod alias;
#[path = "../server/mod.rs"]
mod server;

/// AMD-Vi.
mod vendor {
    pub(crate) use iommud_tests::conformance::amdvi::{Subject, matrix};

    /// A few units that the server must treat differently.
    pub(crate) fn subjects() -> Vec<Subject> {
        let names = ["server", "qemu", "early, not snooping, absent entries cached"];
        let mut all = matrix();
        all.retain(|subject| names.contains(&subject.name));
        all
    }

    /// Two different units of one machine.
    pub(crate) fn pair() -> [Subject; 2] {
        ["server", "server, not snooping"]
            .map(|name| matrix().into_iter().find(|subject| subject.name == name).unwrap())
    }

    /// The reason of a fault at an absent page: IO_PAGE_FAULT, code 2 (48882 section 2.5.2).
    pub(crate) const fn absent_page(_write: bool) -> u16 {
        2
    }
}
