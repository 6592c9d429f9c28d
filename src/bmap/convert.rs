//! Maps in files: which format a file is in, reading it, writing it, and from one to the other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

use super::escape::Printable;
use super::model::Map;
use super::output::{Output, OutputError};
use super::text;

/// A format that maps are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The [text map](text).
    Text,
}

impl Format {
    /// The format of a file of this name, by its suffix. What has no suffix of another format is a
    /// text map: the original's are often called just `bmap`.
    pub fn of(path: &Path) -> Self {
        let _ = path; // there is but one, so far
        Self::Text
    }

    /// Reads a map in this format.
    ///
    /// # Errors
    /// If the input cannot be read, or is no such map.
    pub fn read(self, input: impl Read) -> Result<Map, text::ReadError> {
        match self {
            Self::Text => text::read(input),
        }
    }

    /// Writes a map in this format.
    ///
    /// # Errors
    /// If the output cannot be written, or the format cannot hold the map.
    pub fn write(self, map: &Map, output: impl Write) -> Result<(), text::WriteError> {
        match self {
            Self::Text => text::write(map, output),
        }
    }
}

/// Why a map could not be read from a file, or written to one.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The input could not be opened.
    #[error("{}: could not be opened", Printable(.path.as_os_str().as_bytes()))]
    Open {
        /// The input.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The input is no map.
    #[error("{}: could not be read as a map", Printable(.path.as_os_str().as_bytes()))]
    Read {
        /// The input.
        path: PathBuf,
        /// Why.
        source: text::ReadError,
    },
    /// The map could not be written.
    #[error("{}: could not be written", Printable(.path.as_os_str().as_bytes()))]
    Write {
        /// The output.
        path: PathBuf,
        /// Why.
        source: text::WriteError,
    },
    /// The output could not be begun, or not be completed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Reads the map in `path`, or on standard input if that is `-`.
///
/// # Errors
/// [`ConvertError::Open`], [`ConvertError::Read`].
pub fn load(path: &Path) -> Result<Map, ConvertError> {
    let format = Format::of(path);
    let map = if path == Path::new("-") {
        format.read(io::stdin())
    } else {
        let open = |source| ConvertError::Open { path: path.to_owned(), source };
        format.read(File::open(path).map_err(open)?)
    };
    map.map_err(|source| ConvertError::Read { path: path.to_owned(), source })
}

/// Writes a map to `path`, or to standard output if that is `-`. The file is replaced when the new
/// one is whole.
///
/// # Errors
/// [`ConvertError::Write`], [`ConvertError::Output`].
pub fn save(map: &Map, path: &Path) -> Result<(), ConvertError> {
    let mut output = Output::create(path)?;
    Format::of(path)
        .write(map, &mut output)
        .map_err(|source| ConvertError::Write { path: path.to_owned(), source })?;
    Ok(output.commit()?)
}

/// Reads the map `input` and writes it to `output`, each in the format that its name says. They may
/// be the same file.
///
/// # Errors
/// See [`load`] and [`save`].
pub fn convert(input: &Path, output: &Path) -> Result<(), ConvertError> {
    save(&load(input)?, output)
}
