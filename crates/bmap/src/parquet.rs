//! The map as a table in a Parquet file, for data engines. Written only.
//!
//! Rows and columns are those of [CSV](super::csv), with types: unsigned 64-bit numbers, times, and
//! nulls for unknown values. `docs/formats.md` describes them. A [`FleetTable`] has the maps of
//! several guests, and a first column with the guest.

use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::sync::Arc;

use super::csv::{cell, list};
use super::jsonl;
use super::model::{Map, Piece};
use super::object::{Attributes, ObjectName};

/// Rows that are collected in memory and written as one group.
const GROUP: usize = 256 * 1024;

/// The key of the map's header in the file's metadata. Its value is the first line of a map in JSON
/// Lines.
pub const HEADER_KEY: &str = "virt-bmap";

/// In the order of [`csv::COLUMNS`](super::csv::COLUMNS).
const SCHEMA: &str = "message ranges {
    required int32 disk (INTEGER(16,false));
    required int64 start (INTEGER(64,false));
    required int64 end (INTEGER(64,false));
    required int64 length (INTEGER(64,false));
    required binary type (STRING);
    required binary device (STRING);
    required binary path (STRING);
    optional int64 file_offset (INTEGER(64,false));
    required int32 copy (INTEGER(8,false));
    required binary flags (STRING);
    optional int64 inode (INTEGER(64,false));
    optional int64 size (INTEGER(64,false));
    optional int64 allocated (INTEGER(64,false));
    optional int32 links (INTEGER(32,false));
    optional int32 mode (INTEGER(16,false));
    optional int64 modified (TIMESTAMP(NANOS,true));
    optional int64 changed (TIMESTAMP(NANOS,true));
    required binary marks (STRING);
    optional binary reparse (STRING);
}";

/// Writes `map`. Needs no buffered output.
///
/// # Errors
/// If the output fails.
pub fn write(map: &Map, output: impl Write + Send) -> Result<()> {
    let header =
        String::from_utf8(jsonl::header(map)).map_err(|error| ParquetError::External(error.into()))?;
    let header = KeyValue::new(HEADER_KEY.to_owned(), header);
    let mut writer = begin(SCHEMA, Some(vec![header]), output)?;
    write_rows(&mut writer, None, map)?;
    writer.close()?;
    Ok(())
}

/// The maps of several guests as one table.
pub struct FleetTable<W: Write + Send> {
    writer: SerializedFileWriter<W>,
}

impl<W: Write + Send> FleetTable<W> {
    /// Begins a table. Needs no buffered output.
    ///
    /// # Errors
    /// If the output fails.
    pub fn new(output: W) -> Result<Self> {
        let schema = SCHEMA.replacen('{', "{ required binary guest (STRING);", 1);
        Ok(Self { writer: begin(&schema, None, output)? })
    }

    /// Adds the rows of a guest's map.
    ///
    /// # Errors
    /// If the output fails.
    pub fn add(&mut self, guest: &str, map: &Map) -> Result<()> {
        write_rows(&mut self.writer, Some(guest), map)
    }

    /// Completes the table.
    ///
    /// # Errors
    /// If the output fails.
    pub fn finish(self) -> Result<()> {
        self.writer.close()?;
        Ok(())
    }
}

fn begin<W: Write + Send>(
    schema: &str,
    metadata: Option<Vec<KeyValue>>,
    output: W,
) -> Result<SerializedFileWriter<W>> {
    let properties = WriterProperties::builder()
        .set_created_by(crate::GENERATOR.to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_key_value_metadata(metadata)
        .build();
    SerializedFileWriter::new(output, Arc::new(parse_message_type(schema)?), Arc::new(properties))
}

fn write_rows<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    guest: Option<&str>,
    map: &Map,
) -> Result<()> {
    let mut pieces = map.pieces();
    while pieces.len() > 0 {
        let rows: Vec<_> = pieces.by_ref().take(GROUP).map(|piece| Row::new(map, piece)).collect();
        let mut group = writer.next_row_group()?;
        write_group(&mut group, guest, &rows)?;
        group.close()?;
    }
    Ok(())
}

