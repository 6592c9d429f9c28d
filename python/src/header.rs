//! The facts of a map's header, as rows.

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use virt_bmap_map as bmap;
use virt_bmap_map::{ImageFile, ImageInfo, Subject, Warning};

use crate::errors;
use crate::names::text;
use crate::rows::{RowClass, row};

static BALANCE: RowClass = RowClass::new("Balance");
static DISK: RowClass = RowClass::new("Disk");
static FILESYSTEM: RowClass = RowClass::new("Filesystem");
static IMAGE: RowClass = RowClass::new("Image");
static WARNING: RowClass = RowClass::new("MapWarning");

fn image<'py>(py: Python<'py>, image: &ImageFile) -> PyResult<Bound<'py, PyAny>> {
    row!(py, IMAGE, text(py, &image.name)?, &image.format)
}

/// A disk of the guest.
pub(crate) fn disk<'py>(py: Python<'py>, disk: &ImageInfo) -> PyResult<Bound<'py, PyAny>> {
    let backing = disk.chain.iter().map(|file| image(py, file)).collect::<PyResult<Vec<_>>>()?;
    row!(
        py,
        DISK,
        disk.disk,
        disk.size,
        disk.sector,
        image(py, &disk.image)?,
        disk.snapshot.as_deref(),
        PyTuple::new(py, backing)?,
    )
}

/// A filesystem.
pub(crate) fn filesystem<'py>(py: Python<'py>, filesystem: &bmap::Filesystem) -> PyResult<Bound<'py, PyAny>> {
    row!(
        py,
        FILESYSTEM,
        text(py, &filesystem.device)?,
        &filesystem.kind,
        filesystem.block_size,
        filesystem.size,
        filesystem.free,
        filesystem.free_mapped,
        filesystem.directories,
        filesystem.files,
        balance(py, filesystem.balance)?,
    )
}

/// A balance, or `None`.
pub(crate) fn balance<'py>(py: Python<'py>, balance: Option<bmap::Balance>) -> PyResult<Bound<'py, PyAny>> {
    let Some(sum) = balance else { return Ok(py.None().into_bound(py)) };
    row!(
        py,
        BALANCE,
        sum.used,
        sum.files,
        sum.directories,
        sum.metadata,
        sum.superseded,
        sum.unexplained,
        sum.claimed_twice,
        sum.claimed_free,
    )
}

/// A warning.
pub(crate) fn warning<'py>(py: Python<'py>, warning: &Warning) -> PyResult<Bound<'py, PyAny>> {
    let (device, path, image) = match &warning.subject {
        Subject::Device(device) => (Some(device), None, None),
        Subject::Path { device, path } => (Some(device), Some(path), None),
        Subject::Image(image) => (None, None, Some(image)),
        Subject::Guest => (None, None, None),
    };
    let name = |name: Option<&Vec<u8>>| name.map(|name| text(py, name)).transpose();
    // The cause has a form in JSON, which docs/formats.md describes.
    let cause = serde_json::to_string(&warning.cause).map_err(|error| errors::value(error.to_string()))?;
    let data = py.import("json")?.call_method1("loads", (cause,))?;
    let kind = data.call_method1("pop", ("kind",))?;
    row!(
        py,
        WARNING,
        kind,
        warning.is_incomplete(),
        name(device)?,
        name(path)?,
        name(image)?,
        data,
        warning.to_string(),
    )
}
