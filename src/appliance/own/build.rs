//! Builds our own appliance from what supermin builds of the host's packages.

use super::{initrd, kernel};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use virt_bmap_child as child;

/// Files of a fixed appliance, as libguestfs names them (guestfs-internals(1), "FIXED APPLIANCE").
pub const FILES: [&str; 4] = ["kernel", "initrd", "root", "README.fixed"];

/// The description of the appliance, beside its files.
pub const DESCRIPTION: &str = "virt-bmap.json";

/// How long supermin may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// Why there is no appliance.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// supermin could not be run.
    #[error("cannot run supermin")]
    Run(#[source] io::Error),
    /// supermin failed.
    #[error("supermin failed ({status}): {said}")]
    Supermin {
        /// Its status.
        status: std::process::ExitStatus,
        /// The last line that it printed.
        said: String,
    },
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// What is known of an appliance that has been built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The key of what it was made from.
    pub key: String,
    /// SHA-256 of the agent that is in it.
    pub agent: String,
    /// Whether the kernel was unpacked; otherwise why not.
    pub kernel: KernelForm,
    /// Size and modification time (nanoseconds since 1970) of each file.
    pub files: Vec<(String, u64, i128)>,
}

/// The kernel of an appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelForm {
    /// The ELF file, which qemu starts directly.
    Unpacked,
    /// As the host has it.
    Packed {
        /// Why.
        because: String,
    },
}

/// What an appliance is made from.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// libguestfs's directory with the lists of what supermin puts into the appliance.
    pub supermin_d: &'a Path,
    /// The key of all of this.
    pub key: String,
    /// The agent.
    pub agent: &'a [u8],
    /// Its SHA-256.
    pub agent_digest: String,
}

/// Builds an appliance in the directory `name` of `place`, which is not there yet. All that is left
/// when the build is interrupted is in `place`, too: supermin writes to `NAME.RANDOM` first.
///
/// # Errors
/// [`BuildError`]
pub fn build(place: &Path, name: &str, source: &Source<'_>) -> Result<Description, BuildError> {
    let directory = &place.join(name);
    supermin(place, directory, source.supermin_d)?;
    let path = |name: &str| directory.join(name);
    let file = |name: &str| {
        let path = path(name);
        move |source: io::Error| BuildError::File { path, source }
    };
    let packed = fs::read(path("kernel")).map_err(file("kernel"))?;
    let form = match kernel::unpack(&packed) {
        Ok(vmlinux) => {
            fs::write(path("kernel"), vmlinux).map_err(file("kernel"))?;
            KernelForm::Unpacked
        }
        Err(error) => KernelForm::Packed { because: virt_bmap_ranges::error_chain(&error) },
    };
    let of_supermin = fs::read(path("initrd")).map_err(file("initrd"))?;
    let initrd = initrd::make(&of_supermin, source.agent).map_err(file("initrd"))?;
    fs::write(path("initrd"), initrd).map_err(file("initrd"))?;
    let readme = format!(
        "An appliance for virt-bmap-rs. LIBGUESTFS_PATH can name this directory.\nkey: {}\n",
        source.key
    );
    fs::write(path("README.fixed"), readme).map_err(file("README.fixed"))?;
    let mut files = Vec::new();
    for name in FILES {
        // Whatever the umask is.
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o644)).map_err(file(name))?;
        let metadata = fs::metadata(path(name)).map_err(file(name))?;
        files.push((name.to_owned(), metadata.len(), modified(&metadata)));
    }
    let description =
        Description { key: source.key.clone(), agent: source.agent_digest.clone(), kernel: form, files };
    let text = serde_json::to_vec_pretty(&description).map_err(|error| file(DESCRIPTION)(error.into()))?;
    fs::write(path(DESCRIPTION), text).map_err(file(DESCRIPTION))?;
    fs::set_permissions(path(DESCRIPTION), fs::Permissions::from_mode(0o644)).map_err(file(DESCRIPTION))?;
    // supermin makes the directory anew.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).map_err(file(""))?;
    Ok(description)
}

/// The modification time, in nanoseconds since 1970.
pub fn modified(metadata: &fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// Gives the owner all rights in a directory and in those below it.
///
/// libguestfs 1.60 of Debian testing has an archive (`udev-rules.tar.gz`) whose directories nobody
/// but root may enter. supermin unpacks it, and cannot remove that again as an ordinary user.
fn make_removable(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).ok();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        make_removable(&entry.path());
    }
}

/// Writes an archive with what guestfsd needs on the root disk besides the host's packages: the
/// directory where it mounts the guest, and a table of mounts. The root disk is read-only.
fn write_base(path: &Path) -> io::Result<()> {
    let file = fs::File::create(path)?;
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Directory);
    archive.append_data(&mut header, "sysroot", io::empty())?;
    header.set_entry_type(tar::EntryType::Symlink);
    archive.append_link(&mut header, "etc/mtab", "/proc/mounts")?;
    archive.into_inner()?.finish()?;
    Ok(())
}

/// Has supermin build kernel, initrd and root, as libguestfs does (`lib/appliance.c`). `place` is
/// for its temporary files.
fn supermin(place: &Path, directory: &Path, supermin_d: &Path) -> Result<(), BuildError> {
    let base = place.join("base.tar.gz");
    write_base(&base).map_err(|source| BuildError::File { path: base.clone(), source })?;
    let mut command = child::command("supermin".as_ref());
    command.args(["--build", "--copy-kernel", "-f", "ext2", "--host-cpu", std::env::consts::ARCH]);
    command.arg(supermin_d).arg(&base).arg("-o").arg(directory).env("TMPDIR", place);
    let output = child::run(command, DEADLINE).map_err(BuildError::Run);
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let is_temporary = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|it| it == "tmpdir");
    entries.filter(is_temporary).for_each(|entry| make_removable(&entry.path()));
    let output = output?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned();
    Err(BuildError::Supermin { status: output.status, said })
}
