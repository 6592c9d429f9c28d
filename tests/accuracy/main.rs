//! Measures how exact maps are, for each filesystem and layer, and prints a table.
//!
//! `cargo test --test accuracy` measures only the ext family. With `-- --all` (`make accuracy`) it
//! measures all guests and writes `docs/accuracy.md`. Names of guests after `--` choose these
//! guests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod arbiter;
mod compressed;
mod guests;
mod population;
mod second;
mod table;

use std::process::ExitCode;

virt_bmap_testutil::program!();

/// How many findings are printed for each row.
const SHOWN: usize = 12;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        println!("accuracy: test");
        return ExitCode::SUCCESS;
    }
    check_places();
    let is_all = args.iter().any(|arg| arg == "--all");
    let named: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut lines = Vec::new();
    let mut failed = false;
    for guest in guests::all() {
        let is_chosen = if named.is_empty() {
            is_all || guest.name == "ext"
        } else {
            named.contains(&&guest.name.to_owned())
        };
        if !is_chosen {
            continue;
        }
        if !virt_bmap_testutil::tools::installed(&guest.tools) {
            lines.extend(table::unmeasured(&guest));
            continue;
        }
        println!("{}…", guest.name);
        // If a guest cannot be made or mapped, the rows of the others are still measured.
        let measured = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table::measure(&guest)));
        failed |= measured.is_err();
        let measured = measured.unwrap_or_else(|_| table::unmeasured(&guest));
        for line in &measured {
            for (path, how) in line.wrong.iter().take(SHOWN) {
                println!("{}: {path}: {how}", line.name);
            }
            for (path, what) in line.differing.iter().take(SHOWN) {
                println!("{}: {path}: {what}", line.name);
            }
            if line.wrong.len() > SHOWN {
                println!("{}: and {} more", line.name, line.wrong.len() - SHOWN);
            }
        }
        failed |= measured.iter().any(|line| line.blocked.is_some() || !line.wrong.is_empty());
        lines.extend(measured);
    }
    let table = table::markdown(&lines);
    println!("\n{table}");
    if is_all {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/accuracy.md");
        std::fs::write(page, format!("{}{table}", include_str!("page.md"))).unwrap();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
