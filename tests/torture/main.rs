//! Guests that are corrupted or changed at random, by seeds.
//!
//! `cargo test --test torture` does one seed of each kind. Words after `--` choose: `corrupted` or
//! `changed` one kind, `--all` every seed, and numbers these seeds, as in `-- corrupted 17 40`.
//! `make torture` and `make update-torture` do all seeds of a kind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod changed;
mod corrupted;

use std::process::ExitCode;

virt_bmap_testutil::program!();

/// A kind of torture. It is given the arguments and says whether it passed.
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
    // Of the words of a harness none is known here; a name that is no kind is a test of another
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
