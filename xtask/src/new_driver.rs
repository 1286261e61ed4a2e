//! `xtask new-driver`: a driver begun as a copy of edud.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::workspace::{cargo, quietly, root};

/// The driver that is copied.
const FROM: &str = "edud";

/// Its place in the list of the workspace's members. The copy is listed behind it.
const MEMBER: &str = "\"drivers/edud\", ";

/// What its description begins with.
const ABOUT: &str = "Driver of the edu device of QEMU: the smallest complete user of iommu-client";

/// Copies edud to `drivers/NAME`, and adds the copy to the workspace.
///
/// # Errors
/// The name is no name of a package, or is taken; or a file cannot be read or written.
pub(crate) fn run(name: &str) -> Result<bool> {
    let root = root();
    copy(&root, name)?;
    // The lock file lists the packages of the workspace. None of the others changes.
    quietly(cargo().args(["update", "--workspace", "--offline", "--quiet"]))?;
    // The name's place in the alphabet orders what is imported.
    quietly(cargo().args(["fmt", "--package", name]))?;
    println!("drivers/{name}: a copy of edud. Its test: cargo test -p {name}");
    println!("In the guest: cargo xtask shell --program {name} --device edu");
    Ok(true)
}

fn copy(root: &Path, name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    ensure!(begins && name.bytes().all(plain), "{name}: a name is of a-z, 0-9 and _");
    let manifest = root.join("Cargo.toml");
    let members = read(&manifest)?;
    let lock = read(&root.join("Cargo.lock"))?;
    ensure!(!lock.contains(&format!("name = \"{name}\"\n")), "{name}: a package has this name");
    ensure!(members.contains(MEMBER), "{}: drivers/edud is not listed", manifest.display());
    let (from, to) = (root.join("drivers").join(FROM), root.join("drivers").join(name));
    ensure!(!to.exists(), "{}: is there already", to.display());
    for file in
        ["Cargo.toml", "src/lib.rs", "src/main.rs", "src/edu.rs", "src/engine.rs", "tests/model.rs"]
    {
        let text = read(&from.join(file))?;
        let text = text
            .replace(ABOUT, "A driver, begun as a copy of the edu device's")
            .replace(FROM, name);
        let path = to.join(file);
        let folder = path.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    let listed = members.replacen(MEMBER, &format!("{MEMBER}\"drivers/{name}\", "), 1);
    fs::write(&manifest, listed).with_context(|| manifest.display().to_string())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::target;

    /// A copy of what is copied and changed.
    fn workspace(name: &str) -> std::path::PathBuf {
        let to = target().join("new-driver").join(format!("{name}-{}", std::process::id()));
        for folder in ["drivers/edud/src", "drivers/edud/tests"] {
            fs::create_dir_all(to.join(folder)).unwrap();
            for entry in fs::read_dir(root().join(folder)).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
            }
        }
        for file in ["Cargo.toml", "Cargo.lock", "drivers/edud/Cargo.toml"] {
            fs::copy(root().join(file), to.join(file)).unwrap();
        }
        to
    }

    #[test]
    fn every_file_is_copied_under_the_new_name() {
        let there = workspace("copied");
        copy(&there, "mydev").unwrap();
        let files = |folder: &str| {
            let entries = fs::read_dir(there.join(folder)).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for folder in ["src", "tests"] {
            let (old, new) = (format!("drivers/edud/{folder}"), format!("drivers/mydev/{folder}"));
            assert_eq!(files(&old), files(&new));
        }
        let main = fs::read_to_string(there.join("drivers/mydev/src/main.rs")).unwrap();
        assert!(main.contains("use mydev::{Driver") && !main.contains("edud"), "{main}");
        let members = fs::read_to_string(there.join("Cargo.toml")).unwrap();
        assert!(members.contains("\"drivers/edud\", \"drivers/mydev\", "), "{members}");
        assert!(copy(&there, "mydev").unwrap_err().to_string().contains("is there already"));
        fs::remove_dir_all(there).unwrap();
    }

    #[test]
    fn a_bad_name_changes_nothing() {
        let there = workspace("refused");
        for name in ["", "1dev", "my-dev", "My", "../x", "edud", "iommud", "serde"] {
            assert!(copy(&there, name).is_err(), "{name}");
        }
        let members = |root: &Path| fs::read_to_string(root.join("Cargo.toml")).unwrap();
        assert_eq!(members(&there), members(&root()));
        fs::remove_dir_all(there).unwrap();
    }
}
