//! The map as an Arrow stream: rows and columns of the Parquet file (`crates/bmap/src/parquet.rs`),
//! made batch by batch while a consumer reads.
//!
//! [The Arrow PyCapsule interface](https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html)
//! names the capsule `arrow_array_stream`.

use arrow_array::builder::{
    StringBuilder, TimestampNanosecondBuilder, UInt8Builder, UInt16Builder, UInt32Builder, UInt64Builder,
};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::{ArrayRef, RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::fmt::Write as _;
use std::sync::Arc;
use virt_bmap_map::csv::{COLUMNS, cell};
use virt_bmap_map::{Map, Piece};

/// Most rows in a batch.
const ROWS: usize = 64 * 1024;

/// Bytes of paths after which a batch ends. A path may have 1 MiB when it is escaped, and a column
/// of texts at most 2 GiB.
const PATHS: usize = 16 << 20;

/// A capsule with a stream of the map's ranges.
pub(crate) fn stream<'py>(py: Python<'py>, map: &Arc<Map>) -> PyResult<Bound<'py, PyCapsule>> {
    let batches = Batches { map: Arc::clone(map), next: 0, schema: schema() };
    let stream = FFI_ArrowArrayStream::new(Box::new(batches));
    PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
}

/// The columns of [`COLUMNS`], with types.
fn schema() -> SchemaRef {
    let time = || DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    let fields = COLUMNS.map(|name| {
        let (kind, nullable) = match name {
            "disk" => (DataType::UInt16, false),
            "start" | "end" | "length" => (DataType::UInt64, false),
            "copy" => (DataType::UInt8, false),
            "file_offset" | "inode" | "size" | "allocated" => (DataType::UInt64, true),
            "links" => (DataType::UInt32, true),
            "mode" => (DataType::UInt16, true),
            "modified" | "changed" => (time(), true),
            "reparse" => (DataType::Utf8, true),
            _ => (DataType::Utf8, false),
        };
        Field::new(name, kind, nullable)
    });
    Arc::new(Schema::new(fields.to_vec()))
}

/// The batches of a map, made one after the other.
struct Batches {
    map: Arc<Map>,
    /// Number of the next range.
    next: usize,
    schema: SchemaRef,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut columns = Columns::default();
        while columns.rows < ROWS && columns.path_bytes < PATHS {
            let Some(piece) = self.map.nth_piece(self.next) else { break };
            columns.push(&self.map, piece);
            self.next += 1;
        }
        (columns.rows > 0).then(|| RecordBatch::try_new(Arc::clone(&self.schema), columns.finish()))
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// The columns of a batch, in the order of [`COLUMNS`].
#[derive(Default)]
struct Columns {
    rows: usize,
    path_bytes: usize,
    disk: UInt16Builder,
    start: UInt64Builder,
    end: UInt64Builder,
    length: UInt64Builder,
    kind: StringBuilder,
    device: StringBuilder,
    path: StringBuilder,
    file_offset: UInt64Builder,
    copy: UInt8Builder,
    flags: StringBuilder,
    inode: UInt64Builder,
    size: UInt64Builder,
    allocated: UInt64Builder,
    links: UInt32Builder,
    mode: UInt16Builder,
    modified: TimestampNanosecondBuilder,
    changed: TimestampNanosecondBuilder,
    marks: StringBuilder,
    reparse: StringBuilder,
}

impl Columns {
    fn push(&mut self, map: &Map, piece: Piece) {
        let object = map.object(piece.object);
        let (name, known) = (object.name(), object.attributes());
        self.disk.append_value(piece.disk);
        self.start.append_value(piece.range.start.0);
        self.end.append_value(piece.range.end.0);
        self.length.append_value(piece.range.len());
        self.kind.append_value(char::from(name.kind.letter()).encode_utf8(&mut [0; 4]));
        self.device.append_value(cell(name.device));
        let path = cell(name.path);
        self.path_bytes += path.len();
        self.path.append_value(path);
        self.file_offset.append_option(piece.file_offset.map(|offset| offset.0));
        self.copy.append_value(piece.role.copy);
        list(&mut self.flags, piece.role.flags.names());
        self.inode.append_option(known.inode);
        self.size.append_option(known.size);
        self.allocated.append_option(known.allocated);
        self.links.append_option(known.links);
        self.mode.append_option(known.mode);
        self.modified.append_option(known.modified);
        self.changed.append_option(known.changed);
        list(&mut self.marks, known.marks.names());
        self.reparse.append_option(known.reparse.map(|tag| tag.to_string()));
        self.rows += 1;
    }

    fn finish(mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.disk.finish()),
            Arc::new(self.start.finish()),
            Arc::new(self.end.finish()),
            Arc::new(self.length.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.path.finish()),
            Arc::new(self.file_offset.finish()),
            Arc::new(self.copy.finish()),
            Arc::new(self.flags.finish()),
            Arc::new(self.inode.finish()),
            Arc::new(self.size.finish()),
            Arc::new(self.allocated.finish()),
            Arc::new(self.links.finish()),
            Arc::new(self.mode.finish()),
            Arc::new(self.modified.finish().with_timezone("UTC")),
            Arc::new(self.changed.finish().with_timezone("UTC")),
            Arc::new(self.marks.finish()),
            Arc::new(self.reparse.finish()),
        ]
    }
}

/// Appends names, separated by spaces.
fn list(column: &mut StringBuilder, names: impl Iterator<Item = &'static str>) {
    for (number, name) in names.enumerate() {
        // Writing to memory cannot fail.
        let _ = write!(column, "{}{name}", if number > 0 { " " } else { "" });
    }
    column.append_value("");
}
