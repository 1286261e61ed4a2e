//! Links without the C runtime, at the addresses of `link.ld`.

fn main() {
    let here = env!("CARGO_MANIFEST_DIR");
    println!("cargo::rerun-if-changed=link.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
    ] {
        println!("cargo::rustc-link-arg={argument}");
    }
    println!("cargo::rustc-link-arg=-Wl,-T,{here}/link.ld");
}
