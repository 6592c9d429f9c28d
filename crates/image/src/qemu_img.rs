//! Runs `qemu-img` to identify and check images.

use super::access::Access;
use super::block_device::Description;
use super::file::PlainFile;
use super::format::format_by_name;
use super::link::{Link, Node};
use super::map_entry::{self, MapEntry};
use super::{ImageFormat, OpenError, references};
use serde::Deserialize;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use virt_bmap_child as child;

/// The program.
pub(super) const QEMU_IMG: &str = "qemu-img";

/// Address space of `qemu-img`, which reads hostile images.
const MEMORY: u64 = 1 << 30;

/// Time for `qemu-img info`, which only reads a few headers.
const INFO_TIME: Duration = Duration::from_secs(20);

/// Time for `qemu-img check`, which reads all of an image's tables: enough for some terabytes.
const CHECK_TIME: Duration = Duration::from_secs(20);

/// The output of `qemu-img info --output=json`: `ImageInfo` in qemu's `qapi/block-core.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Info {
    /// Name of the block driver.
    pub(super) format: String,
    /// Whether the image was not closed as it should be.
    #[serde(default)]
    pub(super) dirty_flag: bool,
    /// Whether its data are encrypted by qemu.
    #[serde(default)]
    pub(super) encrypted: bool,
    /// Bytes of the guest's disk.
    pub(super) virtual_size: u64,
    /// Bytes in which the image's file is allocated, where its format has such a unit.
    pub(super) cluster_size: Option<u64>,
    /// The snapshots inside it, in the order of its table.
    #[serde(default)]
    pub(super) snapshots: Vec<SnapshotInfo>,
}

/// A snapshot inside an image.
#[derive(Debug, Deserialize)]
pub(super) struct SnapshotInfo {
    /// Its name.
    pub(super) name: String,
}

/// Identifies one file: detects its format, or confirms the format in `link`. Backing files are not
/// opened.
///
/// # Errors
/// qemu-img refuses the file, or cannot be run.
pub(super) fn info(link: &Link, access: &Access) -> Result<Info, OpenError> {
    patiently(link, || info_once(link, access))
}

