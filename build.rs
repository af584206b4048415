//! How the program is linked: with its relocations packed (RELR), where the C library of this machine knows that.
//!
//! A position-independent program of this size has thirty thousand addresses that are written anew at each start. Packed, their list
//! takes 8 KB instead of 700, and `peel mount` of a known image takes 0.3 ms less, of 5. glibc reads such lists since 2.36 and
//! refuses the program before; so a program that is built for another system has none.

use std::env;
use std::process::Command;

/// The first glibc that reads packed relocations.
const FIRST: (u32, u32) = (2, 36);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_for_this_system = env::var("HOST").ok() == env::var("TARGET").ok();
    if is_for_this_system && glibc().is_some_and(|version| version >= FIRST) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc; nothing if it has another C library.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
