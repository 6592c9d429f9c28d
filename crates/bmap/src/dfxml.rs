//! The map as Digital Forensics XML, as `fiwalk` writes it. Written only.
//!
//! Each filesystem is a `volume`, each name of a file or directory in it a `fileobject`, and each
//! of its ranges a `byte_run`. Elements and attributes follow the schema of the DFXML working
//! group, in the order that it demands. Attributes in a namespace of our own hold what the schema
//! lacks. `docs/formats.md` lists the parts of a map that are in the file, and those that are not.

use chrono::{DateTime, SecondsFormat};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use super::escape::escape_to_utf8;
use super::header::Filesystem;
use super::model::{Map, Object, ObjectId, Piece};
use super::object::{Kind, Marks, ObjectName};
use super::role::PieceFlags;
use virt_bmap_ranges::{DiskNumber, DiskRange};

/// The schema's namespace.
pub const NAMESPACE: &str = "http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML";

/// The namespace of the attributes that the schema does not have.
pub const OUR_NAMESPACE: &str = "https://github.com/virt-bmap-rs/virt-bmap-rs/ns/dfxml";

/// Writes `map`. Needs no buffered output.
///
/// # Errors
/// If the output fails.
pub fn write(map: &Map, output: impl Write) -> io::Result<()> {
    let output = BufWriter::with_capacity(256 * 1024, output);
    let mut xml = Xml { writer: Writer::new_with_indent(output, b' ', 1) };
    xml.event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let root = [
        ("xmlns", NAMESPACE),
        ("xmlns:dc", "http://purl.org/dc/elements/1.1/"),
        ("xmlns:bmap", OUR_NAMESPACE),
        ("version", "1.0"),
    ];
    xml.begin("dfxml", &root)?;
    xml.begin("metadata", &[])?;
    xml.text("dc:type", "Disk Image")?;
    xml.end("metadata")?;
    let header = map.header();
    if let Some((program, version)) = header.generator.rsplit_once(' ') {
        xml.begin("creator", &[])?;
        xml.text("program", &escape_to_utf8(program.as_bytes()))?;
        xml.text("version", &escape_to_utf8(version.as_bytes()))?;
        xml.end("creator")?;
    }
    xml.begin("source", &[])?;
    for image in &header.images {
        xml.text("image_filename", &escape_to_utf8(&image.image.name))?;
    }
    xml.end("source")?;
    let mut numbers = Numbers::default();
    for (device, objects) in volumes(map) {
        numbers.volume += 1;
        Volume::new(map, device).write(&mut xml, map, &objects, &mut numbers)?;
    }
    xml.end("dfxml")?;
    xml.writer.get_mut().write_all(b"\n")?;
    xml.writer.get_mut().flush()
}

/// The devices with a filesystem, each with its objects.
fn volumes(map: &Map) -> BTreeMap<&[u8], Vec<ObjectId>> {
    let mut volumes: BTreeMap<&[u8], Vec<ObjectId>> = BTreeMap::new();
    for filesystem in &map.header().filesystems {
        volumes.entry(&filesystem.device).or_default();
    }
    for object in map.objects().filter(|object| !object.name().path.is_empty()) {
        volumes.entry(object.name().device).or_default().push(object.id());
    }
    volumes
}

/// `fiwalk` counts volumes and files from 1.
#[derive(Default)]
struct Numbers {
    volume: u64,
    file: u64,
}

/// A device with a filesystem.
struct Volume<'a> {
    device: &'a [u8],
    filesystem: Option<&'a Filesystem>,
    /// The place of the device: each of its pieces, with its offset in the device, ascending on the
    /// disks. Empty if it is not known.
    pieces: Vec<(Piece, u64)>,
}

