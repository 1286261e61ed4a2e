//! First process of the Linux guest.

#[expect(dead_code, reason = "xtask, which compiles the file too, uses the titles")]
mod checks;
mod edu;
mod machine;
mod map;
mod memory;
mod pci;
mod report;
mod setup;

use checks::Scenario;

fn main() {
    if let Err(error) = setup::mount_all() {
        report::log(&format!("set-up failed: {error:#}"));
    }
    report::open();
    match setup::scenario() {
        Ok(scenario) => {
            report::log(&format!("{} ({})", setup::kernel(), scenario.name()));
            run(scenario);
            report::end();
        }
        Err(error) => report::log(&format!("{error:#}")),
    }
    setup::power_off();
}

fn run(scenario: Scenario) {
    match setup::huge_pages() {
        Ok(pages) => report::log(&format!("{pages} huge pages")),
        Err(error) => report::log(&format!("{error:#}")),
    }
    match scenario {
        Scenario::Machine => machine::run(),
        Scenario::Intel | Scenario::None => report::log("not written yet"),
    }
}
