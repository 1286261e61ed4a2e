//! The register-level checks.

mod addresses;
mod amd;
mod basics;
mod counts;
mod devices;
mod entries;
mod exact;
mod facts;
mod faults;
mod lab;
mod pages;
mod server;
mod storm;
mod takeover;
mod texts;
mod trace;

use alloc::string::String;

use crate::checks::{AMD_CHECKS, CHECKS};
use crate::firmware::StartInfo;
use crate::{cpu, println};

use lab::Lab;

/// The result of a check: a detail, or the reason for its failure.
type Outcome = Result<String, String>;

/// Fails the check with a formatted reason unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($argument:tt)*) => {
        if !$condition {
            return Err(format!($($argument)*));
        }
    };
}
use ensure;

struct Tally {
    number: usize,
    passed: usize,
}

impl Tally {
    fn lab(&mut self, lab: &mut Lab, body: impl FnOnce(&mut Lab) -> Outcome) {
        let passed = self.passed;
        self.check(|| body(lab));
        if self.passed == passed {
            // Restarts the unit, so that the state left by a failed check does not fail later ones.
            match lab.restart() {
                Ok(()) => println!("@@log the unit was brought up again"),
                Err(reason) => println!("@@log bringing the unit up again: {reason}"),
            }
        }
    }

    fn check(&mut self, body: impl FnOnce() -> Outcome) {
        self.number += 1;
        let start = cpu::instructions();
        let outcome = body();
        let spent = cpu::instructions() - start;
        match outcome {
            Ok(detail) => {
                self.passed += 1;
                println!("@@ok {} | {detail} [{spent} instructions]", self.number);
            }
            Err(reason) => println!("@@fail {} | {reason}", self.number),
        }
    }
}

/// Runs every check. Returns the number of failed ones.
pub fn run(info: &StartInfo) -> usize {
    let mut tally = Tally { number: 0, passed: 0 };
    let t = &mut tally;
    t.check(basics::processor);
    t.check(basics::copy);
    t.check(basics::interrupt);
    if info.command_line.contains("iommu=amd") {
        amd::run(info, t);
        return AMD_CHECKS.len() - tally.passed;
    }
    let mut base = 0;
    t.check(|| basics::table(info, &mut base));
    let caching = info.command_line.contains("caching-mode=on");
    let mut lab = match Lab::new(base, caching) {
        Ok(lab) => lab,
        Err(reason) => {
            println!("@@fail 5 | {reason}");
            return CHECKS.len() - tally.passed;
        }
    };
    let l = &mut lab;
    t.lab(l, entries::brought_up);
    t.lab(l, entries::enabled);
    t.lab(l, entries::blocked);
    t.lab(l, entries::mapped);
    t.lab(l, faults::exact);
    t.lab(l, faults::silenced);
    t.lab(l, faults::interrupt);
    t.lab(l, devices::interrupts);
    t.lab(l, pages::stale);
    t.lab(l, pages::stale_range);
    t.lab(l, entries::stale);
    t.lab(l, entries::moves);
    t.lab(l, entries::two_domains);
    t.lab(l, pages::superpage);
    t.lab(l, pages::freed);
    t.lab(l, devices::behind_port);
    t.lab(l, devices::nvme);
    t.lab(l, takeover::own);
    t.lab(l, takeover::stranger);
    t.check(|| takeover::completion(base));
    t.check(addresses::worst);
    t.check(|| counts::accesses(base, caching));
    match server::Served::start(info, base) {
        Ok(mut served) => {
            t.check(|| server::confines(&mut served));
            t.check(|| server::costs(&mut served));
            t.check(|| exact::counts(&mut served, caching));
            t.check(|| texts::costs(&mut served));
            t.check(|| texts::activity(&mut served));
            t.check(|| storm::silenced(&mut served));
            t.check(|| server::ends(&mut served));
        }
        Err(reason) => println!("@@log the server does not start: {reason}"),
    }
    t.check(|| trace::costs(info, base));
    t.check(|| facts::costs(info, base));
    CHECKS.len() - tally.passed
}
