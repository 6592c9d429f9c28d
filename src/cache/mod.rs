//! The program's cache: what it can make again, in `$XDG_CACHE_HOME/virt-bmap-rs`.
//!
//! Everything in it is used only if nobody but this user, or root, can have written it:
//! see [`TrustedDirectory`].

pub mod beside;
mod key;
pub mod maps;
pub mod origin;
mod trusted;

pub(crate) use key::{KeyBuilder, hex};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
pub use trusted::{TrustError, TrustedDirectory};

/// The directory of the cache, which may not exist yet. `None` if neither `XDG_CACHE_HOME` nor
/// `HOME` names a directory.
pub fn directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("virt-bmap-rs"))
}

/// Most bytes of a note.
const MOST_BYTES: u64 = 64 << 10;

impl TrustedDirectory {
    /// The text of a note: a small file. `None` if there is none that can be trusted.
    pub fn note(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        self.file(name).ok()??.take(MOST_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Writes a note, atomically. Notes save time; without one, the next run finds out again.
    ///
    /// # Errors
    /// The system's.
    pub fn write_note(&self, name: &str, text: &str) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.path())?;
        file.write_all(text.as_bytes())?;
        file.persist(self.path().join(name))?;
        Ok(())
    }
}
