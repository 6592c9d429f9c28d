//! The class `Map`.

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyString, PyTuple};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use virt_bmap_map as bmap;
use virt_bmap_map::list::{Select, glob, list};
use virt_bmap_map::lookup::{DiskSize, disk_size, tally};
use virt_bmap_map::{Kind, ObjectId, ObjectName, diff};
use virt_bmap_ranges::{DiskNumber, DiskOffset, Printable, error_chain};

use crate::answers::{self, Changes, Files, Objects, Overlaps, Ranges};
use crate::rows::Rows;
use crate::{arrow, errors, header, names, ranges};

/// A block map: which objects each byte of a guest's disks belongs to.
///
/// It is held in memory once, and cannot be changed. Several threads may query it.
///
/// Disks are numbered from 1. Offsets and sizes are numbers of bytes; the end of a range is the
/// first byte after it.
#[pyclass(frozen, module = "virt_bmap")]
pub(crate) struct Map {
    map: Arc<bmap::Map>,
    path: PathBuf,
    /// The sizes of the disks that were asked for: computing one may take a walk over all objects.
    sizes: Mutex<HashMap<DiskNumber, DiskSize>>,
}

#[pymethods]
impl Map {
    /// Reads a map from a file.
    ///
    /// The format is recognised by the contents: the text map, JSON Lines, CSV, each also
    /// compressed with gzip or zstd. Parquet and DFXML are only written by the program, and
    /// refused.
    ///
    /// Raises OSError if the file cannot be read, and MapError, a ValueError, if it is not a map or
    /// is damaged. MapError has the attributes path and line.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        // For `load`, a dash is standard input.
        let file =
            if path == Path::new("-") { Cow::Borrowed(Path::new("./-")) } else { Cow::Borrowed(&*path) };
        let map = py.detach(|| bmap::load(&file)).map_err(|error| errors::of_map(py, &error, &path))?;
        Ok(Self { map: Arc::new(map), path, sizes: Mutex::default() })
    }

    /// The file that it was read from.
    #[getter]
    fn path(&self) -> &OsStr {
        self.path.as_os_str()
    }

    /// Program and version that made the map.
    #[getter]
    fn generator(&self) -> &str {
        &self.map.header().generator
    }

    /// Whether nothing is missing: no warning says so.
    #[getter]
    fn complete(&self) -> bool {
        self.map.header().is_complete()
    }

    /// The share of the bytes in use that have an owner, from 0 to 1, rounded down to the hundredth
    /// of a percent; None if no filesystem says which bytes are in use.
    #[getter]
    fn explained(&self) -> Option<f64> {
        self.map.header().explained().map(|hundredths| hundredths as f64 / 10_000.0)
    }

    /// The sum of the balances of all filesystems; None if none of them says which bytes are in
    /// use.
    #[getter]
    fn balance<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        header::balance(py, self.map.header().balance())
    }

    /// The guest's disks. CSV has none.
    #[getter]
    fn disks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        tuple(py, &self.map.header().images, header::disk)
    }

    /// The filesystems that were examined.
    #[getter]
    fn filesystems<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        tuple(py, &self.map.header().filesystems, header::filesystem)
    }

    /// What could not be examined, and what else a reader should know.
    #[getter]
    fn warnings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        tuple(py, &self.map.header().warnings, header::warning)
    }

    /// Other comment lines of a text map, without the #.
    #[getter]
    fn comments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        tuple(py, &self.map.header().comments, |py, comment| Ok(names::text(py, comment)?.into_any()))
    }

    /// Number of objects.
    #[getter]
    fn object_count(&self) -> usize {
        self.map.objects().len()
    }

    /// Number of ranges of all objects.
    #[getter]
    fn range_count(&self) -> usize {
        self.map.pieces().len()
    }

    /// Returns the objects that a byte belongs to, the most specific first: the file before its
    /// partition and its disk. The list is empty if no object has the byte.
    ///
    /// The first call builds an index of the map.
    ///
    /// Parameters
    /// ----------
    /// disk: number of the disk, from 1.
    /// offset: the byte's offset on the disk.
    ///
    /// Raises ValueError if the map has no such disk, or the offset is past its end.
    fn at<'py>(&self, py: Python<'py>, disk: DiskNumber, offset: u64) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.check(disk, offset.saturating_add(1), None)?;
        let offset = DiskOffset(offset);
        let hits = py.detach(|| self.map.at(disk, offset));
        hits.iter().map(|hit| answers::hit(py, disk, offset, hit)).collect()
    }

    /// Divides the bytes of ranges among the objects that they belong to: the answer of
    /// `lookup --ranges`.
    ///
    /// Parameters
    /// ----------
    /// ranges: an iterable of pairs (start, end) in bytes, in any order; each byte counts once. Or
    /// what read_ranges returned: then the list must be for a disk of this size, if it says so.
    /// disk: number of the disk, from 1.
    ///
    /// Raises ValueError if the map has no such disk, or the ranges do not fit it: a list of
    /// another disk would give plausible but wrong answers.
    #[pyo3(signature = (ranges, disk = 1))]
    fn overlaps<'py>(
        &self,
        py: Python<'py>,
        ranges: &Bound<'py, PyAny>,
        disk: DiskNumber,
    ) -> PyResult<Bound<'py, PyAny>> {
        let given = ranges::given(ranges)?;
        self.check(disk, given.ranges.end(), given.disk_size)?;
        let asked = given.ranges;
        py.detach(|| Overlaps::new(&self.map, &tally(&self.map, disk, &asked))).into_row(py)
    }

    /// Lists files with their bytes on disk, number of pieces and shared bytes: the answer of
    /// `list`. A file with several names is there once, under the first that matches.
    ///
    /// Parameters
    /// ----------
    /// glob: a pattern of whole paths, or several. * and ? match anything but /, ** also matches /.
    /// types: the letters of the types of objects to list.
    /// device: list only objects on this device.
    #[pyo3(signature = (glob = None, *, types = "f", device = None))]
    fn files(
        &self,
        py: Python<'_>,
        glob: Option<&Bound<'_, PyAny>>,
        types: &str,
        device: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Rows> {
        let select = select(glob, types, device)?;
        Ok(Rows::of(py.detach(|| Files::new(&self.map, &list(&self.map, &select)))))
    }

    /// Returns all objects with their attributes, in the order of type, device and path.
    ///
    /// Parameters
    /// ----------
    /// types: only objects of these types, by their letters; by default all.
    #[pyo3(signature = (types = None))]
    fn objects(&self, types: Option<&str>) -> PyResult<Rows> {
        let kinds = types.map(kinds).transpose()?;
        let objects = self.map.objects();
        let objects =
            objects.filter(|object| kinds.as_ref().is_none_or(|kinds| kinds.contains(&object.kind())));
        let objects = objects.map(bmap::Object::id).collect();
        Ok(Rows::of(Objects { map: Arc::clone(&self.map), objects }))
    }

    /// Returns the ranges of the disks that belong to a file, a directory or other object with a
    /// path, ascending by disk and offset.
    ///
    /// Parameters
    /// ----------
    /// path: the path from the root of its filesystem, or None for a device.
    /// device: the device that it is on; needed if several filesystems have the path.
    /// type: the letter of its type; needed if a path has several, as metadata of a file does.
    ///
    /// Raises KeyError if there is no such object, and ValueError if there are several.
    #[pyo3(signature = (path, *, device = None, r#type = None))]
    fn ranges(
        &self,
        path: Option<&Bound<'_, PyAny>>,
        device: Option<&Bound<'_, PyAny>>,
        r#type: Option<&str>,
    ) -> PyResult<Rows> {
        let path = path.map(names::bytes).transpose()?.unwrap_or_default();
        let device = device.map(names::bytes).transpose()?;
        let kinds = r#type.map(kinds).transpose()?.unwrap_or_else(|| Kind::ALL.to_vec());
        let object = self.only(&path, device.as_deref(), &kinds)?;
        Ok(Rows::of(Ranges { map: Arc::clone(&self.map), object }))
    }

    /// Returns the differences to a later map of the guest, those with the most bytes gained and
    /// lost first: the answer of `diff`.
    ///
    /// If one map has more than the other, such as metadata or inodes, it is first reduced to what
    /// both have.
    fn diff(&self, py: Python<'_>, new: &Self) -> PyResult<Rows> {
        let changes = py.detach(|| {
            let (old, new) = diff::level(Cow::Borrowed(&*self.map), Cow::Borrowed(&*new.map))
                .map(|(old, later)| (shared(&self.map, old), shared(&new.map, later)))?;
            Ok(Changes::between(old, new))
        });
        changes.map(Rows::of).map_err(|error: diff::LevelError| errors::value(error_chain(&error)))
    }

    /// Exports the map as an Arrow stream (the Arrow PyCapsule interface): one row for each range,
    /// with the columns of CSV and Parquet maps.
    ///
    /// pyarrow.table(map), polars.DataFrame(map), duckdb and others read it, in batches of at most
    /// 65,536 rows. A name that is not plain text is escaped; unescape returns its bytes.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // The interface permits a producer to ignore the request.
        let _ = requested_schema;
        arrow::stream(py, &self.map)
    }

    /// Returns the map as a pyarrow.Table. Needs pyarrow.
    fn to_arrow<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        this.py().import("pyarrow")?.call_method1("table", (this,))
    }

    /// Returns the map as a pandas.DataFrame. Needs pandas and pyarrow.
    fn to_pandas<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::to_arrow(this)?.call_method0("to_pandas")
    }

    fn __repr__(&self) -> String {
        format!(
            "<virt_bmap.Map {}: {} objects, {} ranges>",
            Printable::path(&self.path),
            self.object_count(),
            self.range_count()
        )
    }
}

