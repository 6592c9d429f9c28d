//! An ordinary user needs no more than a readable image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::single_range_in_vec_init)]

mod common;

use common::fixture;
use common::formats;
use common::mapping;
use common::sandbox::Sandbox;
use common::textmap::body;
use common::tools::{self, needs};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Maps the small guest in `format` as `nobody`, in a network namespace without any interface.
fn mapped_by_nobody(format: &str) {
    let sandbox = Sandbox::new().wrapper(["unshare", "--net"]).run_as_nobody();
    let image = sandbox.cwd().join(format!("guest.{format}"));
    formats::convert(&fixture::small().image, &image, format, "");
    // Readable, and no more than that.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let before = tools::sha256(&image);
    let run = sandbox.run([&format!("guest.{format}")]);
    run.assert_code(0);
    assert_eq!(tools::sha256(&image), before);
    assert!(body(&run.read("guest.bmap")) == body(&mapping::of(&[fixture::small()], &[]).text));
}

#[test]
fn raw() {
    needs!("guestfish", "sfdisk", "qemu-img", "setpriv", "unshare");
    if tools::is_root("become another user") {
        mapped_by_nobody("raw");
    }
}

#[test]
fn vmdk() {
    needs!("guestfish", "sfdisk", "qemu-img", "setpriv", "unshare");
    if tools::is_root("become another user") {
        mapped_by_nobody("vmdk");
    }
}
