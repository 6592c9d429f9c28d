//! The rows of answers. They hold numbers of objects, and look the rest up in the map.

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::sync::Arc;
use virt_bmap_map as bmap;
use virt_bmap_map::diff::{self, Changed};
use virt_bmap_map::hardlinks::File;
use virt_bmap_map::list::Listed;
use virt_bmap_map::lookup::{MapHit, Share, Tally};
use virt_bmap_map::{Hit, Map, ObjectId};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange};

use crate::names::{letter, path, text};
use crate::rows::{RowClass, Rows, Source, row};

static CHANGE: RowClass = RowClass::new("Change");
static FILE: RowClass = RowClass::new("File");
static HIT: RowClass = RowClass::new("Hit");
static OBJECT: RowClass = RowClass::new("Object");
static OVERLAPS: RowClass = RowClass::new("Overlaps");
static RANGE: RowClass = RowClass::new("Range");
static SHARE: RowClass = RowClass::new("Share");

/// An object at a byte.
pub(crate) fn hit<'py>(
    py: Python<'py>,
    disk: DiskNumber,
    offset: DiskOffset,
    hit: &Hit<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    let name = hit.object.name();
    let inside = hit.file_offset.map(|inside| inside.0);
    row!(py, HIT, disk, offset.0, letter(py, name), text(py, name.device)?, path(py, name)?, inside)
}

/// Files, as `list` lists them.
pub(crate) struct Files {
    map: Arc<Map>,
    files: Vec<ListedFile>,
}

/// A [`Listed`] without its reference to the map.
struct ListedFile {
    object: ObjectId,
    names: u32,
    on_disk: u64,
    shared: u64,
    pieces: u64,
    first: Option<(DiskNumber, DiskRange)>,
}

impl Files {
    /// The files that `listed` lists; they are of `map`.
    pub(crate) fn new(map: &Arc<Map>, listed: &[Listed<'_>]) -> Self {
        let files = listed.iter().map(|listed| ListedFile {
            object: listed.file.object.id(),
            names: listed.file.names,
            on_disk: listed.on_disk,
            shared: listed.shared,
            pieces: listed.pieces,
            first: listed.first,
        });
        Self { map: Arc::clone(map), files: files.collect() }
    }
}

impl Source for Files {
    fn class(&self) -> &'static RowClass {
        &FILE
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn row<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyAny>> {
        let file = &self.files[number];
        let object = self.map.object(file.object);
        let (name, known) = (object.name(), object.attributes());
        row!(
            py,
            FILE,
            letter(py, name),
            text(py, name.device)?,
            path(py, name)?,
            file.names,
            known.inode,
            known.size,
            file.on_disk,
            file.shared,
            file.pieces,
            file.first.map(|(disk, _)| disk),
            file.first.map(|(_, range)| range.start.0),
        )
    }
}

/// Parts of queried bytes.
struct Shares {
    map: Arc<Map>,
    shares: Vec<Part>,
}

/// A [`Share`] without its reference to the map.
struct Part {
    bytes: u64,
    what: &'static str,
    object: Option<ObjectId>,
    names: Option<u32>,
}

impl Part {
    fn new(share: &Share<'_>) -> Self {
        let (what, object, names) = match share.place {
            MapHit::Object(File { object, names }) => ("object", Some(object.id()), Some(names)),
            MapHit::Free(holder) => ("free", Some(holder.id()), None),
            MapHit::Unmapped => ("unmapped", None, None),
        };
        Self { bytes: share.bytes, what, object, names }
    }
}

impl Source for Shares {
    fn class(&self) -> &'static RowClass {
        &SHARE
    }

    fn len(&self) -> usize {
        self.shares.len()
    }

    fn row<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyAny>> {
        let share = &self.shares[number];
        let object = share.object.map(|id| self.map.object(id));
        let name = object.map(bmap::Object::name);
        row!(
            py,
            SHARE,
            share.bytes,
            share.what,
            name.map(|name| letter(py, name)),
            name.map(|name| text(py, name.device)).transpose()?,
            name.map(|name| path(py, name)).transpose()?,
            share.names,
            object.and_then(|object| object.attributes().inode),
        )
    }
}

/// Queried bytes without a reference to the map.
pub(crate) struct Overlaps {
    shares: Shares,
    bytes: u64,
    in_objects: u64,
    free: u64,
    unmapped: u64,
}

