//! A stock Debian kernel, unpacked without installing it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::download_dependency;
use crate::workspace::{cache, quietly};

/// The package that depends on the current kernel of the flavour without hardware drivers.
const META: &str = "linux-image-cloud-amd64";

/// The kernel image; downloaded on the first call.
pub(crate) fn image() -> Result<PathBuf> {
    let directory = cache("kernel")?;
    if let Some(found) = find_image(&directory)? {
        return Ok(found);
    }
    let package = download_dependency(META, "linux-image-", &directory)?;
    let scratch = directory.join("unpacked");
    std::fs::create_dir_all(&scratch)?;
    quietly(Command::new("dpkg-deb").arg("--extract").args([&package, &scratch]))?;
    let image =
        find_image(&scratch.join("boot"))?.context("the package holds no boot/vmlinuz-*")?;
    let name = image.file_name().context("the image has no name")?;
    let destination = directory.join(name);
    // The last step: what is in place is whole.
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
