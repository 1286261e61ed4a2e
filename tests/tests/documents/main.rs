//! The documents: every link leads somewhere, and every command of `iommuctl` in them is one. Those that need no server
//! are run. (`xtask` tests its own commands, and what its guests print.)
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets the unexpected must stop"
)]

mod markdown;

use std::path::{Path, PathBuf};

use clap::Parser;
use iommuctl::cli::arguments::{Arguments, Command, Local};
use iommuctl::output::Look;
use markdown::{Document, anchors, documents, root};

/// What a link of a document leads to, if it is wrong.
fn dead(document: &Document, link: &str) -> Option<String> {
    if link.contains("://") {
        return Some(format!("{}: {link}: leads out of the repository", document.name));
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(f, a)| (f, Some(a)));
    let folder = Path::new(&document.name).parent().unwrap();
    let path = if file.is_empty() { PathBuf::from(&document.name) } else { folder.join(file) };
    let Ok(path) = root().join(path).canonicalize() else {
        return Some(format!("{}: {link}: no such file", document.name));
    };
    let known = anchor.is_none_or(|anchor| {
        anchors(&std::fs::read_to_string(path).unwrap()).iter().any(|known| known == anchor)
    });
    (!known).then(|| format!("{}: {link}: no such heading", document.name))
}

#[test]
fn every_link_leads_somewhere() {
    let documents = documents();
    let links: usize = documents.iter().map(|document| document.links.len()).sum();
    assert!(documents.len() >= 8 && links >= 25, "{} documents, {links} links", documents.len());
    let of = |document: &Document| {
        document.links.iter().filter_map(|link| dead(document, link)).collect::<Vec<_>>()
    };
    let dead: Vec<String> = documents.iter().flat_map(of).collect();
    assert!(dead.is_empty(), "\n{}\n", dead.join("\n"));
}

#[test]
fn a_dead_link_is_seen() {
    let document = Document::parse("drivers/README.md", "[a](../README.md) [b](no.md) [c](#no)");
    let dead: Vec<bool> =
        document.links.iter().map(|link| dead(&document, link).is_some()).collect();
    assert_eq!(dead, [false, true, true]);
}

/// Command lines of `iommuctl`, in blocks of code. Words in capital letters stand for something.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut out = Vec::new();
    for document in documents() {
        for line in &document.code {
            let line = line.trim_start_matches("iommud# ").trim_start_matches("# ");
            let line = line.replace("cargo run -q -p iommuctl -- ", "iommuctl ");
            let Some(rest) = line.strip_prefix("iommuctl ") else { continue };
            // The dependency law of CONTRIBUTING.
            if rest.starts_with("->") {
                continue;
            }
            // What it is for stands behind it, two spaces away.
            let rest = rest.split("  ").next().unwrap();
            let rest = rest.split(" | ").next().unwrap();
            out.push((document.name.clone(), rest.split(' ').map(str::to_owned).collect()));
        }
    }
    out
}

#[test]
fn every_command_of_iommuctl_is_one_and_those_without_a_server_run() {
    let commands = commands();
    assert!(commands.len() >= 18, "{}", commands.len());
    let mut ran = 0;
    for (document, words) in commands {
        let shown = words.join(" ");
        let here = |word: &String| match word.as_str() {
            "FILE" if words.contains(&"policy".into()) => "iommud/policy.toml".to_owned(),
            "/sys/firmware/acpi/tables/DMAR" => "tests/data/acpi/qemu/q35-intel.bin".to_owned(),
            word => word.to_owned(),
        };
        let place = |word: String| {
            let file = root().join(&word);
            if word.contains('/') { file.display().to_string() } else { word }
        };
        let words: Vec<String> = words.iter().map(here).map(place).collect();
        let line = std::iter::once("iommuctl".to_owned()).chain(words);
        let arguments = Arguments::try_parse_from(line)
            .unwrap_or_else(|error| panic!("{document}: iommuctl {shown}: {error}"));
        if matches!(arguments.command, Command::Local(Local::Decode(_))) {
            let mut out = Vec::new();
            iommuctl::cli::run(&arguments, Look::default(), &mut out)
                .unwrap_or_else(|error| panic!("{document}: iommuctl {shown}: {error}"));
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains("iommud would"), "{document}: iommuctl {shown}: {text}");
            ran += 1;
        }
    }
    assert!(ran >= 2, "{ran}");
}

/// Names with a folder are paths, from the root or from a folder that the text is about. Those of Redox's base are not
/// here.
#[test]
fn every_file_that_a_document_names_is_there() {
    let ends = [".rs", ".toml", ".svg", ".service", ".bin", ".hex"];
    let folders = ["", "iommud/", "iommud/src/", "iommud/src/policy/", "iommud/src/engine/"];
    let mut missing = Vec::new();
    let mut found = 0;
    for document in documents() {
        let own = Path::new(&document.name).parent().unwrap().display().to_string() + "/";
        let src = format!("{own}src/");
        for name in &document.names {
            let file = name.split(':').next().unwrap();
            let path = file.contains('/') && ends.iter().any(|end| file.ends_with(end));
            if !path || file.contains(['*', '$', ' ']) || file.starts_with("drivers/common/") {
                continue;
            }
            let places = folders.iter().copied().chain([own.as_str(), src.as_str()]);
            let more =
                ["drivers/", "drivers/edud/", "iommud/src/server/", "tests/tests/", "tests/"];
            let at = |place: &str| root().join(format!("{place}{file}")).exists();
            if places.chain(more).any(at) {
                found += 1;
            } else {
                missing.push(format!("{}: {name}", document.name));
            }
        }
    }
    assert!(found > 40, "{found}");
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
}
