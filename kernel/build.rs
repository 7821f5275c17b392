//! Link arguments of the kernel's bare-metal program.

fn main() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).expect("in the workspace");
    let script = root.join("images/kernel.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
    {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-T{}", script.display());
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}
