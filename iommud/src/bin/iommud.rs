//! The IOMMU server.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    return iommud::platform::linux::main(std::env::args_os().skip(1));
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    compile_error!("no platform for this target");
}
