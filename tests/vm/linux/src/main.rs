//! First process of the Linux guest.

mod calls;
#[expect(dead_code, reason = "xtask, which compiles the file too, uses the titles")]
mod checks;
mod edu;
mod greeting;
mod groups;
mod kept;
mod machine;
mod map;
mod memory;
mod pci;
mod process;
mod report;
mod role;
mod server;
mod setup;
mod shell;
mod story;
mod tour;
mod unit;

use std::process::ExitCode;

use checks::Scenario;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((role, _)) if role == "puppet" => {
            role::puppet();
            ExitCode::SUCCESS
        }
        Some((role, [seed, devices @ ..])) if role == "churn" => {
            match process::number(seed).and_then(|seed| story::churn(seed, devices)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    println!("{error:#}");
                    ExitCode::FAILURE
                }
            }
        }
        Some((role, [device])) if role == "worker" => match story::work(device) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        // Options that the kernel did not recognise on its command line also arrive here.
        _ => first_process(),
    }
}

fn first_process() -> ExitCode {
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
    ExitCode::FAILURE
}

fn run(scenario: Scenario) {
    match setup::huge_pages() {
        Ok(pages) => report::log(&format!("{pages} huge pages")),
        Err(error) => report::log(&format!("{error:#}")),
    }
    match scenario {
        Scenario::Machine => machine::run(),
        Scenario::Intel | Scenario::Amd => story::run_with_unit(),
        Scenario::Kills => match setup::number("iommud.kills") {
            Ok(kills) => story::run_kills(kills),
            Err(error) => report::log(&format!("{error:#}")),
        },
        Scenario::Groups => groups::run(),
        Scenario::None => story::run_without_unit(),
        Scenario::Table => story::run_with_damaged_table(),
        Scenario::Nvme => story::run_nvme(),
        Scenario::HotPlug => story::run_hot_plug(),
        Scenario::Shell => shell::prompt(),
    }
}
