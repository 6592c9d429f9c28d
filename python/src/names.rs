//! Names from inside a guest, which are bytes, as Python's text.
//!
//! Python decodes names of the system with the error handler `surrogateescape` (PEP 383): a byte
//! that is not UTF-8 becomes a lone surrogate, and encoding restores it. Names in a guest are the
//! same kind of thing.

use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use virt_bmap_map::{ObjectName, csv};

/// A name as `str`.
pub(crate) fn text<'py>(py: Python<'py>, name: &[u8]) -> PyResult<Bound<'py, PyString>> {
    match std::str::from_utf8(name) {
        Ok(name) => Ok(PyString::new(py, name)),
        Err(_) => {
            let bytes = PyBytes::new(py, name);
            PyString::from_encoded_object(&bytes, Some(c"utf-8"), Some(c"surrogateescape"))
        }
    }
}

/// The bytes of a name that is `str` or `bytes`.
pub(crate) fn bytes(name: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = name.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    let encoded = name.cast::<PyString>()?.call_method1("encode", ("utf-8", "surrogateescape"))?;
    Ok(encoded.cast::<PyBytes>()?.as_bytes().to_vec())
}

/// The letter of an object's kind.
pub(crate) fn letter<'py>(py: Python<'py>, name: ObjectName<'_>) -> Bound<'py, PyString> {
    PyString::new(py, char::from(name.kind.letter()).encode_utf8(&mut [0; 4]))
}

/// The path of an object, `None` if it has none.
pub(crate) fn path<'py>(py: Python<'py>, name: ObjectName<'_>) -> PyResult<Bound<'py, PyAny>> {
    (!name.path.is_empty()).then(|| text(py, name.path)).transpose()?.into_bound_py_any(py)
}

/// Returns a name, which is str or bytes, as Arrow, CSV and Parquet tables have it.
///
/// The result is printable in one line, and no formula for a spreadsheet. unescape returns the
/// name's bytes.
#[pyfunction]
pub(crate) fn escape(name: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(csv::cell(&bytes(name)?).into_owned())
}

/// Returns the bytes of a name that is escaped as in Arrow, CSV and Parquet tables.
///
/// A backslash and three octal digits become a byte.
///
/// Raises ValueError if a backslash does not begin such an escape.
#[pyfunction]
pub(crate) fn unescape<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyBytes>> {
    let name = virt_bmap_map::escape::unescape(name.as_bytes());
    name.map(|name| PyBytes::new(py, &name))
        .map_err(|error| pyo3::exceptions::PyValueError::new_err(error.to_string()))
}
