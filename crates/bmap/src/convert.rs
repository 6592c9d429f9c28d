//! Reads, writes and converts the files of maps.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

use super::format::{self, FileType, ReadError, WriteError};
use super::model::Map;
use super::output::{Output, OutputError};
use virt_bmap_ranges::Printable;

/// Why a map could not be read from a file, or written to one.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The input could not be opened.
    #[error("{}: could not be opened", Printable::path(.path))]
    Open {
        /// The input.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The input is not a map.
    #[error("{}: could not be read as a map", Printable::path(.path))]
    Read {
        /// The input.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// The map could not be written.
    #[error("{}: could not be written", Printable::path(.path))]
    Write {
        /// The output.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// The output could not be created or completed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Reads the map in `path`, or on standard input if that is `-`, in any format that can be read.
///
/// # Errors
/// [`ConvertError::Open`], [`ConvertError::Read`].
pub fn load(path: &Path) -> Result<Map, ConvertError> {
    let named = FileType::of(path).format;
    let map = if path == Path::new("-") {
        format::read(io::stdin(), named)
    } else {
        let open = |source| ConvertError::Open { path: path.to_owned(), source };
        format::read(File::open(path).map_err(open)?, named)
    };
    map.map_err(|source| ConvertError::Read { path: path.to_owned(), source })
}

/// Writes a map to `path` in the format of its suffix, or as text to standard output if `path` is
/// `-`. An existing file is replaced when the new one is complete.
///
/// # Errors
/// [`ConvertError::Write`], [`ConvertError::Output`].
pub fn save(map: &Map, path: &Path) -> Result<(), ConvertError> {
    let mut output = Output::create(path)?;
    write(map, &mut output)?;
    Ok(output.commit()?)
}

/// Writes a map to an open output, in the format of its suffix. The caller
/// [commits](Output::commit) it.
///
/// # Errors
/// [`ConvertError::Write`].
pub fn write(map: &Map, output: &mut Output) -> Result<(), ConvertError> {
    let file = FileType::of(output.path());
    let path = output.path().to_owned();
    file.write(map, output).map_err(|source| ConvertError::Write { path, source })
}

/// Reads the map `input` and writes it to `output` in the format of its suffix. Both may be the
/// same file.
///
/// # Errors
/// See [`load`] and [`save`].
pub fn convert(input: &Path, output: &Path) -> Result<(), ConvertError> {
    save(&load(input)?, output)
}
