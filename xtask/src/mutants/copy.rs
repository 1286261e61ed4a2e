//! The copy of the workspace whose server contains every mutant. What has not changed keeps its time, so that cargo
//! compiles the rest only.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::list::Mutant;
use super::places::{self, Places, Site, Without};
use super::rewrite::{Learned, rewrite};
use crate::workspace::{cache, quietly, root};

/// The root of the mutated crate.
const LIBRARY: &str = "iommud/src/lib.rs";

/// What decides whether a mutant compiles, by how the names begin.
const COMPILED: [&str; 3] = ["Cargo.", "iommud/", "protocol/"];

/// The switch: where it stands in the copy.
const SWITCH: &str = "iommud/src/mutant.rs";

/// The mutated sources, and where they are written.
pub(super) struct Copy {
    pub(super) root: PathBuf,
    /// A hash of everything that decides whether a mutant compiles.
    pub(super) sources: u64,
    /// A hash of the whole workspace.
    pub(super) all: u64,
    /// Source and places of each mutated file.
    files: BTreeMap<String, (String, Places)>,
}

impl Copy {
    /// Copies the workspace, and finds the places of the mutants.
    pub(super) fn new(mutants: &[Mutant]) -> Result<Self> {
        let folder = cache("mutants")?.join("copy");
        let mut by_file: BTreeMap<&str, Vec<(u32, &Mutant)>> = BTreeMap::new();
        for (number, mutant) in (1..).zip(mutants) {
            by_file.entry(&mutant.file).or_default().push((number, mutant));
        }
        let mut files = BTreeMap::new();
        for (name, mutants) in by_file {
            let source = std::fs::read_to_string(root().join(name)).context(name.to_owned())?;
            let places = places::find(&source, &mutants).context(name.to_owned())?;
            files.insert(name.to_owned(), (source, places));
        }
        let mut copy = Self { root: folder, sources: 0, all: 0, files };
        (copy.sources, copy.all) = copy.synchronise()?;
        Ok(copy)
    }

    /// The mutants that cannot be switched, with the reason.
    pub(super) fn without(&self) -> impl Iterator<Item = (u32, Without)> {
        self.files.values().flat_map(|(_, places)| places.without.iter().copied())
    }

    /// The places that are rewritten.
    pub(super) fn sites(&self) -> impl Iterator<Item = &Site> {
        self.files.values().flat_map(|(_, places)| &places.sites)
    }

    /// Writes the mutated files, in the forms that were learned.
    pub(super) fn write(&self, learned: &Learned) -> Result<()> {
        for (name, (source, places)) in &self.files {
            let text = rewrite(source, &places.sites, learned);
            put(&self.root.join(name), &library(name, text))?;
        }
        Ok(())
    }

    /// Copies what git knows, except for the mutated files, and removes what it no longer knows. Returns the hashes.
    fn synchronise(&self) -> Result<(u64, u64)> {
        let (mut hash, mut all) = (DefaultHasher::new(), DefaultHasher::new());
        [include_str!("places.rs"), include_str!("rewrite.rs")].hash(&mut hash);
        let mut git = Command::new("git");
        git.current_dir(root()).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]);
        let mut kept = BTreeSet::from([self.root.join(SWITCH)]);
        for name in quietly(&mut git)?.split('\0').filter(|name| !name.is_empty()) {
            let from = root().join(name);
            if from.is_file() {
                let bytes = std::fs::read(&from).with_context(|| format!("reading {name}"))?;
                (name, &bytes).hash(&mut all);
                if COMPILED.iter().any(|start| name.starts_with(start)) {
                    (name, &bytes).hash(&mut hash);
                }
                self.take(name, bytes)?;
            }
            kept.insert(self.root.join(name));
        }
        put(&self.root.join(SWITCH), include_bytes!("switch.rs"))?;
        remove_others(&self.root, &kept)?;
        Ok((hash.finish(), all.finish()))
    }

    fn take(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        if self.files.contains_key(name) {
            return Ok(());
        }
        if name == LIBRARY {
            let text = String::from_utf8(bytes).context(LIBRARY)?;
            return put(&self.root.join(name), &library(name, text));
        }
        put(&self.root.join(name), &bytes)
    }
}

/// Declares the switch, in the root of the crate.
fn library(name: &str, text: String) -> Vec<u8> {
    if name != LIBRARY {
        return text.into_bytes();
    }
    let features = "#![feature(core_intrinsics, const_eval_select)]\n";
    format!("{features}{text}\n#[doc(hidden)]\npub mod mutant;\n").into_bytes()
}

/// Writes a file, unless it is the same already.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(path, bytes))
        .with_context(|| format!("writing {}", path.display()))
}

/// Removes files of the copy that are no longer in the workspace.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}
