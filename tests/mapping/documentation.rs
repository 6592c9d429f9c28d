//! Tests of the examples in the documentation that need an appliance.

use std::path::Path;
use virt_bmap_testutil::pages::Page;

fn check(page: &Page) {
    page.check_with_appliance(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        Path::new(env!("CARGO_BIN_EXE_virt-bmap-rs")),
    );
}

#[test]
fn an_update() {
    check(&Page { path: "docs/update.md", run: 1, not_run: 1, tools: &["mke2fs", "debugfs"] });
}

#[test]
fn the_first_minutes() {
    check(&Page { path: "docs/getting-started.md", run: 2, not_run: 5, tools: &["mke2fs"] });
}
