//! Errors as Python's exceptions: `OSError` if a file cannot be read, `MapError` (a `ValueError`)
//! if it is not what it should be.

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::error::Error;
use std::io;
use std::path::Path;
use virt_bmap_map::rangelist::ListError;
use virt_bmap_map::{ConvertError, ReadError, csv, jsonl, text};
use virt_bmap_ranges::{Printable, error_chain};

static MAP_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// A `MapError` about `path`, with the number of the wrong line if it is known.
fn map_error(py: Python<'_>, message: &str, path: &Path, line: Option<u64>) -> PyErr {
    let make =
        || MAP_ERROR.import(py, "virt_bmap._types", "MapError")?.call1((message, path.as_os_str(), line));
    make().map_or_else(|error| error, PyErr::from_value)
}

/// The exception for an error of the system; Python selects its subclass by the number.
pub(crate) fn os_error(error: &io::Error, path: &Path) -> PyErr {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default().to_owned();
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, words, path.as_os_str().to_owned())),
        None => PyOSError::new_err(format!("{}: {text}", Printable::path(path))),
    }
}

/// The system's error among an error and its causes.
fn from_system<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>().filter(|it| it.raw_os_error().is_some()) {
            return Some(error);
        }
        next = error.source();
    }
    None
}

/// The exception for a map that could not be read.
pub(crate) fn of_map(py: Python<'_>, error: &ConvertError, path: &Path) -> PyErr {
    if let Some(error) = from_system(error) {
        return os_error(error, path);
    }
    let line = match error {
        ConvertError::Read { source, .. } => line(source),
        _ => None,
    };
    map_error(py, &error_chain(error), path, line)
}

/// The number of the wrong line.
fn line(error: &ReadError) -> Option<u64> {
    match error {
        ReadError::Text(text::ReadError::Line { line, .. })
        | ReadError::JsonLines(jsonl::ReadError::Line { line, .. })
        | ReadError::Csv(csv::ReadError::Row { line, .. }) => Some(*line),
        // These are about the first line.
        ReadError::Text(text::ReadError::NotAMap { .. })
        | ReadError::JsonLines(jsonl::ReadError::NotAMap | jsonl::ReadError::Version { .. })
        | ReadError::Csv(csv::ReadError::NotAMap) => Some(1),
        _ => None,
    }
}

/// The exception for a list of ranges that could not be read.
pub(crate) fn of_list(py: Python<'_>, error: &ListError, path: &Path) -> PyErr {
    if let Some(error) = from_system(error) {
        return os_error(error, path);
    }
    let line = if let ListError::Line { line, .. } = error { Some(*line) } else { None };
    map_error(py, &format!("{}: {}", Printable::path(path), error_chain(error)), path, line)
}

/// A `ValueError` about an argument.
pub(crate) fn value(message: impl Into<String>) -> PyErr {
    PyValueError::new_err(message.into())
}
