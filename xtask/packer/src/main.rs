//! `redox-packer COOKBOOK NAME VERSION FOLDER`: one package.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use redox_packer::Cookbook;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("redox-packer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cookbook, name, version, folder] =
        arguments.as_slice().as_array().context("COOKBOOK NAME VERSION FOLDER")?;
    let package = Cookbook::open(Path::new(cookbook))?.pack(name, version, Path::new(folder))?;
    println!("{}", package.display());
    Ok(())
}
