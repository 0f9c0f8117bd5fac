//! Has the linker put what the supervisor runs next to each other, in what is shipped: see
//! `firmware-images/order`.

use std::env::var_os;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // `PROFILE` says `release` of everything that inherits it; OUT_DIR is
    // `<target>/<profile>/build/<package>/out`.
    let out = PathBuf::from(var_os("OUT_DIR").unwrap_or_default());
    let profile = out.ancestors().nth(3).and_then(Path::file_name);
    if profile.is_none_or(|name| name != "dist") {
        return;
    }
    let package = PathBuf::from(var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let script = package.join("../firmware-images/order/supervisor.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    // GNU's linker and LLD read such scripts; the agent is for Linux, where one of them links.
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
}
