//! Starts a driver with the session of its device, and takes from it what it can do without.

#[cfg(any(test, target_os = "redox"))]
mod handed;
#[cfg_attr(not(any(test, target_os = "redox")), expect(dead_code, reason = "launches on Redox"))]
mod options;
mod platform;

use std::process::ExitCode;

use iommu_client::Error;

use options::Options;

/// Why the program was not started.
enum Failure {
    Client(Error),
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            println!("iommu-run: {usage}");
            return 2.into();
        }
    };
    let (text, code) = match platform::launch(&options) {
        Failure::Client(error) if error.refusal().is_some() => (format!("refused: {error}"), 3),
        Failure::Client(error) => (format!("failed: {error}"), 1),
        Failure::Other(text) => (format!("failed: {text}"), 1),
    };
    println!("iommu-run: {}: {text}", options.program.display());
    code.into()
}
