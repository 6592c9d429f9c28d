//! Tables of `docs/performance.md` that a benchmark writes. So no table is older than the command
//! that it names.

use std::fs;
use std::path::Path;

/// Replaces the text between `<!-- begin NAME -->` and `<!-- end NAME -->`.
///
/// # Panics
/// If the page cannot be read or written, or has no such marks.
pub(crate) fn replace(name: &str, table: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let text = fs::read_to_string(&page).expect("docs/performance.md can be read");
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = text.split_once(&begin).expect("the page has the mark");
    let (_, after) = rest.split_once(&end).expect("the page has the mark's end");
    fs::write(&page, format!("{before}{begin}\n{}\n\n{end}{after}", table.trim()))
        .expect("docs/performance.md can be written");
}
