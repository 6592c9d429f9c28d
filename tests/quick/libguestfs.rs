//! The calls into libguestfs: the program makes those in docs/dependencies.md, and the installed
//! library and its header have all of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use virt_bmap_testutil::tools::{self, needs};

/// The functions in the table of the page.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dependencies.md");
    let page = fs::read_to_string(page).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Calls into libguestfs")).unwrap();
    let names = section.lines().filter(|line| line.starts_with("| `")).flat_map(|row| {
        let cell = row.split('|').nth(1).unwrap();
        cell.split(", ").map(|name| format!("guestfs_{}", name.trim().trim_matches('`'))).collect::<Vec<_>>()
    });
    names.collect()
}

/// The functions that the program takes from the library, by its dynamic symbols.
fn imported() -> BTreeSet<String> {
    let symbols = tools::run("nm", ["--dynamic", "--undefined-only", super::PROGRAM]);
    let symbols = String::from_utf8(symbols).unwrap();
    let names = symbols.lines().filter_map(|line| line.split_whitespace().last());
    // A version may follow the name.
    let names = names.map(|name| name.split('@').next().unwrap_or(name));
    names.filter(|name| name.starts_with("guestfs_")).map(str::to_owned).collect()
}

#[test]
fn the_calls_are_those_in_the_documentation() {
    needs!("nm");
    assert_eq!(imported(), documented());
}

#[test]
fn the_installed_library_has_all_calls() {
    needs!("cc");
    let place = tempfile::tempdir().unwrap();
    let calls = documented();
    assert!(calls.len() > 30, "{calls:?}");
    let mut source = "#include <guestfs.h>\nvoid (*const calls[])(void) = {\n".to_owned();
    for name in &calls {
        writeln!(source, "    (void (*)(void)) {name},").unwrap();
    }
    source.push_str("};\nint main(void) { return calls[0] == 0; }\n");
    fs::write(place.path().join("calls.c"), source).unwrap();
    let build = ["-Wall", "-Werror", "-o", "calls", "calls.c", "-lguestfs"];
    tools::output(tools::command("cc").args(build).current_dir(place.path()));
    tools::output(&mut tools::command(place.path().join("calls").to_str().unwrap()));
}
