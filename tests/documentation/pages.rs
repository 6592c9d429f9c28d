//! Tests of the examples in the documentation that need an appliance.

use std::path::{Path, PathBuf};
use virt_bmap_testutil::pages::Page;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, guestfish};

/// The script that makes the guest of some examples.
const MAKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/make-demo-guest.sh");

fn check(page: &Page, images: &[&Path]) {
    page.check_with_appliance(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        Path::new(env!("CARGO_BIN_EXE_virt-bmap-rs")),
        images,
    );
}

/// The guest that `make demo` makes.
fn demo_guest() -> PathBuf {
    let key = cache::key(include_str!("../../scripts/make-demo-guest.sh"));
    let dir = cache::directory("demo", &key, |dir| {
        let mut maker = tools::command("bash");
        maker.env("LIBGUESTFS_PATH", guestfish::appliance());
        tools::output(maker.arg(MAKER).arg(dir.join("guest.raw")));
    });
    dir.join("guest.raw")
}

#[test]
fn an_update() {
    check(&Page { path: "docs/update.md", run: 1, not_run: 1, tools: &["mke2fs", "debugfs"] }, &[]);
}

#[test]
fn the_first_minutes() {
    check(&Page { path: "docs/getting-started.md", run: 2, not_run: 5, tools: &["mke2fs"] }, &[]);
}

#[test]
fn the_guest_of_the_demo() {
    needs!("guestfish", "tar", "bash");
    let guest = demo_guest();
    check(&Page { path: "README.md", run: 1, not_run: 1, tools: &[] }, &[&guest]);
    check(&Page { path: "docs/mapping.md", run: 0, not_run: 1, tools: &[] }, &[&guest]);
}

#[test]
fn a_fleet_and_an_own_disk() {
    check(&Page { path: "docs/fleet.md", run: 1, not_run: 3, tools: &["jq", "mke2fs", "qemu-img"] }, &[]);
    check(&Page { path: "docs/exactness.md", run: 3, not_run: 1, tools: &["jq", "mke2fs", "qemu-img"] }, &[]);
}
