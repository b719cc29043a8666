//! The program is linked at a fixed address. Each run of an operator's script starts it once more
//! as a shim, and most of such a start was the loader moving 36,000 addresses of a program of
//! 20 MB: 180 of 290 page faults. Stack, heap and libraries keep their random places.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-no-pie");
}