/// Opens an image. What is on an NBD server is tried for a second: a server that takes one
/// connection at a time notices only after a while that the one before has been closed.
///
/// # Errors
/// That of the last attempt.
pub(super) fn patiently<T>(link: &Link, open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    const ATTEMPTS: u32 = 5;
    const PAUSE: Duration = Duration::from_millis(200);
    let attempts = if matches!(link.node, Node::Nbd(_)) { ATTEMPTS } else { 0 };
    for _ in 0..attempts {
        match open() {
            Err(OpenError::Corrupt { .. } | OpenError::Refused { .. }) => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    open()
}

fn info_once(link: &Link, access: &Access) -> Result<Info, OpenError> {
    let description = Description::of_file(link, access)?;
    let output = run("info", &description, &link.path, INFO_TIME, access.force_share)?;
    if !output.status.success() {
        return Err(complaint(QEMU_IMG, &output.stderr, &description, link));
    }
    let info: Info = serde_json::from_slice(&output.stdout).map_err(|error| OpenError::Refused {
        program: QEMU_IMG,
        path: link.path.clone(),
        reason: format!("its answer is not understood: {error}"),
    })?;
    if info.encrypted && access.key.is_none() {
        return Err(OpenError::Encrypted { path: link.path.clone() });
    }
    Ok(info)
}

/// Checks all tables of the image at the top of `description`, at `path`: they must not point
/// outside the file. An image passes if the check takes too long, or if its format has no check.
///
/// # Errors
/// [`OpenError::Corrupt`] if it is damaged.
pub(super) fn check(description: &Description, path: &Path, format: ImageFormat) -> Result<(), OpenError> {
    let output = match run("check", description, path, CHECK_TIME, false) {
        Ok(output) => output,
        Err(OpenError::TimedOut { .. }) => {
            tracing::warn!(path = %path.display(), "the image is so large that it was not checked for damage");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // 0: whole; 3: only leaked clusters; 63: a format without check; 2: corrupt; 1: could not
    // finish, which for a VMDK is how damage is reported. See qemu-img(1).
    let is_corrupt = match output.status.code() {
        Some(2) => true,
        Some(1) => output.stderr.windows(5).any(|window| window == b"ERROR"),
        _ => false,
    };
    if !is_corrupt {
        return Ok(());
    }
    let mut reason = child::message(&first_lines(&output.stderr, 2));
    if output.stderr.is_empty() {
        "qemu-img check finds errors in it".clone_into(&mut reason);
    }
    Err(OpenError::Corrupt { path: path.to_owned(), format, reason })
}

/// Calls `each` with the place of every range of the disk, in ascending order. `path` is the image.
/// The limit is of processor time, since qemu-img reads all tables of the chain.
///
/// # Errors
/// qemu-img cannot be run, or fails.
pub(super) fn map(
    description: &Description,
    path: &Path,
    cpu: Duration,
    force_share: bool,
    each: impl FnMut(MapEntry),
) -> Result<(), OpenError> {
    let command = command("map", description, path, force_share)?;
    ask(QEMU_IMG, command, path, cpu, |stdout| map_entry::read(stdout, each))
}

/// Runs a program on an image, with a limit on its processor time. An error of the program takes
/// precedence over one of the reader.
///
/// # Errors
/// When it cannot be run, fails, or gives an answer that is not understood.
pub(super) fn ask<T, E: std::error::Error>(
    program: &'static str,
    mut command: Command,
    path: &Path,
    cpu: Duration,
    read: impl FnOnce(&mut dyn io::Read) -> Result<T, E>,
) -> Result<T, OpenError> {
    child::limit(&mut command, MEMORY, cpu);
    let (output, taken) = child::read(command, read).map_err(|source| cannot_run(program, path, source))?;
    let refused = |reason| OpenError::Refused { program, path: path.to_owned(), reason };
    if !output.status.success() {
        return Err(refused(child::message(&output.stderr)));
    }
    taken.map_err(|error| {
        refused(format!("its answer is not understood: {}", virt_bmap_ranges::error_chain(&error)))
    })
}

fn first_lines(text: &[u8], count: usize) -> Vec<u8> {
    text.split_inclusive(|byte| *byte == b'\n').take(count).flatten().copied().collect()
}

fn run(
    subcommand: &str,
    description: &Description,
    path: &Path,
    limit: Duration,
    force_share: bool,
) -> Result<child::Output, OpenError> {
    let mut command = command(subcommand, description, path, force_share)?;
    child::limit(&mut command, MEMORY, limit);
    child::run(command, limit).map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut => OpenError::TimedOut { program: QEMU_IMG, path: path.to_owned(), limit },
        _ => cannot_run(QEMU_IMG, path, source),
    })
}

fn command(
    subcommand: &str,
    description: &Description,
    path: &Path,
    force_share: bool,
) -> Result<Command, OpenError> {
    let mut command = child::command(QEMU_IMG.as_ref());
    command.args([subcommand, "--output=json"]);
    if force_share {
        command.arg("--force-share");
    }
    description.state(&mut command, path)?;
    Ok(command)
}

/// Classifies the failure to start one of qemu's programs.
pub(super) fn cannot_run(program: &'static str, path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            OpenError::NoProgram { program, path, source }
        }
        _ => OpenError::SetUp { program, path, source },
    }
}

/// Classifies the message of one of qemu's programs that refused an image.
pub(super) fn complaint(
    program: &'static str,
    stderr: &[u8],
    description: &Description,
    link: &Link,
) -> OpenError {
    let path = link.path.clone();
    let said = String::from_utf8_lossy(stderr);
    if said.contains("Failed to get") && said.contains("lock") {
        return OpenError::Locked { path };
    }
    // qcrypto_block_luks_open() in qemu's crypto/block-luks.c.
    if said.contains("Invalid password, cannot unlock any keyslot") {
        return OpenError::WrongKey { path };
    }
    // qemu advises to repair the image itself, which may be evidence.
    let has_log = PlainFile::open(&path).is_ok_and(|file| references::has_vhdx_log(&file).unwrap_or(false));
    if has_log {
        return OpenError::LogNotReplayed { path };
    }
    // qemu repeats the whole description, which is of no use to the user.
    let mut said = said.replace(&format!("'{}': ", description.as_text()), "");
    for prefix in ["qemu-img: ", "qemu-nbd: ", "Could not open ", "Failed to blk_new_open "] {
        said = said.strip_prefix(prefix).map(str::to_owned).unwrap_or(said);
    }
    let reason = child::message(said.as_bytes());
    match link.format.or_else(|| format_by_name(&path)) {
        Some(format) if format != ImageFormat::Raw => OpenError::Corrupt { path, format, reason },
        _ => OpenError::Refused { program, path, reason },
    }
}
