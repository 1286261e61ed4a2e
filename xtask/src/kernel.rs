//! A stock Debian kernel, unpacked without installing it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::download_dependency;
use crate::workspace::{cache, quietly};

/// The package that depends on the current kernel of the flavour without hardware drivers.
const META: &str = "linux-image-cloud-amd64";

/// Modules that are kept: they give a process the interrupts of a PCI function. Listed in loading order, with their
/// paths among the kernel's modules.
const MODULES: [&str; 2] = ["uio/uio.ko", "uio/uio_pci_generic.ko"];

/// A kernel.
pub(crate) struct Kernel {
    /// Its image.
    pub(crate) image: PathBuf,
    /// Its modules, in loading order.
    pub(crate) modules: Vec<PathBuf>,
}

/// Returns the kernel. Downloads it on the first call.
pub(crate) fn stock() -> Result<Kernel> {
    let directory = cache("kernel")?;
    let modules = MODULES.iter().filter_map(|path| Path::new(path).file_name());
    let modules: Vec<PathBuf> = modules.map(|name| directory.join(name)).collect();
    let image = match find_image(&directory)?.filter(|_| modules.iter().all(|file| file.exists())) {
        Some(image) => image,
        None => download(&directory, &modules)?,
    };
    Ok(Kernel { image, modules })
}

fn download(directory: &Path, modules: &[PathBuf]) -> Result<PathBuf> {
    let package = download_dependency(META, "linux-image-", directory)?;
    let scratch = directory.join("unpacked");
    std::fs::create_dir_all(&scratch)?;
    quietly(Command::new("dpkg-deb").arg("--extract").args([&package, &scratch]))?;
    let image =
        find_image(&scratch.join("boot"))?.context("the package holds no boot/vmlinuz-*")?;
    let name = image.file_name().context("the image has no name")?;
    let destination = directory.join(name);
    let release = name.to_string_lossy().replace("vmlinuz-", "");
    let drivers = scratch.join("lib/modules").join(release).join("kernel/drivers");
    for (from, to) in MODULES.iter().zip(modules) {
        let from = drivers.join(from);
        std::fs::rename(&from, to).with_context(|| from.display().to_string())?;
    }
    // Renames last, so that an image in place is complete.
    std::fs::rename(&image, &destination)?;
    std::fs::remove_dir_all(&scratch)?;
    std::fs::remove_file(&package)?;
    Ok(destination)
}

fn find_image(directory: &Path) -> Result<Option<PathBuf>> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    }))
}
