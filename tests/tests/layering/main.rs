//! Checks the dependency law of the workspace in the source: the allowed dependencies, the places for `unsafe`, the
//! length of files. Every path in every file counts, in `use` items, in code and in macros.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

mod circles;
mod law;
mod source;

use law::LAW;
use source::{File, files};

/// Names that no file of a part may use, even if the law allows them.
const NEVER: &[(&str, &str, &str)] = &[
    ("iommu_client::platform", "iommud", "a client knows the protocol only"),
    (
        "iommud_model",
        "iommud::hw::vtd::spec",
        "the software units decode bits with their own constants",
    ),
    (
        "iommud_model",
        "iommud::hw::amdvi::spec",
        "the software units decode bits with their own constants",
    ),
    ("iommud_tests", "iommud::hw::vtd::spec", "bytes are compared with literal ones"),
    ("iommud_tests", "iommud::hw::amdvi::spec", "bytes are compared with literal ones"),
    ("iommud_tests.tests", "iommud::hw::vtd::spec", "bytes are compared with literal ones"),
    ("iommud_tests.tests", "iommud::hw::amdvi::spec", "bytes are compared with literal ones"),
];

/// Modules that may contain `unsafe`.
const UNSAFE: &[&str] = &[
    "iommud::platform",
    "iommu_client::platform",
    "redox_dma::platform",
    "drivers::platform",
    // The crate's interface has unsafe functions, and its tests call them, in a module of that name.
    "redox_dma.tests",
    "guests",
    "iommud_bench",
];

/// Largest number of lines of a file, test modules not counted.
const LINES: usize = 450;

/// Files that may be longer, with the reason.
const LONG: &[(&str, &str)] =
    &[("protocol/src/wire.rs", "one table: the layout of each structure")];

/// The row of the law that a path belongs to.
fn part<'a>(path: &str, rows: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    rows.filter(|row| covers(row, path)).max_by_key(|row| row.len())
}

