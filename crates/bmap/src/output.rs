//! Output files that are either complete or absent.
//!
//! The output goes to a temporary file in the same directory, which is renamed when all of it is on
//! the disk. A reader never sees half a file, and a run that fails leaves an existing file as it
//! is.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use thiserror::Error;

use virt_bmap_ranges::Printable;

/// An error of an output file.
#[derive(Debug, Error)]
#[error("{}: {what}", Printable::path(.path))]
pub struct OutputError {
    /// The file, as it was named.
    pub path: PathBuf,
    /// The step that failed.
    pub what: &'static str,
    /// Why.
    pub source: io::Error,
}

/// An output file, or standard output if it is named `-`.
///
/// If it is dropped before [`commit`](Self::commit), nothing is left of it.
///
/// ```
/// use std::io::Write;
/// use virt_bmap_map::output::Output;
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("guest.bmap");
/// let mut output = Output::create(&path)?;
/// output.write_all(b"1 0 200 v /dev/sda\n")?;
/// assert!(!path.exists());
/// output.commit()?;
/// assert!(path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Stdout(io::Stdout),
    /// A pipe, a terminal, `/dev/null`: it cannot be replaced, so it is written to directly.
    Direct(File),
    Temporary {
        file: NamedTempFile,
        /// The final name: the path that was given, or the target of that symbolic link.
        name: PathBuf,
    },
}

impl Output {
    /// Creates the output `path`.
    ///
    /// The permissions are those of the file that is replaced, or those of any new file. If the
    /// name is a symbolic link, its target is replaced. Anything that exists and is not a regular
    /// file is written to directly.
    ///
    /// # Errors
    /// The file cannot be opened, or no temporary file can be created in its directory.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let target = if path == Path::new("-") { Target::Stdout(io::stdout()) } else { Target::open(path)? };
        Ok(Self { path: path.to_owned(), target })
    }

    /// The file, as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Completes the file: when this returns, it is on the disk under its final name.
    ///
    /// # Errors
    /// The file could not be completed. An earlier file of this name is still there.
    pub fn commit(self) -> Result<(), OutputError> {
        let Self { path, target } = self;
        let error = |what, source| OutputError { path: path.clone(), what, source };
        match target {
            Target::Stdout(mut stdout) => {
                stdout.flush().map_err(|source| error("could not be written", source))
            }
            Target::Direct(_) => Ok(()),
            Target::Temporary { file, name } => {
                file.as_file()
                    .sync_all()
                    .map_err(|source| error("could not be written to the disk", source))?;
                file.persist(&name).map_err(|failed| error("could not be replaced", failed.error))?;
                // Not every filesystem can sync a directory. The file is visible under its name
                // now; only a power cut could undo that.
                if let Ok(directory) = File::open(directory_of(&name)) {
                    let _ = directory.sync_all();
                }
                Ok(())
            }
        }
    }
}

impl Target {
    fn open(path: &Path) -> Result<Self, OutputError> {
        let error = |what, source| OutputError { path: path.to_owned(), what, source };
        let mut permissions = Permissions::from_mode(0o666); // less what the umask takes away
        let mut replaced = None;
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(error("is a directory", io::ErrorKind::IsADirectory.into()));
            }
            Ok(metadata) if metadata.is_file() => {
                permissions = metadata.permissions();
                replaced = Some(permissions.clone());
            }
            Ok(_) => {
                let file = OpenOptions::new().write(true).open(path);
                return Ok(Self::Direct(file.map_err(|source| error("could not be opened", source))?));
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error("could not be opened", source)),
        }
        let name = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(Path::new(name.file_name().unwrap_or_default()));
        prefix.push(".");
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(permissions)
            .tempfile_in(directory_of(&name))
            .map_err(|source| error("could not be created", source))?;
        if let Some(permissions) = replaced {
            // Once more without the umask, which the replaced file need not have obeyed.
            let set = file.as_file().set_permissions(permissions);
            set.map_err(|source| error("could not be given its permissions", source))?;
        }
        Ok(Self::Temporary { file, name })
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.target {
            Target::Stdout(stdout) => stdout.write(bytes),
            Target::Direct(file) => file.write(bytes),
            Target::Temporary { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::Stdout(stdout) => stdout.flush(),
            Target::Direct(file) => file.flush(),
            Target::Temporary { file, .. } => file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(path: &Path, text: &[u8]) -> Result<(), OutputError> {
        let mut output = Output::create(path)?;
        output.write_all(text).unwrap();
        output.commit()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_committed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        write(&path, b"old").unwrap();

        let mut output = Output::create(&path).unwrap();
        output.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        output.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn an_uncommitted_file_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        write(&path, b"old").unwrap();
        let mut output = Output::create(&path).unwrap();
        output.write_all(b"half of the n").unwrap();
        assert_eq!(names(directory.path()).len(), 2);
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn permissions_are_those_of_any_new_file_or_of_the_replaced_one() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("out"), directory.path().join("other"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        write(&path, b"").unwrap();
        fs::write(&other, b"").unwrap();
        assert_eq!(mode(&path), mode(&other));

        for kept in [0o600, 0o666] {
            fs::set_permissions(&path, Permissions::from_mode(kept)).unwrap();
            write(&path, b"").unwrap();
            assert_eq!(mode(&path), kept);
        }
    }

    #[test]
    fn the_target_of_a_symbolic_link_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (link, file) = (directory.path().join("link"), directory.path().join("file"));
        fs::write(&file, b"old").unwrap();
        symlink("file", &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("file"));
    }

    #[test]
    fn a_pipe_is_written_to_directly() {
        write(Path::new("/dev/null"), b"text").unwrap();
        let mut full = Output::create(Path::new("/dev/full")).unwrap();
        assert_eq!(full.write_all(b"text").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn errors_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no\nsuch/out");
        let error = Output::create(&missing).unwrap_err();
        assert!(error.to_string().ends_with(r"no\012such/out: could not be created"), "{error}");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);

        let error = Output::create(directory.path()).unwrap_err();
        assert!(error.to_string().ends_with(": is a directory"), "{error}");

        fs::write(directory.path().join("file"), b"").unwrap();
        let error = Output::create(&directory.path().join("file/out")).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotADirectory);
    }
}