struct Row<'a> {
    piece: Piece,
    name: ObjectName<'a>,
    attributes: Attributes,
}

impl<'a> Row<'a> {
    fn new(map: &'a Map, piece: Piece) -> Self {
        let object = map.object(piece.object);
        Self { piece, name: object.name(), attributes: object.attributes() }
    }
}

/// Writes the columns one after the other, as the file has them.
fn write_group<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    guest: Option<&str>,
    rows: &[Row<'_>],
) -> Result<()> {
    let mut columns = Columns { group, rows };
    if let Some(guest) = guest.map(ByteArray::from) {
        columns.needed::<ByteArrayType>(|_| guest.clone())?;
    }
    columns.needed::<Int32Type>(|row| row.piece.disk.into())?;
    columns.needed::<Int64Type>(|row| row.piece.range.start.0 as i64)?;
    columns.needed::<Int64Type>(|row| row.piece.range.end.0 as i64)?;
    columns.needed::<Int64Type>(|row| row.piece.range.len() as i64)?;
    columns.needed::<ByteArrayType>(|row| vec![row.name.kind.letter()].into())?;
    columns.needed::<ByteArrayType>(|row| text(row.name.device))?;
    columns.needed::<ByteArrayType>(|row| text(row.name.path))?;
    columns.known::<Int64Type>(|row| row.piece.file_offset.map(|offset| offset.0 as i64))?;
    columns.needed::<Int32Type>(|row| row.piece.role.copy.into())?;
    columns.needed::<ByteArrayType>(|row| names(row.piece.role.flags.names()))?;
    columns.known::<Int64Type>(|row| row.attributes.inode.map(|inode| inode as i64))?;
    columns.known::<Int64Type>(|row| row.attributes.size.map(|size| size as i64))?;
    columns.known::<Int64Type>(|row| row.attributes.allocated.map(|allocated| allocated as i64))?;
    columns.known::<Int32Type>(|row| row.attributes.links.map(|links| links as i32))?;
    columns.known::<Int32Type>(|row| row.attributes.mode.map(Into::into))?;
    columns.known::<Int64Type>(|row| row.attributes.modified)?;
    columns.known::<Int64Type>(|row| row.attributes.changed)?;
    columns.needed::<ByteArrayType>(|row| names(row.attributes.marks.names()))?;
    columns.known::<ByteArrayType>(|row| Some(row.attributes.reparse?.to_string().into_bytes().into()))
}

fn text(name: &[u8]) -> ByteArray {
    cell(name).into_owned().into_bytes().into()
}

fn names(names: impl Iterator<Item = &'static str>) -> ByteArray {
    let mut text = String::new();
    list(&mut text, names);
    text.into_bytes().into()
}

struct Columns<'a, 'b, W: Write> {
    group: &'a mut SerializedRowGroupWriter<'b, W>,
    rows: &'a [Row<'a>],
}

impl<W: Write + Send> Columns<'_, '_, W> {
    /// Writes the next column, which has a value in every row.
    fn needed<T: DataType>(&mut self, value: impl Fn(&Row<'_>) -> T::T) -> Result<()> {
        let values: Vec<T::T> = self.rows.iter().map(value).collect();
        self.write::<T>(&values, None)
    }

    /// Writes the next column, which has nulls.
    fn known<T: DataType>(&mut self, value: impl Fn(&Row<'_>) -> Option<T::T>) -> Result<()> {
        let values: Vec<Option<T::T>> = self.rows.iter().map(value).collect();
        let levels: Vec<i16> = values.iter().map(|value| value.is_some().into()).collect();
        let values: Vec<T::T> = values.into_iter().flatten().collect();
        self.write::<T>(&values, Some(&levels))
    }

    fn write<T: DataType>(&mut self, values: &[T::T], levels: Option<&[i16]>) -> Result<()> {
        let column = self.group.next_column()?;
        let mut column = column.ok_or_else(|| ParquetError::General("no further column".to_owned()))?;
        column.typed::<T>().write_batch(values, levels, None)?;
        column.close()
    }
}
