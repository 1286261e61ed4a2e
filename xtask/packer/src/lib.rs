//! Packages as Redox's installer takes them from a cookbook: files that are signed with the cookbook's key.
//!
//! ```text
//! COOKBOOK/build/id_ed25519.toml, id_ed25519.pub.toml      the keys; made when there are none
//! COOKBOOK/repo/x86_64-unknown-redox/NAME.pkgar, NAME.toml  a package, and what is known of it
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pkg::{Package, PackageName};
use pkgar::PackageFile;
use pkgar_core::PackageSrc;
use pkgar_keys::{PublicKeyFile, SecretKeyFile};

/// The system that packages are for.
const TARGET: &str = "x86_64-unknown-redox";

/// The folder of a cookbook, or one with its layout.
#[derive(Debug)]
pub struct Cookbook {
    keys: PathBuf,
    packages: PathBuf,
}

impl Cookbook {
    /// Opens the cookbook at `root`. What is missing is made: folders, and keys.
    ///
    /// # Errors
    /// A folder or key cannot be written, or one of the two keys is there without the other.
    pub fn open(root: &Path) -> Result<Self> {
        let cookbook = Self { keys: root.join("build"), packages: root.join("repo").join(TARGET) };
        for folder in [&cookbook.keys, &cookbook.packages] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let there = [cookbook.secret_key(), cookbook.public_key()].map(|key| key.exists());
        ensure!(
            there[0] == there[1],
            "{}: one of id_ed25519.toml and id_ed25519.pub.toml is missing",
            cookbook.keys.display()
        );
        if there == [false; 2] {
            let (public, secret) = SecretKeyFile::new();
            secret.save(cookbook.secret_key())?;
            public.save(cookbook.public_key())?;
        }
        Ok(cookbook)
    }

    fn secret_key(&self) -> PathBuf {
        self.keys.join("id_ed25519.toml")
    }

    fn public_key(&self) -> PathBuf {
        self.keys.join("id_ed25519.pub.toml")
    }

    /// Packs the files below `folder`, as they are to lie below the root of a file system. Returns the package's path.
    ///
    /// # Errors
    /// The name is no package's, a file cannot be read, or the package cannot be written or does not verify.
    pub fn pack(&self, name: &str, version: &str, folder: &Path) -> Result<PathBuf> {
        let package = self.packages.join(format!("{name}.pkgar"));
        let name = PackageName::new(name)?;
        pkgar::create(self.secret_key(), &package, folder)?;
        let description = Package {
            name,
            version: version.into(),
            target: TARGET.into(),
            blake3: self.verified(&package)?,
            storage_size: size_below(folder)?,
            network_size: package.metadata()?.len(),
            ..Package::default()
        };
        let path = package.with_extension("toml");
        fs::write(&path, description.to_toml()).with_context(|| path.display().to_string())?;
        Ok(package)
    }

    /// The hash of a package, once its signature and content were checked.
    fn verified(&self, package: &Path) -> Result<String> {
        let key = PublicKeyFile::open(self.public_key())?;
        let source = PackageFile::new(package, &key.pkey)?;
        Ok(hex::encode(source.header().blake3))
    }
}

/// Bytes in all files below a folder.
fn size_below(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        size += if metadata.is_dir() { size_below(&entry.path())? } else { metadata.len() };
    }
    Ok(size)
}
