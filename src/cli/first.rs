//! First steps: what the program says without arguments, to words that are no images, and after the
//! first map.

use super::page::Page;
use super::progress::ProgressMode;
use super::{Cli, map::MapOptions};
use anyhow::{Result, bail};
use clap::CommandFactory as _;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use virt_bmap::mapper::{GuestDisk, Mapped};
use virt_bmap_image::Location;
use virt_bmap_map::{FileType, Format};
use virt_bmap_ranges::Printable;

/// What the program says without arguments.
pub(super) fn introduction() -> String {
    format!(
        "\
Finds out which file each byte of a virtual machine's disks belongs to.

  virt-bmap-rs guest.qcow2                     map a guest that is shut off, to guest.bmap
  virt-bmap-rs lookup guest.bmap 0x541000      what lies at this offset of the disk
  virt-bmap-rs list guest.bmap --sort on-disk  the files, the largest first
  virt-bmap-rs report guest.bmap               the map as a picture, in a web page

`virt-bmap-rs --help` has all commands and options, `virt-bmap-rs COMMAND --help` those of one.
First steps: {}",
        Page::START
    )
}

/// How the maps of this program begin.
const BEGINNINGS: [&[u8]; 2] = [b"# virt-bmap-rs ", b"{\"format\":\"virt-bmap\""];

/// The first bytes of a regular file.
fn beginning(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if path.is_file()
        && let Ok(file) = File::open(path)
    {
        let _ = file.take(64).read_to_end(&mut bytes);
    }
    bytes
}

/// Refuses what stands in the place of an image and is a command or a map. The message says what
/// was meant.
pub(super) fn refuse(disks: &[GuestDisk]) -> Result<()> {
    for disk in disks {
        let Location::File(path) = &disk.location else { continue };
        let Some(word) = path.to_str() else { continue };
        let command = Cli::command();
        let commands: Vec<_> =
            command.get_subcommands().filter(|it| !it.is_hide_set()).map(clap::Command::get_name).collect();
        if !path.exists() && commands.contains(&word) {
            bail!("`{word}` comes before everything else: virt-bmap-rs {word} …");
        }
        if !path.exists() && !word.contains(['.', '/']) {
            bail!(
                "{word:?}: there is no such file, and no such command; the commands are {}",
                commands.join(", ")
            );
        }
        if disk.format.is_none() && BEGINNINGS.iter().any(|it| beginning(path).starts_with(it)) {
            bail!(
                "{path:?} is a block map and not a disk image; `virt-bmap-rs lookup`, `list` and `report` read \
                 it (--format raw takes it for a disk all the same)"
            );
        }
    }
    Ok(())
}

/// Refuses to replace a file that is no text map, where nobody named the file. The images that
/// bmap-tools write have such a file beside them.
pub(super) fn refuse_to_replace(out: &Path) -> Result<()> {
    let beginning = beginning(out);
    if beginning.first().is_some_and(|byte| *byte != b'#' && !byte.is_ascii_digit()) {
        bail!(
            "{}: this file exists and is not a block map, so it is not replaced; name another with -o",
            Printable::path(out)
        );
    }
    Ok(())
}

/// After the first map, names the commands that come next. Only people need them.
pub(super) fn next_commands(mapped: &Mapped, out: &Path, options: &MapOptions) {
    let can_be_read = !matches!(FileType::of(out).format, Format::Dfxml | Format::Parquet);
    let is_for_people =
        options.progress == ProgressMode::Auto && !options.quiet && std::io::stderr().is_terminal();
    if !is_for_people || !can_be_read || mapped.counts.files == 0 || !out.is_file() {
        return;
    }
    // A name that a shell reads in another way is left to the user.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/+,".contains(c);
    let name = out.to_str().filter(|name| name.chars().all(is_plain)).unwrap_or("MAP");
    note!("next: virt-bmap-rs lookup {name} OFFSET, or virt-bmap-rs report {name}");
}
