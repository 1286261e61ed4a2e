//! Answers and texts of the scheme.

use iommu_protocol::Refusal;
use iommud::hw::{BufferMemory, Unit};
use iommud::policy::ClientId;
use iommud::server::{Caller, Server};

use crate::explore::act::{Answer, Segments};

pub(super) fn refused<T>(result: Result<T, Refusal>, done: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => done(value),
        Err(refusal) => Answer::Refused(refusal),
    }
}

pub(super) fn done(result: Result<(), Refusal>) -> Answer {
    refused(result, |()| Answer::Done)
}

/// Returns a text of the scheme.
pub(super) fn text<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    path: &str,
) -> Option<String> {
    let caller = Caller { client: ClientId(u32::MAX), uid: 0 };
    let handle = server.open(caller, None, path, false).ok()?;
    let mut out = vec![0; 1 << 14];
    let length = server.read(handle, 0, &mut out).ok()?;
    server.close(handle);
    out.truncate(length);
    String::from_utf8(out).ok()
}

pub(super) fn names<U: Unit, B: BufferMemory>(
    server: &mut Server<U, B>,
    path: &str,
) -> Vec<String> {
    let caller = Caller { client: ClientId(u32::MAX), uid: 0 };
    let Ok(handle) = server.open(caller, None, path, false) else { return Vec::new() };
    let mut names = Vec::new();
    let _ = server.names(handle, 0, &mut |name| {
        names.push(name.to_string());
        true
    });
    server.close(handle);
    names
}

/// Counters that refusals may change.
const COUNTERS: [&str; 8] =
    ["opens ", "calls ", "refusals ", "plans ", "plans_undone ", "facts_", "handles ", "faults"];

pub(super) fn all_texts<U: Unit, B: BufferMemory>(server: &mut Server<U, B>) -> String {
    let mut all = text(server, "status").unwrap_or_default();
    for folder in ["groups", "devices"] {
        for name in names(server, folder) {
            all.push_str(&text(server, &format!("{folder}/{name}")).unwrap_or_default());
        }
    }
    for line in text(server, "metrics").unwrap_or_default().lines() {
        if !COUNTERS.iter().any(|counter| line.starts_with(counter)) {
            all.push_str(line);
            all.push('\n');
        }
    }
    all
}

/// Returns [`all_texts`] without the numbers of groups, which depend on the order of their creation.
pub(super) fn nameless_texts<U: Unit, B: BufferMemory>(server: &mut Server<U, B>) -> String {
    let number = |line: &&str| !line.starts_with("group: ");
    let mut lines: Vec<String> =
        all_texts(server).lines().filter(number).map(str::to_string).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Returns the number behind a word at the start of a line.
pub(super) fn number(text: &str, word: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
}

/// Bytes of these segments together.
pub(super) fn size(memory: &Segments) -> u64 {
    memory.iter().map(|(_, length)| length).sum()
}
