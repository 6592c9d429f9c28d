//! The records, one to a line, and how their fields are written as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::{FORMAT, FORMAT_VERSION, LineError, MAX_RANGES};
use crate::builder::MapBuilder;
use crate::header::{
    Balance, Digest, Filesystem, Header, INODES_PER_DIGEST, ImageFile, ImageInfo, InodeDigests, SECTOR,
};
use crate::model::{Dialect, Map, Object, Piece};
use crate::object::{Attributes, Kind, Marks, ObjectName};
use crate::reparse::ReparseTag;
use crate::role::{PieceFlags, Role};
use crate::warning::Warning;
use virt_bmap_ranges::{DiskRange, FileOffset};

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderRecord {
    format: Cow<'static, str>,
    version: u64,
    generator: String,
    dialect: DialectName,
    /// Number of lines that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) records: Option<u64>,
    #[serde(default)]
    images: Vec<ImageRecord>,
    #[serde(default)]
    filesystems: Vec<FilesystemRecord>,
    #[serde(default)]
    warnings: Vec<Warning>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    comments: Vec<Text>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DialectName {
    Escaped,
    Original,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageRecord {
    disk: u16,
    size: u64,
    #[serde(default = "sector", skip_serializing_if = "is_usual")]
    sector: u64,
    name: Text,
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    chain: Vec<FileRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRecord {
    name: Text,
    format: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilesystemRecord {
    device: Text,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    free: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    free_mapped: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    balance: Option<Balance>,
    directories: u64,
    files: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inodes: Vec<DigestsRecord>,
}

/// Digests of inodes that follow one another.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestsRecord {
    first: u64,
    #[serde(with = "base64_bytes")]
    digests: Vec<u8>,
}

/// A line of an object.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ObjectRecord {
    #[serde(rename = "type", with = "letter")]
    kind: Kind,
    device: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allocated: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    links: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modified: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changed: Option<i64>,
    #[serde(default, skip_serializing_if = "Marks::is_empty", with = "marks")]
    marks: Marks,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "reparse")]
    reparse: Option<ReparseTag>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ranges: Vec<RangeRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RangeRecord {
    disk: u16,
    start: u64,
    end: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    copy: u8,
    #[serde(default, skip_serializing_if = "PieceFlags::is_empty", with = "flags")]
    flags: PieceFlags,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature is serde's
fn is_zero(copy: &u8) -> bool {
    *copy == 0
}

/// Bytes: a JSON string if they are UTF-8, else `{"base64": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Text {
    /// The bytes as a path of the system.
    pub fn to_path(&self) -> PathBuf {
        OsStr::from_bytes(&self.0).into()
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(&self.0) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("base64", &BASE64.encode(&self.0))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or {\"base64\": …}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.as_bytes().to_vec()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
        let wrong = || A::Error::custom("a name must be a string or {\"base64\": …} and nothing else");
        let entry = map.next_entry::<String, String>()?.filter(|(key, _)| key == "base64");
        let Some((_, encoded)) = entry else { return Err(wrong()) };
        let bytes = BASE64.decode(encoded).map_err(A::Error::custom)?;
        if map.next_key::<IgnoredAny>()?.is_some() { Err(wrong()) } else { Ok(Text(bytes)) }
    }
}

/// Bytes as Base64.
mod base64_bytes {
    use super::{BASE64, Cow, Deserialize, Deserializer, Serializer};
    use base64::Engine as _;
    use serde::de::Error as _;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64.decode(&*Cow::<str>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A kind of object as its letter.
mod letter {
    use super::{Cow, Deserialize, Deserializer, Kind, Serializer};
    use serde::de::Error as _;

    #[allow(clippy::trivially_copy_pass_by_ref)] // the signature is serde's
    pub(super) fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_char(char::from(kind.letter()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        let letter = Cow::<str>::deserialize(deserializer)?;
        let kind = if let [letter] = letter.as_bytes() { Kind::from_letter(*letter) } else { None };
        kind.ok_or_else(|| {
            D::Error::custom(format_args!(
                "`{letter}` is no type of object (one of f, d, s, m, u, l, b, p, v)"
            ))
        })
    }
}

/// A reparse tag as text.
mod reparse {
    use super::{Cow, Deserialize, Deserializer, ReparseTag, Serializer};
    use serde::de::Error as _;

    #[allow(clippy::ref_option)] // the signature is serde's
    pub(super) fn serialize<S: Serializer>(
        tag: &Option<ReparseTag>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match tag {
            Some(tag) => serializer.collect_str(tag),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ReparseTag>, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
    }
}

/// Marks and flags as lists of their names.
macro_rules! names {
    ($module:ident, $type:ty, $what:literal) => {
        mod $module {
            use super::{Cow, Deserialize, Deserializer, Serializer};
            use serde::de::Error as _;

            #[allow(clippy::trivially_copy_pass_by_ref)] // the signature is serde's
            pub(super) fn serialize<S: Serializer>(set: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(set.names())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let names = Vec::<Cow<'de, str>>::deserialize(deserializer)?;
                let unknown = |name| D::Error::custom(format_args!(concat!("`{}` is no ", $what), name));
                names.iter().map(|name| <$type>::named(name).ok_or_else(|| unknown(name))).collect()
            }
        }
    };
}
names!(marks, super::Marks, "mark of an object");
names!(flags, super::PieceFlags, "flag of a range");

impl HeaderRecord {
    /// The record without the digests, which only an update needs.
    pub(super) fn without_digests(map: &Map) -> Self {
        let mut record = Self::new(map);
        record.filesystems.iter_mut().for_each(|filesystem| filesystem.inodes.clear());
        record
    }

    pub(super) fn new(map: &Map) -> Self {
        let Header { generator, images, filesystems, warnings, comments } = map.header();
        let records = |pieces: usize| pieces.div_ceil(MAX_RANGES).max(1) as u64;
        Self {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            generator: generator.clone(),
            dialect: match map.dialect() {
                Dialect::Escaped => DialectName::Escaped,
                Dialect::Original => DialectName::Original,
            },
            records: Some(map.objects().map(|object| records(object.pieces().len())).sum()),
            images: images.iter().map(ImageRecord::new).collect(),
            filesystems: filesystems.iter().map(FilesystemRecord::new).collect(),
            warnings: warnings.clone(),
            comments: comments.iter().cloned().map(Text).collect(),
        }
    }

    pub(super) fn unpack(self) -> (Header, Dialect) {
        let header = Header {
            generator: self.generator,
            images: self.images.into_iter().map(ImageRecord::unpack).collect(),
            filesystems: self.filesystems.into_iter().map(FilesystemRecord::unpack).collect(),
            warnings: self.warnings,
            comments: self.comments.into_iter().map(|Text(comment)| comment).collect(),
        };
        let dialect = match self.dialect {
            DialectName::Escaped => Dialect::Escaped,
            DialectName::Original => Dialect::Original,
        };
        (header, dialect)
    }
}

/// The size of a sector that is not written.
fn sector() -> u64 {
    SECTOR
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_usual(sector: &u64) -> bool {
    *sector == SECTOR
}

impl ImageRecord {
    fn new(image: &ImageInfo) -> Self {
        let FileRecord { name, format } = FileRecord::new(&image.image);
        let chain = image.chain.iter().map(FileRecord::new).collect();
        let snapshot = image.snapshot.clone();
        Self { disk: image.disk, size: image.size, sector: image.sector, name, format, snapshot, chain }
    }

    fn unpack(self) -> ImageInfo {
        let Self { disk, size, sector, name, format, snapshot, chain } = self;
        let image = FileRecord { name, format }.unpack();
        let chain = chain.into_iter().map(FileRecord::unpack).collect();
        ImageInfo { disk, size, sector, image, snapshot, chain }
    }
}

impl FileRecord {
    fn new(file: &ImageFile) -> Self {
        Self { name: Text(file.name.clone()), format: file.format.clone() }
    }

    fn unpack(self) -> ImageFile {
        ImageFile { name: self.name.0, format: self.format }
    }
}

impl FilesystemRecord {
    fn new(filesystem: &Filesystem) -> Self {
        let Filesystem {
            device,
            kind,
            block_size,
            size,
            free,
            free_mapped,
            balance,
            directories,
            files,
            inodes,
        } = filesystem.clone();
        let (device, inodes) = (Text(device), DigestsRecord::all(&inodes));
        Self { device, kind, block_size, size, free, free_mapped, balance, directories, files, inodes }
    }

    fn unpack(self) -> Filesystem {
        let Self { device, kind, block_size, size, free, free_mapped, balance, directories, files, inodes } =
            self;
        let (Text(device), inodes) = (device, inodes.iter().flat_map(DigestsRecord::unpack).collect());
        Filesystem { device, kind, block_size, size, free, free_mapped, balance, directories, files, inodes }
    }
}

impl DigestsRecord {
    fn all(digests: &InodeDigests) -> Vec<Self> {
        let mut records: Vec<Self> = Vec::new();
        let mut next = None;
        for (&first, digest) in digests {
            match records.last_mut().filter(|_| next == Some(first)) {
                Some(record) => record.digests.extend(digest),
                None => records.push(Self { first, digests: digest.to_vec() }),
            }
            next = first.checked_add(INODES_PER_DIGEST);
        }
        records
    }

    fn unpack(&self) -> impl Iterator<Item = (u64, Digest)> + '_ {
        let numbers = (0..).map_while(|number: u64| {
            number.checked_mul(INODES_PER_DIGEST).and_then(|inodes| self.first.checked_add(inodes))
        });
        numbers.zip(self.digests.as_chunks().0.iter().copied())
    }
}

impl ObjectRecord {
    /// The record of an object, without its ranges.
    pub(super) fn new(object: Object<'_>) -> Self {
        let name = object.name();
        let attributes = object.attributes();
        Self {
            kind: name.kind,
            device: Text(name.device.to_vec()),
            path: (!name.path.is_empty()).then(|| Text(name.path.to_vec())),
            inode: attributes.inode,
            size: attributes.size,
            allocated: attributes.allocated,
            links: attributes.links,
            mode: attributes.mode,
            modified: attributes.modified,
            changed: attributes.changed,
            marks: attributes.marks,
            reparse: attributes.reparse,
            ranges: Vec::new(),
        }
    }

    /// Adds the record to the map that is being read.
    pub(super) fn add_to(&self, builder: &mut MapBuilder) -> Result<(), LineError> {
        let path = self.path.as_ref().map_or(&b""[..], |Text(path)| path);
        let name = ObjectName { kind: self.kind, device: &self.device.0, path };
        let attributes = Attributes {
            owner: None,
            born: None,
            inode: self.inode,
            size: self.size,
            links: self.links,
            allocated: self.allocated,
            mode: self.mode,
            modified: self.modified,
            changed: self.changed,
            marks: self.marks,
            reparse: self.reparse,
        };
        let object = builder.object(name, attributes)?;
        for &RangeRecord { disk, start, end, offset, copy, flags } in &self.ranges {
            if end <= start {
                return Err(LineError::EndNotAfterStart { start, end });
            }
            let role = Role { copy, flags };
            builder.piece_as(object, disk, DiskRange::new(start, end), offset.map(FileOffset), role)?;
        }
        Ok(())
    }
}

impl RangeRecord {
    pub(super) fn new(piece: Piece) -> Self {
        Self {
            disk: piece.disk,
            start: piece.range.start.0,
            end: piece.range.end.0,
            offset: piece.file_offset.map(|offset| offset.0),
            copy: piece.role.copy,
            flags: piece.role.flags,
        }
    }
}
