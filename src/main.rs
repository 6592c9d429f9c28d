//! The command `virt-bmap-rs`.

#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    virt_bmap::ewf_reader::run_if_asked().unwrap_or_else(|| cli::run().into())
}
