//! Tests with guests that are corrupted or changed at random. A seed determines what happens.
//!
//! `cargo test --test torture` runs one seed of each kind. After `--`, the words `corrupted` and
//! `changed` choose a kind, `--all` chooses every seed, and numbers choose these seeds, as in `--
//! corrupted 17 40`. `make torture` and `make update-torture` run all seeds of one kind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod changed;
mod corrupted;

use std::process::ExitCode;

virt_bmap_testutil::program!();

/// Runs one kind of torture with the arguments, and returns whether it passed.
type Run = fn(&[String]) -> bool;

/// The kinds, by the words that choose them.
const KINDS: [(&str, Run); 2] = [("changed", changed::run), ("corrupted", corrupted::run)];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        KINDS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    check_places();
    // Options of a test harness are ignored. A name that is not a kind is that of a test in another
    // program.
    let names: Vec<&String> =
        args.iter().filter(|arg| !arg.starts_with('-') && arg.parse::<u64>().is_err()).collect();
    let mut passed = true;
    for (name, run) in KINDS {
        if names.is_empty() || names.iter().any(|chosen| *chosen == name) {
            println!("{name}");
            passed &= run(&args);
        }
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
