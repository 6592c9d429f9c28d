//! Tests of the examples in the documentation that need an appliance.

use std::path::Path;
use virt_bmap_testutil::pages::Page;

#[test]
fn an_update() {
    let page = Page { path: "docs/update.md", run: 1, not_run: 1, tools: &["mke2fs", "debugfs"] };
    page.check_with_appliance(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        Path::new(env!("CARGO_BIN_EXE_virt-bmap-rs")),
    );
}
