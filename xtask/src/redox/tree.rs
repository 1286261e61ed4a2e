//! A finished Redox tree.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::packages::Missing;

/// The parts of a tree.
const PARTS: [(&str, &str); 10] = [
    ("kernel", "the kernel, ELF"),
    ("bootstrap", "the first program, ELF"),
    ("bin/redox-initfs-ar", "packs an initial file system; runs here"),
    ("initfs/bin", "programs of the initial file system"),
    ("initfs/lib/init.d", "units of its init"),
    ("initfs/lib/pcid.d", "which driver for which device"),
    ("initfs/lib/drivers", "drivers"),
    ("sysroot/lib/crt0.o", "start of every program; beside it crti.o and crtn.o"),
    ("sysroot/lib/libc.a", "relibc"),
    ("sysroot/lib/libgcc_eh.a", "unwinding"),
];

/// A complete tree.
#[derive(Debug)]
pub(crate) struct Tree(PathBuf);

impl Tree {
    /// Checks every part.
    ///
    /// # Errors
    /// `Missing`, which names each missing part.
    pub(crate) fn open(root: Option<&Path>) -> Result<Self> {
        let missing: Vec<String> = PARTS
            .iter()
            .filter(|(path, _)| root.is_none_or(|root| !root.join(path).exists()))
            .map(|(path, what)| format!("  {path:24} {what}"))
            .collect();
        match root {
            Some(root) if missing.is_empty() => Ok(Self(root.canonicalize()?)),
            Some(root) => Err(Missing::new(format!(
                "not booted: {} lacks\n{}",
                root.display(),
                missing.join("\n")
            ))
            .into()),
            None => Err(Missing::new(format!(
                "not booted: no Redox tree; --tree DIR, where DIR has\n{}",
                missing.join("\n")
            ))
            .into()),
        }
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.0.join("kernel")
    }

    pub(crate) fn bootstrap(&self) -> PathBuf {
        self.0.join("bootstrap")
    }

    pub(crate) fn packer(&self) -> PathBuf {
        self.0.join("bin/redox-initfs-ar")
    }

    pub(crate) fn initfs(&self) -> PathBuf {
        self.0.join("initfs")
    }

    pub(crate) fn libraries(&self) -> PathBuf {
        self.0.join("sysroot/lib")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_part_is_named() {
        let error = Tree::open(None).unwrap_err();
        assert!(error.is::<Missing>());
        let text = error.to_string();
        assert!(PARTS.iter().all(|(path, _)| text.contains(path)), "{text}");
        let nowhere = Tree::open(Some(Path::new("/nonexistent"))).unwrap_err();
        assert!(nowhere.is::<Missing>() && nowhere.to_string().contains("libgcc_eh.a"));
    }
}
