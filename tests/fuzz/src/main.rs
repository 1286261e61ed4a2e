//! The fuzzer. `FUZZ_TARGET` names one of [`TARGETS`]; the arguments are libFuzzer's own.
#![no_main]

use std::sync::OnceLock;

use iommud_tests::fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let Some(target) = TARGETS.iter().find(|(known, _)| *known == name) else {
            eprintln!("FUZZ_TARGET must be one of {:?}", TARGETS.map(|(known, _)| known));
            std::process::exit(2);
        };
        let _ = TARGET.set(*target);
    },
    |data: &[u8]| {
        if let Some((_, target)) = TARGET.get() {
            target(data);
        }
    }
);