impl Map {
    /// Whether the map has a disk of this number that has all bytes before `end`, and as many as a
    /// list is for.
    fn check(&self, disk: DiskNumber, end: u64, of_list: Option<u64>) -> PyResult<()> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let size = *sizes.entry(disk).or_insert_with(|| disk_size(&self.map, disk));
        match (size, of_list) {
            (DiskSize::NoDisk, _) => Err(errors::value(format!("the map has no disk {disk}"))),
            (DiskSize::Bytes(size), Some(wanted)) if size != wanted => Err(errors::value(format!(
                "the list is for a disk of {wanted} bytes, but disk {disk} of the map has {size} bytes"
            ))),
            (DiskSize::Bytes(size), _) if end > size => Err(errors::value(format!(
                "byte {} is past the end of disk {disk}, which has {size} bytes",
                end - 1
            ))),
            _ => Ok(()),
        }
    }

    /// The only object of this path, on this device if it is given, and of one of these kinds.
    fn only(&self, path: &[u8], device: Option<&[u8]>, kinds: &[Kind]) -> PyResult<ObjectId> {
        let mut found = None;
        for device in self.map.devices().filter(|it| device.is_none_or(|device| device == *it)) {
            for &kind in kinds {
                let name = ObjectName { kind, device, path };
                let Some(object) = self.map.find(name) else { continue };
                if let Some(other) = found.replace(object) {
                    let other = other.name();
                    return Err(errors::value(format!("there are several: `{other}` and `{name}`")));
                }
            }
        }
        let found = found.map(bmap::Object::id);
        found.ok_or_else(|| PyKeyError::new_err(format!("the map has no {}", Printable(path))))
    }
}