impl Overlaps {
    /// What `tally` says; it is of `map`.
    pub(crate) fn new(map: &Arc<Map>, tally: &Tally<'_>) -> Self {
        let shares = tally.shares.iter().map(Part::new).collect();
        Self {
            shares: Shares { map: Arc::clone(map), shares },
            bytes: tally.bytes,
            in_objects: tally.in_objects,
            free: tally.free,
            unmapped: tally.unmapped,
        }
    }

    /// The answer for Python.
    pub(crate) fn into_row(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        row!(py, OVERLAPS, Rows::of(self.shares), self.bytes, self.in_objects, self.free, self.unmapped)
    }
}

/// Differences between two maps.
pub(crate) struct Changes {
    old: Arc<Map>,
    new: Arc<Map>,
    changes: Vec<ChangedObject>,
}

/// A [`Changed`] without its references to the maps.
struct ChangedObject {
    change: diff::Change,
    old: Option<ObjectId>,
    new: Option<ObjectId>,
    names: u32,
    old_bytes: u64,
    new_bytes: u64,
    gained: u64,
    lost: u64,
}

impl ChangedObject {
    fn new(changed: &Changed<'_>) -> Self {
        Self {
            change: changed.change,
            old: changed.old.map(bmap::Object::id),
            new: changed.new.map(bmap::Object::id),
            names: changed.names,
            old_bytes: changed.old_bytes,
            new_bytes: changed.new_bytes,
            gained: changed.gained,
            lost: changed.lost,
        }
    }
}

impl Changes {
    /// The differences of two maps, those with the most bytes gained and lost first.
    pub(crate) fn between(old: Arc<Map>, new: Arc<Map>) -> Self {
        let mut changes: Vec<_> = diff::diff(&old, &new).iter().map(ChangedObject::new).collect();
        changes.sort_by_key(|changed| std::cmp::Reverse(changed.gained.saturating_add(changed.lost)));
        Self { old, new, changes }
    }
}

impl Source for Changes {
    fn class(&self) -> &'static RowClass {
        &CHANGE
    }

    fn len(&self) -> usize {
        self.changes.len()
    }

    fn row<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyAny>> {
        let changed = &self.changes[number];
        let old = changed.old.map(|id| self.old.object(id));
        let new = changed.new.map(|id| self.new.object(id));
        let name = match changed.change {
            diff::Change::Removed | diff::Change::Unlinked => old,
            _ => new,
        }
        .map(bmap::Object::name);
        let known =
            |object: Option<bmap::Object<'_>>| object.map(bmap::Object::attributes).unwrap_or_default();
        row!(
            py,
            CHANGE,
            changed.change.word(),
            name.map(|name| letter(py, name)),
            name.map(|name| text(py, name.device)).transpose()?,
            new.map(|object| path(py, object.name())).transpose()?,
            old.map(|object| path(py, object.name())).transpose()?,
            changed.names,
            known(old).inode,
            known(new).inode,
            changed.old_bytes,
            changed.new_bytes,
            changed.gained,
            changed.lost,
            known(new).size,
        )
    }
}

/// Objects of a map.
pub(crate) struct Objects {
    pub(crate) map: Arc<Map>,
    pub(crate) objects: Vec<ObjectId>,
}

impl Source for Objects {
    fn class(&self) -> &'static RowClass {
        &OBJECT
    }

    fn len(&self) -> usize {
        self.objects.len()
    }

    fn row<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyAny>> {
        let object = self.map.object(self.objects[number]);
        let (name, known) = (object.name(), object.attributes());
        row!(
            py,
            OBJECT,
            letter(py, name),
            text(py, name.device)?,
            path(py, name)?,
            known.inode,
            known.size,
            known.allocated,
            known.links,
            known.mode,
            known.modified,
            known.changed,
            PyTuple::new(py, known.marks.names().collect::<Vec<_>>())?,
            known.reparse.map(|tag| tag.to_string()),
        )
    }
}

/// The ranges of an object.
pub(crate) struct Ranges {
    pub(crate) map: Arc<Map>,
    pub(crate) object: ObjectId,
}

impl Source for Ranges {
    fn class(&self) -> &'static RowClass {
        &RANGE
    }

    fn len(&self) -> usize {
        self.map.object(self.object).pieces().len()
    }

    fn row<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyAny>> {
        let piece = self.map.object(self.object).nth_piece(number);
        let piece = piece.ok_or_else(|| pyo3::exceptions::PyIndexError::new_err("no such range"))?;
        row!(
            py,
            RANGE,
            piece.disk,
            piece.range.start.0,
            piece.range.end.0,
            piece.file_offset.map(|offset| offset.0),
            piece.role.copy,
            PyTuple::new(py, piece.role.flags.names().collect::<Vec<_>>())?,
        )
    }
}
