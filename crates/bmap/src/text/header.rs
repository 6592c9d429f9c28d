//! The comment lines at the top of a text map.
//!
//! ```text
//! # virt-bmap-rs 0.1.0 map 1
//! # disk 1 size=6442450944 format=vmdk name=guest-000001.vmdk
//! # backing 1 format=vmdk name=guest.vmdk
//! # filesystem /dev/sda1 type=ext4 block-size=1024 size=507736064 free=3000 directories=10 files=309
//! # warning /dev/sda3: unknown filesystem
//! # note /dev/sda4: it is blank
//! # any other comment
//! ```

use super::FORMAT_VERSION;
use super::reader::LineError;
use super::writer::WriteError;
use crate::escape::{needs_escape, push_escaped, unescape};
use crate::header::{Balance, Filesystem, Header, ImageFile, ImageInfo, InodeDigests, SECTOR};
use crate::warning::{Cause, Warning};

/// First word of the first line of every map in our dialect. It is part of the format, whatever the
/// package is called.
const MAGIC: &[u8] = b"virt-bmap-rs ";

/// First words of comment lines that have a meaning.
const DISK: &[u8] = b"disk ";
const BACKING: &[u8] = b"backing ";
const FILESYSTEM: &[u8] = b"filesystem ";
const WARNING: &[u8] = b"warning ";
const NOTE: &[u8] = b"note ";

/// The generator, if `line` is the first of a map in our dialect.
///
/// # Errors
/// If the format is of a version that is not known.
pub(super) fn parse_first(line: &[u8]) -> Result<Option<String>, LineError> {
    let Some(text) = line.strip_prefix(b"# ") else { return Ok(None) };
    if !text.starts_with(MAGIC) {
        return Ok(None);
    }
    let Ok(text) = std::str::from_utf8(text) else { return Ok(None) };
    let Some((generator, version)) = text.rsplit_once(" map ") else { return Ok(None) };
    match version.parse::<u32>() {
        Ok(FORMAT_VERSION) => Ok(Some(generator.to_owned())),
        Ok(version) => Err(LineError::Version { version }),
        Err(_) => Ok(None),
    }
}

/// Adds another comment line to the header. `line` begins with `#`.
pub(super) fn parse(header: &mut Header, line: &[u8]) -> Result<(), LineError> {
    let Some(text) = line.strip_prefix(b"# ") else {
        header.comments.push(line[1..].to_vec());
        return Ok(());
    };
    if let Some(fields) = text.strip_prefix(DISK) {
        let (disk, fields) = disk_number(fields).ok_or(LineError::Header { expected: "a disk number" })?;
        let (size, fields) = field(fields, b"size=").ok_or(LineError::Header { expected: "size=BYTES" })?;
        let size = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok());
        let size = size.ok_or(LineError::Header { expected: "size=BYTES" })?;
        let (sector, fields) = match field(fields, b"sector=") {
            Some((sector, fields)) => {
                let sector = std::str::from_utf8(sector).ok().and_then(|sector| sector.parse().ok());
                (sector.ok_or(LineError::Header { expected: "sector=BYTES" })?, fields)
            }
            None => (SECTOR, fields),
        };
        let (snapshot, fields) = match field(fields, b"snapshot=") {
            Some((name, fields)) => {
                let name = String::from_utf8(unescape(name)?.into_owned());
                (Some(name.map_err(|_| LineError::Header { expected: "snapshot=NAME in UTF-8" })?), fields)
            }
            None => (None, fields),
        };
        let image = image_file(fields)?;
        header.images.push(ImageInfo { disk, size, sector, image, snapshot, chain: Vec::new() });
    } else if let Some(fields) = text.strip_prefix(BACKING) {
        let (disk, fields) = disk_number(fields).ok_or(LineError::Header { expected: "a disk number" })?;
        let top = header.images.last_mut().filter(|top| top.disk == disk);
        let top = top.ok_or(LineError::Header { expected: "a disk line of the same number before it" })?;
        top.chain.push(image_file(fields)?);
    } else if let Some(fields) = text.strip_prefix(FILESYSTEM) {
        header.filesystems.push(filesystem(fields)?);
    } else if let Some(warning) = text.strip_prefix(WARNING) {
        let warning = String::from_utf8(unescape(warning)?.into_owned());
        let warning = warning.map_err(|_| LineError::Header { expected: "a warning in UTF-8" })?;
        header.warnings.push(Warning::sentence(warning));
    } else if let Some(note) = text.strip_prefix(NOTE) {
        let text = String::from_utf8(unescape(note)?.into_owned());
        let text = text.map_err(|_| LineError::Header { expected: "a note in UTF-8" })?;
        header.warnings.push(Warning::on_guest(Cause::Remark { text }));
    } else {
        header.comments.push(line[1..].to_vec());
    }
    Ok(())
}