fn covers(row: &str, path: &str) -> bool {
    path.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Lists the forbidden paths of a file.
fn breaches(file: &File) -> Vec<String> {
    let rows = || LAW.iter().map(|(row, _)| *row);
    let Some(own) = part(&file.module, rows()) else {
        return vec![format!("{}: no row of the law covers `{}`", file.path, file.module)];
    };
    let allowed = LAW.iter().find(|(row, _)| *row == own).unwrap().1;
    let mut out = Vec::new();
    for name in &file.names {
        let at = format!("{}:{}", file.path, name.line);
        for (of, never, why) in NEVER {
            if own == *of && covers(never, &name.path) {
                out.push(format!("{at}: `{}`: {why}", name.path));
            }
        }
        // Tests may use any outside crate, because that is not part of the design. Layers bind tests too.
        let target = part(&name.path, rows());
        let outside = target.is_none();
        let target = target.unwrap_or(name.path.split("::").next().unwrap());
        let fine = covers(own, target)
            || allowed.contains(&"*")
            || allowed.contains(&target)
            || outside && name.in_test;
        if !fine {
            out.push(format!("{at}: {own} may not name {target} (`{}`)", name.path));
        }
    }
    out
}

fn report(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn every_path_keeps_the_dependency_law() {
    let files = files();
    assert!(files.len() > 50, "only {} files were found", files.len());
    let names: usize = files.iter().map(|file| file.names.len()).sum();
    assert!(names > 500, "only {names} paths were found");
    report(&files.iter().flat_map(breaches).collect::<Vec<_>>());
}

#[test]
fn unsafe_stands_in_platform_modules_only() {
    let mut out = Vec::new();
    for file in files() {
        if !UNSAFE.iter().any(|part| covers(part, &file.module)) {
            out.extend(file.unsafe_lines.iter().map(|line| format!("{}:{line}", file.path)));
        }
    }
    report(&out);
}

#[test]
fn files_are_short() {
    let exempt = |file: &File| LONG.iter().any(|(path, _)| *path == file.path);
    let long = |file: &File| {
        (file.lines > LINES && !exempt(file)).then(|| format!("{}: {}", file.path, file.lines))
    };
    report(&files().iter().filter_map(long).collect::<Vec<_>>());
}

#[test]
fn files_name_each_other_in_no_circle() {
    let files = files();
    let edges = circles::edges(&files);
    assert!(edges.values().map(|to| to.len()).sum::<usize>() > 500, "too few were found");
    let checked = |module: &&str| {
        ["iommud", "iommuctl", "iommu_client", "redox_dma", "iommu_protocol"]
            .iter()
            .any(|of| covers(of, module))
    };
    let mut left = circles::in_circles(edges);
    left.retain(checked);
    report(&left.iter().map(|module| format!("{module}: in a circle")).collect::<Vec<_>>());
}

/// A circle is detected, also one through a re-export. Two files above a third form no circle.
#[test]
fn a_circle_is_seen() {
    let file = |module: &str, text: &str| File::parse("x.rs", module, text);
    let above = file("a", "pub mod b; mod c; pub use c::C; pub struct A;");
    let one = |text: &str| file("a::b", text);
    let other = |text: &str| file("a::c", text);
    let found = |b: &str, c: &str| {
        let files = [file("a", "pub mod b; mod c; pub use c::C;"), one(b), other(c)];
        circles::in_circles(circles::edges(&files)).len()
    };
    assert_eq!(found("use crate::C; pub struct B;", "use super::b::B; pub struct C;"), 2);
    assert_eq!(found("use crate::c::C; pub struct B;", "pub(in crate::b) struct C;"), 0);
    assert_eq!(found("pub struct B;", "use crate::b::B; pub struct C;"), 0);
    let files = [above, one("use crate::A;"), other("use crate::b::B;")];
    assert_eq!(circles::in_circles(circles::edges(&files)).len(), 0);
    let files = [file("a", "mod b; use b::B; pub struct A;"), one("use crate::A; pub struct B;")];
    assert_eq!(circles::in_circles(circles::edges(&files)).len(), 2);
}

/// The example for driver authors is short: its files have at most 260 lines together.
#[test]
fn the_teaching_example_is_short() {
    let files = files();
    let of_example = files.iter().filter(|file| file.path.starts_with("drivers/edud/src/"));
    let lines: Vec<usize> = of_example.map(|file| file.lines).collect();
    assert!(lines.len() >= 2 && lines.iter().sum::<usize>() <= 260, "{lines:?}");
}

/// Instructions are counted in the bare guest, so it must be built like the released server.
#[test]
fn what_is_measured_is_what_ships() {
    let ships = source::release_profile("Cargo.toml");
    assert!(ships.contains(&"opt-level = 3".into()) && ships.contains(&"lto = \"fat\"".into()));
    assert_eq!(source::release_profile("tests/vm/bare/Cargo.toml"), ships);
}

/// The rules are effective: each of these sources breaks one.
#[test]
fn a_breach_is_seen() {
    let cases = [
        ("iommud::policy::x", "use crate::hw::Unit;", "iommud::policy may not name iommud::hw"),
        ("iommud::policy::x", "fn f() { log::info!(\"\"); }", "iommud::policy may not name log"),
        (
            "iommud::hw::x",
            "use crate::{addr::Iova, policy::{Step, Plan}};",
            "may not name iommud::policy",
        ),
        ("iommud::hw::vtd::x", "use super::super::amdvi::Thing;", "may not name iommud::hw::amdvi"),
        ("iommud::server::x", "type T = std::vec::Vec<u8>;", "may not name std"),
        (
            "iommud::engine",
            "fn f() { vec![crate::server::Handle(1)]; }",
            "may not name iommud::server",
        ),
        ("drivers", "use iommu_protocol::wire::Map;", "may not name iommu_protocol"),
        ("drivers", "use iommud::server::Server;", "may not name iommud::server"),
        ("iommu_client", "use iommud::server::Server;", "may not name iommud::server"),
        ("iommud_model::vtd", "use iommud::hw::vtd::spec::Pte;", "their own constants"),
        ("iommud_model::vtd", "use iommud::hw::{vtd::{spec}, Unit};", "their own constants"),
        (
            "iommud::policy::x",
            "#[cfg(test)] mod tests { use crate::hw::Unit; }",
            "may not name iommud::hw",
        ),
        ("iommuctl::decode", "use clap::Parser;", "iommuctl::decode may not name clap"),
        ("iommuctl::tree", "use iommud::server::Server;", "may not name iommud::server"),
        ("somewhere", "", "no row of the law covers"),
    ];
    for (module, text, expected) in cases {
        let file = File::parse("x.rs", module, text);
        let found = breaches(&file);
        assert!(found.iter().any(|breach| breach.contains(expected)), "{text}: {found:?}");
    }
    let fine = [
        ("iommud::hw::vtd::x", "use super::super::unit::Unit; use super::spec::Pte;"),
        (
            "iommud::policy::x",
            "// crate::hw\nconst T: &str = \"crate::hw\"; #[cfg(test)] mod t { use std::vec; }",
        ),
        ("iommud::server::x", "use crate::policy::{self, Step}; fn f() { log::info!(\"\"); }"),
    ];
    for (module, text) in fine {
        assert_eq!(breaches(&File::parse("x.rs", module, text)), Vec::<String>::new(), "{text}");
    }
    let text =
        "fn f() {\n    unsafe { g() }\n} // unsafe\n#[cfg(test)]\nmod t {\n    fn h() {}\n}\n";
    let file = File::parse("x.rs", "iommud::hw::x", text);
    assert_eq!((file.unsafe_lines, file.lines), (vec![2], 5));
}

/// The reading list in CONTRIBUTING is short, and its files exist.
#[test]
fn the_files_to_begin_with_have_less_than_900_lines() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let guide = std::fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    let begin = guide.split("## Where to begin reading").nth(1).unwrap();
    let table = begin.split("Three ways").next().unwrap();
    let listed = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let count = |path: &str| std::fs::read_to_string(root.join(path)).unwrap().lines().count();
    let lines: Vec<usize> = listed.map(count).collect();
    assert!(lines.len() >= 5 && lines.iter().sum::<usize>() < 900, "{lines:?}");
}
