//! Finds circles of files that name each other within one crate. A name that a module re-exports with `pub use`
//! counts as the name of the file that defines it.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::File;

/// The files that each file of a crate names.
pub(crate) type Edges<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// The longest accepted chain of re-exports.
const MOST: usize = 8;

/// The re-exports of each module: name, and path of the definition.
type Exports<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>;

/// Returns every file of a program, with the other files of its crate that it names.
pub(crate) fn edges(files: &[File]) -> Edges<'_> {
    let program = || files.iter().filter(|file| file.lines > 0);
    let modules: BTreeSet<&str> = program().map(|file| file.module.as_str()).collect();
    let exports = program().map(|file| (file.module.as_str(), exports(file))).collect();
    let mut edges = Edges::new();
    for file in program() {
        let own = file.module.as_str();
        let to = edges.entry(own).or_default();
        let names = file.names.iter().chain(&file.below);
        for name in names.filter(|name| !name.in_test && !name.exported) {
            let found = definition(&name.path, &modules, &exports);
            to.extend(found.filter(|found| *found != own && crate_of(found) == crate_of(own)));
        }
    }
    edges
}

fn crate_of(module: &str) -> &str {
    module.split("::").next().unwrap()
}

fn exports(file: &File) -> BTreeMap<&str, &str> {
    let exported = file.names.iter().chain(&file.below).filter(|name| name.exported);
    exported.map(|name| (name.path.rsplit("::").next().unwrap(), name.path.as_str())).collect()
}

/// Returns the file that defines the item at a path.
fn definition<'a>(
    path: &str,
    modules: &BTreeSet<&'a str>,
    exports: &Exports<'a>,
) -> Option<&'a str> {
    let mut path = path.to_string();
    for _ in 0..MOST {
        let mut end = path.len();
        let module = loop {
            if let Some(module) = modules.get(&path[..end]) {
                break *module;
            }
            end = path[..end].rfind("::")?;
        };
        let rest = path[end..].trim_start_matches("::");
        let (name, behind) = rest.split_once("::").unwrap_or((rest, ""));
        let Some(target) = exports.get(module).and_then(|exports| exports.get(name)) else {
            return Some(module);
        };
        path = if behind.is_empty() { (*target).into() } else { format!("{target}::{behind}") };
    }
    None
}

/// Returns the files in circles: a path of names leads from such a file back to itself.
pub(crate) fn in_circles(edges: Edges<'_>) -> BTreeSet<&str> {
    let leads_back = |start: &&str| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&str> = edges.get(start).into_iter().flatten().copied().collect();
        while let Some(module) = next.pop() {
            if seen.insert(module) {
                next.extend(edges.get(module).into_iter().flatten());
            }
        }
        seen.contains(start)
    };
    edges.keys().copied().filter(leads_back).collect()
}
