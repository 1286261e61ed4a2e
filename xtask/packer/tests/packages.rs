//! The installer's own crates read what is made here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use pkg::Package;
use redox_installer::{Config, PackageConfig};
use redox_packer::Cookbook;

const PROGRAM: &[u8] = b"\x7fELF, as it were";

/// A folder with one program.
fn files(root: &Path) -> Result<()> {
    let bin = root.join("usr/bin");
    fs::create_dir_all(&bin)?;
    fs::write(bin.join("iommud"), PROGRAM)?;
    Ok(fs::set_permissions(bin.join("iommud"), fs::Permissions::from_mode(0o755))?)
}

#[test]
fn a_package_is_extracted_with_the_key_of_its_cookbook() -> Result<()> {
    let (book, from, to) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    files(from.path())?;
    let package = Cookbook::open(book.path())?.pack("iommud", "0.1.0", from.path())?;
    assert_eq!(package, book.path().join("repo/x86_64-unknown-redox/iommud.pkgar"));
    let key = book.path().join("build/id_ed25519.pub.toml");
    pkgar::extract(&key, &package, to.path())?;
    let program = to.path().join("usr/bin/iommud");
    assert_eq!(fs::read(&program)?, PROGRAM);
    assert_eq!(program.metadata()?.permissions().mode() & 0o777, 0o755);
    let known = Package::from_file(package.with_extension("toml"))?;
    assert_eq!((known.name.as_str(), known.version.as_str()), ("iommud", "0.1.0"));
    assert_eq!(known.target, "x86_64-unknown-redox");
    assert_eq!((known.storage_size, known.depends.len()), (16, 0));
    assert_eq!(known.network_size, package.metadata()?.len());
    // The hash stands in the package's head behind signature and public key: bytes 96 to 127.
    let head = &fs::read(&package)?[96..128];
    assert_eq!(known.blake3, hex::encode(head));
    Ok(())
}

#[test]
fn another_cookbook_s_key_does_not_open_it() -> Result<()> {
    let (book, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
    files(from.path())?;
    let package = Cookbook::open(book.path())?.pack("iommud", "0.1.0", from.path())?;
    Cookbook::open(other.path())?;
    let key = other.path().join("build/id_ed25519.pub.toml");
    assert!(pkgar::extract(&key, &package, to.path()).is_err());
    Ok(())
}

#[test]
fn the_keys_of_a_cookbook_stay() -> Result<()> {
    let book = tempfile::tempdir()?;
    let keys =
        ["id_ed25519.toml", "id_ed25519.pub.toml"].map(|key| book.path().join("build").join(key));
    let read = || keys.clone().map(|key| fs::read(key).ok());
    Cookbook::open(book.path())?;
    let made = read();
    assert!(made.iter().all(Option::is_some));
    assert_eq!(keys[0].metadata()?.permissions().mode() & 0o777, 0o600);
    Cookbook::open(book.path())?;
    assert_eq!(read(), made);
    fs::remove_file(&keys[1])?;
    assert!(
        Cookbook::open(book.path()).is_err(),
        "a new pair would take the place of the secret key"
    );
    assert_eq!(fs::read(&keys[0]).ok(), made[0]);
    Ok(())
}

/// The configuration of the project, without those that it includes.
fn configuration() -> Result<Config> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("filesystem.toml"))?;
    let folder = tempfile::tempdir()?;
    let alone: String = text
        .lines()
        .filter(|line| !line.starts_with("include"))
        .fold(String::new(), |all, line| all + line + "\n");
    fs::write(folder.path().join("alone.toml"), alone)?;
    Config::from_file(&folder.path().join("alone.toml"))
}

#[test]
fn the_installer_reads_the_configuration() -> Result<()> {
    let config = configuration()?;
    let names: Vec<&str> = config.packages.keys().map(String::as_str).collect();
    assert_eq!(names, ["iommuctl", "iommud"]);
    assert!(config.packages.values().all(|package| matches!(package, PackageConfig::Spec { .. })));
    let paths: Vec<&str> = config.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/etc/iommud.toml",
            "/usr/lib/init.d/00_iommud.service",
            "/etc/init.d/00_pcid-spawner.service"
        ]
    );
    Ok(())
}

/// The units in the configuration are the files that `iommud/image` has.
#[test]
fn the_configuration_has_the_units_of_the_project() -> Result<()> {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../iommud/image");
    for file in configuration()?.files {
        let name = Path::new(&file.path).file_name().unwrap_or_default();
        if name != "iommud.toml" {
            assert_eq!(file.data, fs::read_to_string(image.join(name))?, "{}", file.path);
        }
    }
    Ok(())
}
