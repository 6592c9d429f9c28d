//! Builds the probe agent, a static program that runs in the appliance, and passes its path to the
//! library (`VIRT_BMAP_AGENT`), which embeds it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// How the agent is compiled.
const FLAGS: [&str; 3] = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cpanic=abort"];

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
    // Where this build gives paths another name in programs, so do the agent's (panics print them).
    let encoded = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let renames = encoded.split(SEPARATOR).filter(|flag| flag.starts_with("--remap-path-prefix="));
    let flags: Vec<_> = FLAGS.into_iter().chain(renames).collect();
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
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR))
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
