//! Answers with many rows: a sequence that makes each row when it is asked for.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PySlice, PyTuple, PyType};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A class of rows: a named tuple in `virt_bmap._types`.
pub(crate) struct RowClass {
    name: &'static str,
    class: PyOnceLock<Py<PyType>>,
}

impl RowClass {
    /// The class of this name.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, class: PyOnceLock::new() }
    }

    /// A row with these fields.
    pub(crate) fn row<'py, const N: usize>(
        &self,
        py: Python<'py>,
        fields: [Bound<'py, PyAny>; N],
    ) -> PyResult<Bound<'py, PyAny>> {
        self.class(py)?.call1(PyTuple::new(py, fields)?)
    }

    /// The class itself.
    pub(crate) fn class<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyType>> {
        self.class.import(py, "virt_bmap._types", self.name)
    }
}

/// Makes a row of a [`RowClass`]: `row!(py, CLASS, field, field, …)`.
macro_rules! row {
    ($py:expr, $class:expr, $($field:expr),+ $(,)?) => {
        $class.row($py, [$(pyo3::IntoPyObjectExt::into_bound_py_any($field, $py)?),+])
    };
}
pub(crate) use row;

/// Where rows come from.
pub(crate) trait Source: Send + Sync {
    /// The class of the rows.
    fn class(&self) -> &'static RowClass;

    /// Number of rows.
    fn len(&self) -> usize;

    /// The row of this number, which is less than [`len`](Self::len).
    fn row<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyAny>>;
}

/// The rows of an answer.
///
/// A sequence of named tuples. A row is made when it is asked for: the rows together take no more
/// memory than a few numbers each.
#[pyclass(frozen, module = "virt_bmap")]
pub(crate) struct Rows(Arc<dyn Source>);

impl Rows {
    /// The rows of `source`.
    pub(crate) fn of(source: impl Source + 'static) -> Self {
        Self(Arc::new(source))
    }
}

#[pymethods]
impl Rows {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __iter__(&self) -> RowIterator {
        RowIterator { source: Arc::clone(&self.0), next: AtomicUsize::new(0) }
    }

    /// Returns the row of this number, or a list of rows for a slice.
    fn __getitem__<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = key.py();
        let length = self.0.len();
        if let Ok(slice) = key.cast::<PySlice>() {
            let slice = slice.indices(isize::try_from(length)?)?;
            let rows = PyList::empty(py);
            let mut place = slice.start;
            for _ in 0..slice.slicelength {
                rows.append(self.0.row(py, place.unsigned_abs())?)?;
                place += slice.step;
            }
            return Ok(rows.into_any());
        }
        let number: isize = key.extract()?;
        let from_end = if number < 0 { length } else { 0 };
        match from_end.checked_add_signed(number).filter(|number| *number < length) {
            Some(number) => self.0.row(py, number),
            None => Err(PyIndexError::new_err(format!("there are {length} rows"))),
        }
    }

    /// The names of the fields of a row.
    #[getter]
    fn fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.class().class(py)?.getattr("_fields")
    }

    /// Returns the rows as a pandas.DataFrame, with a column for each field. Needs pandas.
    ///
    /// Names are escaped as in the other tables: see escape.
    fn to_pandas<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        this.py().import("virt_bmap._tables")?.call_method1("frame", (this,))
    }

    fn __repr__(&self) -> String {
        format!("<virt_bmap.Rows: {}>", self.0.len())
    }

    /// `Rows[File]` in annotations.
    #[classmethod]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        of: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        class.py().import("types")?.getattr("GenericAlias")?.call1((class, of))
    }
}

/// Goes over rows.
#[pyclass(frozen, module = "virt_bmap")]
pub(crate) struct RowIterator {
    source: Arc<dyn Source>,
    next: AtomicUsize,
}

#[pymethods]
impl RowIterator {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.source.len() {
            self.next.store(self.source.len(), Ordering::Relaxed);
            return Ok(None);
        }
        self.source.row(py, number).map(Some)
    }

    fn __length_hint__(&self) -> usize {
        self.source.len().saturating_sub(self.next.load(Ordering::Relaxed))
    }
}