impl<'a> Volume<'a> {
    fn new(map: &'a Map, device: &'a [u8]) -> Self {
        let kinds = [Kind::LogicalVolume, Kind::MappedDevice, Kind::Partition, Kind::Disk];
        let object = kinds.into_iter().find_map(|kind| map.find(ObjectName::device(kind, device)));
        let pieces: Vec<Piece> = object.into_iter().flat_map(Object::pieces).collect();
        let offset = |piece: &Piece| piece.file_offset.map(|offset| offset.0);
        let pieces = match pieces.as_slice() {
            // One piece is the whole device.
            [only] => vec![(*only, offset(only).unwrap_or(0))],
            pieces => pieces.iter().filter_map(|piece| Some((*piece, offset(piece)?))).collect(),
        };
        let filesystem = map.header().filesystems.iter().find(|filesystem| filesystem.device == device);
        Self { device, filesystem, pieces }
    }

    /// Where on its disk the device begins, if it lies there in one piece.
    fn partition_offset(&self) -> Option<u64> {
        match self.pieces.as_slice() {
            [(piece, 0)] => Some(piece.range.start.0),
            _ => None,
        }
    }

    /// Where in the device a range of a disk begins, if that is known.
    fn fs_offset(&self, disk: DiskNumber, range: DiskRange) -> Option<u64> {
        let end =
            self.pieces.partition_point(|(piece, _)| (piece.disk, piece.range.start) <= (disk, range.start));
        let (piece, offset) = self.pieces[..end].last()?;
        (piece.disk == disk && piece.range.contains(range))
            .then(|| offset + (range.start.0 - piece.range.start.0))
    }

    fn write(
        &self,
        xml: &mut Xml<impl Write>,
        map: &Map,
        objects: &[ObjectId],
        numbers: &mut Numbers,
    ) -> io::Result<()> {
        let offset = self.partition_offset().map(|offset| offset.to_string());
        let device = escape_to_utf8(self.device);
        let attributes = offset.iter().map(|offset| ("offset", offset.as_str()));
        xml.begin("volume", &attributes.chain([("bmap:device", &*device)]).collect::<Vec<_>>())?;
        xml.number("partition_offset", self.partition_offset())?;
        if let Some(filesystem) = self.filesystem {
            let block_size = filesystem.block_size.filter(|&size| size > 0);
            xml.number("block_size", block_size)?;
            xml.text("ftype_str", &escape_to_utf8(filesystem.kind.as_bytes()))?;
            let blocks = filesystem.size.zip(block_size).map(|(size, block)| size / block);
            xml.number("block_count", blocks)?;
        }
        xml.number("allocated_only", Some(1))?;
        for &object in objects {
            numbers.file += 1;
            self.write_object(xml, map, map.object(object), numbers)?;
        }
        xml.end("volume")
    }

    fn write_object(
        &self,
        xml: &mut Xml<impl Write>,
        map: &Map,
        object: Object<'_>,
        numbers: &Numbers,
    ) -> io::Result<()> {
        let (name, attributes) = (object.name(), object.attributes());
        let marks = attributes.marks.names().collect::<Vec<_>>().join(" ");
        let reparse = attributes.reparse.map(|tag| tag.to_string()).unwrap_or_default();
        let mut list = vec![("bmap:marks", marks.as_str()), ("bmap:reparse", reparse.as_str())];
        list.retain(|(_, value)| !value.is_empty());
        xml.begin("fileobject", &list)?;
        if let Some(inode) = parent(map, name).and_then(|parent| parent.attributes().inode) {
            xml.begin("parent_object", &[])?;
            xml.number("inode", Some(inode))?;
            xml.end("parent_object")?;
        }
        // fiwalk's name for the root, which no file can have.
        let filename = name.path.strip_prefix(b"/").unwrap_or(name.path);
        let filename = if filename.is_empty() { &b"."[..] } else { filename };
        xml.text("filename", &escape_to_utf8(filename))?;
        xml.number("partition", Some(numbers.volume))?;
        xml.number("id", Some(numbers.file))?;
        let (name_type, meta_type) = match name.kind {
            Kind::Directory => ("d", Some(2)),
            Kind::File => ("r", Some(1)),
            Kind::Symlink => ("l", Some(6)),
            // "Virtual", as $FAT1 is to the Sleuth Kit.
            _ => ("v", None),
        };
        xml.text("name_type", name_type)?;
        xml.number("filesize", attributes.size)?;
        xml.number("alloc", Some(1))?;
        if attributes.marks.contains(Marks::ENCODED) {
            xml.number("compressed", Some(1))?;
        }
        xml.number("inode", attributes.inode)?;
        xml.number("meta_type", meta_type)?;
        xml.number("mode", attributes.mode.map(|mode| u64::from(mode & 0o7777)))?;
        xml.number("nlink", attributes.links.map(u64::from))?;
        for (element, time) in [("mtime", attributes.modified), ("ctime", attributes.changed)] {
            if let Some(time) = time {
                let time = DateTime::from_timestamp_nanos(time);
                xml.text(element, &time.to_rfc3339_opts(SecondsFormat::AutoSi, true))?;
            }
        }
        self.write_runs(xml, object)?;
        xml.end("fileobject")
    }

