//! Links without the C library and its start files, at the addresses of `link.ld`.

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/link.ld");
}