fn disk_number(fields: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = split(fields)?;
    let number: u16 = std::str::from_utf8(number).ok()?.parse().ok()?;
    (number > 0).then_some((number, rest))
}

/// The value of the field that `fields` begins with, if that is `key`, and what follows.
fn field<'a>(fields: &'a [u8], key: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    split(fields.strip_prefix(key)?)
}

/// The text before and after the first space.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr::memchr(b' ', text)?;
    Some((&text[..space], &text[space + 1..]))
}

fn image_file(fields: &[u8]) -> Result<ImageFile, LineError> {
    let (format, fields) =
        field(fields, b"format=").ok_or(LineError::Header { expected: "format=FORMAT" })?;
    let format = String::from_utf8(unescape(format)?.into_owned());
    let format = format.map_err(|_| LineError::Header { expected: "format=FORMAT" })?;
    let name = fields.strip_prefix(b"name=").ok_or(LineError::Header { expected: "name=FILE" })?;
    Ok(ImageFile { name: unescape(name)?.into_owned(), format })
}

/// Reads the fields of a filesystem line. Unknown values are omitted from the line.
fn filesystem(fields: &[u8]) -> Result<Filesystem, LineError> {
    let expected = |expected| LineError::Header { expected };
    let mut fields = fields.split(|&byte| byte == b' ').peekable();
    let device = unescape(fields.next().unwrap_or_default())?.into_owned();
    if device.is_empty() {
        return Err(expected("the device of a filesystem"));
    }
    let kind = fields.next().and_then(|field| field.strip_prefix(b"type="));
    let kind = String::from_utf8(unescape(kind.ok_or(expected("type=TYPE"))?)?.into_owned());
    let kind = kind.map_err(|_| expected("type=TYPE"))?;
    let mut number = |key: &[u8], what| {
        let Some(digits) = fields.next_if(|field| field.starts_with(key)) else { return Ok(None) };
        let number = std::str::from_utf8(&digits[key.len()..]).ok().and_then(|digits| digits.parse().ok());
        number.map(Some).ok_or(expected(what))
    };
    let [block_size, size, free, free_mapped] = [
        number(b"block-size=", "block-size=BYTES")?,
        number(b"size=", "size=BYTES")?,
        number(b"free=", "free=BYTES")?,
        number(b"free-mapped=", "free-mapped=BYTES")?,
    ];
    let balance = match number(b"used=", "used=BYTES")? {
        None => None,
        Some(used) => {
            let mut due = |key: &str| number(key.as_bytes(), "the balance")?.ok_or(expected("the balance"));
            Some(Balance {
                used,
                files: due("in-files=")?,
                directories: due("in-directories=")?,
                metadata: due("in-metadata=")?,
                superseded: due("superseded=")?,
                unexplained: due("unexplained=")?,
                claimed_twice: due("claimed-twice=")?,
                claimed_free: due("claimed-free=")?,
            })
        }
    };
    let filesystem = Filesystem {
        device,
        kind,
        block_size,
        size,
        free,
        free_mapped,
        balance,
        directories: number(b"directories=", "directories=N")?.ok_or(expected("directories=N"))?,
        files: number(b"files=", "files=N")?.ok_or(expected("files=N"))?,
        inodes: InodeDigests::new(),
    };
    if fields.next().is_some() { Err(expected("nothing more")) } else { Ok(filesystem) }
}