    /// Writes the runs in the order of the file, so that reading them in this order gives the file.
    fn write_runs(&self, xml: &mut Xml<impl Write>, object: Object<'_>) -> io::Result<()> {
        let is_run = |piece: &Piece| piece.role.copy == 0 && !piece.role.flags.contains(PieceFlags::PARITY);
        let mut runs: Vec<Piece> = object.pieces().filter(is_run).collect();
        // A file ends within its last block.
        if let (Kind::File, Some(size)) = (object.kind(), object.attributes().size) {
            for run in &mut runs {
                if let Some(offset) = run.file_offset
                    && !run.role.flags.contains(PieceFlags::ENCODED)
                {
                    let left = size.saturating_sub(offset.0);
                    run.range.end.0 = run.range.end.0.min(run.range.start.0.saturating_add(left));
                }
            }
            runs.retain(|run| !run.range.is_empty());
        }
        runs.sort_by_key(|run| (run.file_offset.is_none(), run.file_offset));
        if runs.is_empty() {
            return Ok(());
        }
        xml.begin("byte_runs", &[])?;
        for run in &runs {
            self.write_run(xml, run)?;
        }
        xml.end("byte_runs")
    }

    fn write_run(&self, xml: &mut Xml<impl Write>, run: &Piece) -> io::Result<()> {
        let mut element = BytesStart::new("byte_run");
        let mut number = |key, value: u64| element.push_attribute((key, value.to_string().as_str()));
        if let Some(offset) = run.file_offset {
            number("file_offset", offset.0);
        }
        if let Some(offset) = self.fs_offset(run.disk, run.range) {
            number("fs_offset", offset);
        }
        number("img_offset", run.range.start.0);
        number("len", run.range.len());
        if run.disk != 1 {
            number("bmap:disk", run.disk.into());
        }
        if run.role.flags.contains(PieceFlags::UNWRITTEN) {
            element.push_attribute(("fill", "0"));
        }
        if run.role.flags.contains(PieceFlags::INLINE) {
            element.push_attribute(("type", "resident"));
        }
        if !run.role.flags.is_empty() {
            let flags = run.role.flags.names().collect::<Vec<_>>().join(" ");
            element.push_attribute(("bmap:flags", flags.as_str()));
        }
        xml.event(Event::Empty(element))
    }
}

/// The directory in which the object is.
fn parent<'a>(map: &'a Map, name: ObjectName<'_>) -> Option<Object<'a>> {
    let (path, _) = name.in_directory()?;
    map.find(ObjectName::path(Kind::Directory, name.device, path))
}

/// The elements of the document.
struct Xml<W: Write> {
    writer: Writer<W>,
}

impl<W: Write> Xml<W> {
    fn event(&mut self, event: Event<'_>) -> io::Result<()> {
        self.writer.write_event(event)
    }

    fn begin(&mut self, name: &str, attributes: &[(&str, &str)]) -> io::Result<()> {
        self.event(Event::Start(BytesStart::new(name).with_attributes(attributes.iter().copied())))
    }

    fn end(&mut self, name: &str) -> io::Result<()> {
        self.event(Event::End(BytesEnd::new(name)))
    }

    fn text(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.begin(name, &[])?;
        self.event(Event::Text(BytesText::new(text)))?;
        self.end(name)
    }

    fn number(&mut self, name: &str, number: Option<u64>) -> io::Result<()> {
        number.map_or(Ok(()), |number| self.text(name, &number.to_string()))
    }
}
