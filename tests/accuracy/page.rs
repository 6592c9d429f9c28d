//! The page `docs/accuracy.md`.

use std::collections::HashMap;
use std::fs;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/accuracy.md");

/// Writes the page anew.
pub(crate) fn write(tables: &str) {
    fs::write(PAGE, format!("{}{tables}", include_str!("page.md"))).unwrap();
}

/// Replaces the rows of the page that were measured again.
pub(crate) fn renew(tables: &str) {
    let page = fs::read_to_string(PAGE).unwrap();
    fs::write(PAGE, renewed(&page, tables)).unwrap();
}

fn renewed(page: &str, tables: &str) -> String {
    let rows: HashMap<_, _> = tables.lines().filter_map(|line| Some((row(line)?, line))).collect();
    let lines = page.lines().map(|line| row(line).and_then(|row| rows.get(&row).copied()).unwrap_or(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// What a line of the tables is about: a filesystem or layer, and in the first table the probe.
fn row(line: &str) -> Option<(&str, Option<&str>)> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    // Both tables begin with the same word.
    let name = cells.next().filter(|name| *name != "filesystem or layer")?;
    Some((name, cells.next().filter(|cell| ["agent", "extents", "guestfsd"].contains(cell))))
}
