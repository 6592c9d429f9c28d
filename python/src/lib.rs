//! The extension module `virt_bmap._native`: the crate `virt-bmap-map` for Python.
//!
//! A [`Map`](map::Map) holds the map once. Answers are [`Rows`](rows::Rows): they hold numbers of
//! objects, and make a Python object of a row only when it is asked for. The classes of rows are
//! named tuples in `lib/virt_bmap/_types.py`, and the types of all this are in
//! `lib/virt_bmap/_native.pyi`.
//!
//! Maps come from guests, which are not trusted. A map that cannot be read is a `ValueError`
//! (`MapError`), never a panic.

use pyo3::prelude::*;

mod answers;
mod arrow;
mod errors;
mod header;
mod map;
mod names;
mod ranges;
mod rows;

/// Reads and queries block maps.
#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::map::Map;
    #[pymodule_export]
    use super::names::{escape, unescape};
    #[pymodule_export]
    use super::ranges::read_ranges;
    #[pymodule_export]
    use super::rows::Rows;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