/// Appends the whole header of a map in our dialect.
pub(super) fn push(out: &mut Vec<u8>, header: &Header) -> Result<(), WriteError> {
    let first = format!("# {} map {FORMAT_VERSION}", header.generator);
    if first.contains('\n')
        || parse_first(first.as_bytes()).ok().flatten().as_ref() != Some(&header.generator)
    {
        return Err(WriteError::Generator { generator: header.generator.clone() });
    }
    out.extend_from_slice(first.as_bytes());
    out.push(b'\n');
    for image in &header.images {
        out.extend_from_slice(format!("# disk {} size={} ", image.disk, image.size).as_bytes());
        if image.sector != SECTOR {
            out.extend_from_slice(format!("sector={} ", image.sector).as_bytes());
        }
        if let Some(snapshot) = &image.snapshot {
            out.extend_from_slice(b"snapshot=");
            push_escaped(out, snapshot.as_bytes(), |byte| byte == b' ' || needs_escape(byte));
            out.push(b' ');
        }
        push_image_file(out, &image.image);
        for file in &image.chain {
            out.extend_from_slice(format!("# backing {} ", image.disk).as_bytes());
            push_image_file(out, file);
        }
    }
    for filesystem in &header.filesystems {
        push_filesystem(out, filesystem);
    }
    for warning in &header.warnings {
        out.extend_from_slice(b"# ");
        out.extend_from_slice(if warning.is_incomplete() { WARNING } else { NOTE });
        push_escaped(out, warning.words().as_bytes(), needs_escape);
        out.push(b'\n');
    }
    let reserved =
        |text: &[u8]| [DISK, BACKING, FILESYSTEM, WARNING, NOTE].iter().any(|word| text.starts_with(word));
    push_comments(out, header, |comment| comment.strip_prefix(b" ").is_some_and(reserved))
}

/// Appends the header of a map in the original's dialect, which has only free comments.
pub(super) fn push_original(out: &mut Vec<u8>, header: &Header) -> Result<(), WriteError> {
    let first = header.comments.first();
    // As the first line it would change the dialect of the file.
    let reserved =
        |comment: &Vec<u8>| Some(comment) == first && parse_first(&[b"#", &comment[..]].concat()) != Ok(None);
    push_comments(out, header, reserved)
}

fn push_filesystem(out: &mut Vec<u8>, filesystem: &Filesystem) {
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
        inodes: _,
    } = filesystem;
    let of = |count: fn(&Balance) -> u64| balance.as_ref().map(count);
    let special = |byte| byte == b' ' || needs_escape(byte);
    out.extend_from_slice(b"# ");
    out.extend_from_slice(FILESYSTEM);
    push_escaped(out, device, special);
    out.extend_from_slice(b" type=");
    push_escaped(out, kind.as_bytes(), special);
    for (key, value) in [
        ("block-size", *block_size),
        ("size", *size),
        ("free", *free),
        ("free-mapped", *free_mapped),
        ("used", of(|balance| balance.used)),
        ("in-files", of(|balance| balance.files)),
        ("in-directories", of(|balance| balance.directories)),
        ("in-metadata", of(|balance| balance.metadata)),
        ("superseded", of(|balance| balance.superseded)),
        ("unexplained", of(|balance| balance.unexplained)),
        ("claimed-twice", of(|balance| balance.claimed_twice)),
        ("claimed-free", of(|balance| balance.claimed_free)),
        ("directories", Some(*directories)),
        ("files", Some(*files)),
    ] {
        if let Some(value) = value {
            out.extend_from_slice(format!(" {key}={value}").as_bytes());
        }
    }
    out.push(b'\n');
}

fn push_image_file(out: &mut Vec<u8>, file: &ImageFile) {
    out.extend_from_slice(b"format=");
    push_escaped(out, file.format.as_bytes(), |byte| byte == b' ' || needs_escape(byte));
    out.extend_from_slice(b" name=");
    push_escaped(out, &file.name, needs_escape);
    out.push(b'\n');
}

/// Appends the free comments. Each must be read back as a comment.
fn push_comments(
    out: &mut Vec<u8>,
    header: &Header,
    reserved: impl Fn(&Vec<u8>) -> bool,
) -> Result<(), WriteError> {
    for comment in &header.comments {
        if comment.contains(&b'\n') || reserved(comment) {
            return Err(WriteError::Comment { comment: comment.clone() });
        }
        out.push(b'#');
        out.extend_from_slice(comment);
        out.push(b'\n');
    }
    Ok(())
}