/// The map that [`diff::level`] returned: the one that it was lent, or a new one.
fn shared(lent: &Arc<bmap::Map>, map: Cow<'_, bmap::Map>) -> Arc<bmap::Map> {
    match map {
        Cow::Borrowed(_) => Arc::clone(lent),
        Cow::Owned(map) => Arc::new(map),
    }
}

fn kinds(letters: &str) -> PyResult<Vec<Kind>> {
    let known = || Kind::ALL.map(|kind| char::from(kind.letter())).into_iter().collect::<String>();
    let kind = |letter| {
        Kind::from_letter(letter)
            .ok_or_else(|| errors::value(format!("the letters of types are {}", known())))
    };
    letters.bytes().map(kind).collect()
}

/// What to list. `globs` is a pattern, or an iterable of patterns.
fn select(
    globs: Option<&Bound<'_, PyAny>>,
    types: &str,
    device: Option<&Bound<'_, PyAny>>,
) -> PyResult<Select> {
    let pattern = |given: &Bound<'_, PyAny>| {
        let pattern: Cow<'_, str> = given.extract()?;
        glob(&pattern).map_err(|error| errors::value(format!("invalid pattern: {error}")))
    };
    let globs = match globs {
        None => Vec::new(),
        Some(one) if one.is_instance_of::<PyString>() => vec![pattern(one)?],
        Some(several) => several.try_iter()?.map(|given| pattern(&given?)).collect::<PyResult<_>>()?,
    };
    Ok(Select { kinds: kinds(types)?, device: device.map(names::bytes).transpose()?, globs })
}

fn tuple<'py, T>(
    py: Python<'py>,
    items: &[T],
    row: impl Fn(Python<'py>, &T) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, items.iter().map(|item| row(py, item)).collect::<PyResult<Vec<_>>>()?)
}
