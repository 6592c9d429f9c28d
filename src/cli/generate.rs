//! `virt-bmap-rs generate`: man pages and shell completions, for packagers.

use super::Exit;
use anyhow::{Context as _, Result};
use clap_complete::Shell;
use std::path::PathBuf;

/// Generate man pages or shell completions.
#[derive(Debug, clap::Args)]
pub(super) struct GenerateArgs {
    #[command(subcommand)]
    artifact: Artifact,
}

#[derive(Debug, clap::Subcommand)]
enum Artifact {
    /// Write the man pages into a directory
    Man {
        /// The directory
        directory: PathBuf,
    },
    /// Write the completions of a shell to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
}

pub(super) fn run(args: &GenerateArgs, mut command: clap::Command) -> Result<Exit> {
    match &args.artifact {
        Artifact::Man { directory } => {
            clap_mangen::generate_to(command, directory)
                .with_context(|| format!("{}: cannot write the man pages", directory.display()))?;
        }
        Artifact::Completions { shell } => {
            clap_complete::generate(*shell, &mut command, "virt-bmap-rs", &mut std::io::stdout());
        }
    }
    Ok(Exit::Success)
}
