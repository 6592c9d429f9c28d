//! The command `virt-bmap-rs`.

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run().into()
}
