//! What an image takes: the files parse, and have the keys that Redox's tools know and no others.
//!
//! Units: `UnitInfo` and `Service` of base's init (unknown keys are errors there). Installer configuration: `Config`
//! and `FileConfig` of redox-os/installer. Recipe: the book of Redox, "Porting Applications using Recipes".

#![cfg(feature = "std")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unit {
    unit: Info,
    service: Service,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    #[serde(rename = "description")]
    _description: String,
    #[serde(default)]
    requires_weak: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    cmd: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(rename = "type")]
    kind: Kind,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Scheme(String),
    Oneshot,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Installer {
    include: Vec<PathBuf>,
    packages: BTreeMap<String, BTreeMap<String, String>>,
    files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    source: Option<Source>,
    build: Build,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    same_as: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    template: String,
    cargopackages: Vec<String>,
}

fn text(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

fn unit(text: &str) -> Unit {
    toml::from_str(text).unwrap()
}

#[test]
fn units_have_the_keys_that_init_knows() {
    let early = unit(&text("iommud/image/40_iommud.service"));
    assert_eq!(early.service.cmd, "iommud");
    assert_eq!(early.service.args, ["--keep"]);
    assert_eq!(early.service.kind, Kind::Scheme("iommu".into()));
    assert_eq!(early.unit.requires_weak, ["40_hwd.service"]);
    let spawner = unit(&text("iommud/image/40_pcid-spawner-initfs.service"));
    assert!(spawner.unit.requires_weak.iter().any(|unit| unit == "40_iommud.service"));
    assert_eq!(spawner.service.kind, Kind::Oneshot);
    let late = unit(&text("iommud/image/00_iommud.service"));
    assert_eq!(late.service.kind, Kind::Scheme("iommu".into()));
}

#[test]
fn the_installer_puts_in_what_the_units_name() {
    let config: Installer = toml::from_str(&text("filesystem.toml")).unwrap();
    assert_eq!(config.include.len(), 1);
    assert!(config.packages.contains_key("iommud"));
    let file = |path: &str| config.files.iter().find(|file| file.path == path).unwrap();
    let late = "/usr/lib/init.d/00_iommud.service";
    assert_eq!(file(late).data, text("iommud/image/00_iommud.service"), "one and the same unit");
    let args = unit(&file(late).data).service.args;
    let policy = args.iter().skip_while(|word| *word != "--policy").nth(1).unwrap();
    iommud::config::parse(&file(policy).data).unwrap();
}

/// Each recipe builds the package of its name. Those beside iommud's take its source.
#[test]
fn a_recipe_builds_the_package_of_its_name() {
    let folders = [
        ("iommud", "iommud/image"),
        ("iommuctl", "iommud/iommuctl"),
        ("iommu-run", "drivers/iommu-run"),
    ];
    for (name, folder) in folders {
        let recipe: Recipe = toml::from_str(&text(&format!("{folder}/recipe.toml"))).unwrap();
        assert_eq!(recipe.build.template, "cargo");
        assert_eq!(recipe.build.cargopackages, [name]);
        let source = recipe.source.map(|source| source.same_as);
        assert_eq!(source.as_deref(), (name != "iommud").then_some("../iommud"));
    }
    let config: Installer = toml::from_str(&text("filesystem.toml")).unwrap();
    assert!(config.packages.keys().all(|name| folders.iter().any(|(known, _)| known == name)));
}
