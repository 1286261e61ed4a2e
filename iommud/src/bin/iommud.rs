//! The IOMMU server.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1);
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    return iommud::platform::linux::main(words);
    #[cfg(all(target_os = "redox", target_arch = "x86_64"))]
    return iommud::platform::redox::main(words);
    #[cfg(not(all(any(target_os = "linux", target_os = "redox"), target_arch = "x86_64")))]
    compile_error!("no platform for this target");
}
