//! Clients of a server that dies: real processes, killed at chosen points of a request.
//!
//! This is a program of its own, not a `#[test]`: it starts itself as keeper (the shipped loop), and the keeper starts
//! it as server (the shipped loop without units).
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

mod checks;
#[allow(dead_code, reason = "shared with tests of one process, which use all of it")]
#[path = "../linux_socket/harness.rs"]
mod harness;
mod library;
mod place;
mod processes;
#[allow(dead_code, reason = "shared with tests of one process, which use all of it")]
#[path = "../linux_socket/units.rs"]
mod units;

use std::panic::catch_unwind;
use std::process::ExitCode;

type Check = (&'static str, fn());

const CHECKS: [Check; 10] = [
    ("a_request_is_answered_once_wherever_its_server_dies", checks::every_point),
    ("a_waiting_claim_is_answered_once_wherever_its_server_dies", checks::every_point_of_a_claim),
    ("a_request_that_kills_two_servers_is_refused", checks::deadly),
    ("numbers_of_a_dead_servers_handles_stay_taken", checks::numbers),
    ("a_client_without_numbers_is_hung_up", checks::plain),
    ("a_client_that_dies_without_a_server_is_gone", checks::dies_in_between),
    ("a_client_may_come_while_there_is_no_server", checks::comes_in_between),
    ("another_program_goes_on_or_the_old_one_does", checks::replacement),
    ("the_library_sees_a_pause", library::pause),
    ("the_library_opens_its_device_again_over_the_same_connection", library::reopen),
];

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(processes::KEEPER) => return processes::keeper(),
        Some(processes::SERVER) => return processes::server(),
        // The keeper asks a program that is to replace the server.
        Some("--goes-on-from") => return ExitCode::SUCCESS,
        _ => {}
    }
    let asked: Vec<_> = CHECKS.into_iter().filter(|(name, _)| is_asked_for(name)).collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in &asked {
        let ok = catch_unwind(check).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        *(if ok { &mut passed } else { &mut failed }) += 1;
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let out = CHECKS.len() - asked.len();
    println!(
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {out} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the arguments of `cargo test` select a check, rather than ask for the list.
fn is_asked_for(check: &str) -> bool {
    let listing = std::env::args().any(|argument| argument == "--list");
    let mut names = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    !listing && (names.peek().is_none() || names.any(|name| check.contains(&name)))
}
