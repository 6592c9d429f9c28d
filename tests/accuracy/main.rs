//! Measures how exact maps are, for each filesystem and layer, and prints a table.
//!
//! `cargo test --test accuracy` measures only the ext family. With `-- --all` (`make accuracy`) it
//! measures all guests and writes `docs/accuracy.md`. Names of guests after `--` choose these
//! guests (`make accuracy ONLY=xfs`), whose rows in the page are then replaced. With `--make`, the
//! guests are only made, and the paths of their disks printed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod arbiter;
mod books;
mod compressed;
mod counts;
mod flat;
mod guests;
mod noise;
mod page;
mod peers;
mod population;
mod second;
mod table;
mod uncommon;

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
    if args.iter().any(|arg| arg == "--make") {
        let guests = guests::all().into_iter().filter(|guest| named.contains(&&guest.name.to_owned()));
        guests.flat_map(|guest| guest.images()).for_each(|disk| println!("{}", disk.display()));
        return ExitCode::SUCCESS;
    }
    let (mut lines, mut books) = (Vec::new(), Vec::new());
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
        if !guest.can_be_made() {
            lines.extend(table::unmeasured(&guest));
            continue;
        }
        println!("{}…", guest.name);
        // If a guest cannot be made or mapped, the rows of the others are still measured.
        let measured = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table::measure(&guest)));
        failed |= measured.is_err();
        let (measured, of_rows) = measured.unwrap_or_else(|_| (table::unmeasured(&guest), Vec::new()));
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
        for (row, wrong) in of_rows.iter().flat_map(|row| row.wrong.iter().map(move |wrong| (row, wrong))) {
            println!("{}: {wrong}", row.name);
        }
        failed |= measured.iter().any(table::Line::is_wrong);
        failed |= of_rows.iter().any(|row| !row.wrong.is_empty());
        lines.extend(measured);
        books.extend(of_rows);
    }
    let table = format!("{}{}{}", table::markdown(&lines), include_str!("books.md"), books::markdown(&books));
    println!("\n{table}");
    if is_all {
        page::write(&table);
    } else if !named.is_empty() {
        page::renew(&table);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
