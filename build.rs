//! Builds the probe agent, a static program that runs in the appliance, and passes its path to the
//! library (`VIRT_BMAP_AGENT`), which embeds it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=appliance/src");
    println!("cargo::rerun-if-changed=appliance/Cargo.toml");
    println!("cargo::rerun-if-changed=crates/agent-protocol/src");
    println!("cargo::rerun-if-changed=crates/agent-protocol/Cargo.toml");
    println!("cargo::rerun-if-changed=crates/ntfs/src");
    println!("cargo::rerun-if-changed=crates/ntfs/Cargo.toml");
    println!("cargo::rerun-if-changed=crates/on-disk/src");
    println!("cargo::rerun-if-changed=crates/on-disk/Cargo.toml");
    println!("cargo::rerun-if-changed=crates/ranges/src");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("appliance/Cargo.toml");
    let target = PathBuf::from(variable("OUT_DIR")).join("agent");
    // The appliance has the architecture of the host, whatever this build's target is; it has a C
    // library of the host's, but a static program need not rely on that.
    let triple = variable("TARGET");
    let status = Command::new(variable("CARGO"))
        .args(["build", "--release", "--quiet", "--locked", "--bin", "virt-bmap-agent", "--target", &triple])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static -C panic=abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the probe agent failed: {status}"),
        Err(error) => panic!("cannot run cargo to build the probe agent: {error}"),
    }
    let agent = target.join(&triple).join("release/virt-bmap-agent");
    println!("cargo::rustc-env=VIRT_BMAP_AGENT={}", agent.display());
}
