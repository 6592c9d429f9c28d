//! The members of a tar archive: their names and places.
//!
//! The format is that of POSIX (pax, "ustar Interchange Format" and "pax Interchange Format"), with
//! GNU's long names and its numbers in base 256 (GNU tar, `tarlib.h`; "Basic Tar Format"). Sparse
//! members, whose bytes are not those of the file, are refused.

use crate::ReadAt;
use crate::ova::OvaError;
use std::collections::HashSet;

/// Unit of a tar archive, in bytes.
const BLOCK: u64 = 512;

/// Most headers that are read. An appliance has a description, a manifest, a certificate and its
/// disks.
const MOST_HEADERS: usize = 4096;

/// Longest name, and longest header of pax.
const MOST_EXTENDED: u64 = 64 << 10;

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: a relative path without `..`.
    pub name: String,
    /// Where its bytes begin in the archive.
    pub offset: u64,
    /// How many they are.
    pub size: u64,
}

/// Whether a block is a header: POSIX's magic, and the sum of its bytes, with the checksum's own
/// eight as spaces, in octal.
pub(crate) fn is_header(block: &[u8]) -> bool {
    let (Some(b"ustar"), Some(stated)) = (block.get(257..262), block.get(148..156)) else { return false };
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    octal(stated) == Some(sum)
}

/// The regular files of an archive, in order. No two overlap: each begins where the one before it
/// ends.
///
/// # Errors
/// The archive is cut off, or has what an appliance has not.
pub(crate) fn members(archive: &dyn ReadAt) -> Result<Vec<Member>, OvaError> {
    let mut members = Vec::new();
    let mut names = HashSet::new();
    let mut extended = Extended::default();
    let mut at = 0;
    for _ in 0..MOST_HEADERS {
        // The end is two blocks of zeroes, which some writers leave out.
        if archive.size() - at < BLOCK {
            return Ok(members);
        }
        let mut header = [0; BLOCK as usize];
        archive.read_at(&mut header, at)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        if !is_header(&header) {
            return Err(OvaError::NoHeader { offset: at });
        }
        let kind = header[156];
        let stated = number(&header[124..136]).ok_or(OvaError::NoHeader { offset: at })?;
        let is_extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
        let size = if is_extension { stated } else { extended.size.unwrap_or(stated) };
        let offset = at + BLOCK;
        let end = offset.checked_add(size).filter(|end| *end <= archive.size());
        let end = end.ok_or(OvaError::Truncated { offset: at, size })?;
        at = end.next_multiple_of(BLOCK).min(archive.size());
        if is_extension {
            if size > MOST_EXTENDED {
                return Err(OvaError::LongName);
            }
            let mut bytes = vec![0; size as usize];
            archive.read_at(&mut bytes, offset)?;
            match kind {
                b'x' => extended.read(&bytes)?,
                b'L' => extended.name = Some(text(&bytes)?),
                // A global header has comments, 'K' the target of a link.
                _ => {}
            }
            continue;
        }
        let Extended { name, .. } = std::mem::take(&mut extended);
        let name = match name {
            Some(name) => name,
            None => own_name(&header)?,
        };
        match kind {
            b'0' | 0 | b'7' => {
                let name = harmless(&name)?;
                if !names.insert(name.clone()) {
                    return Err(OvaError::Twice { name });
                }
                members.push(Member { name, offset, size });
            }
            b'5' => {}
            _ => return Err(OvaError::NoFile { name }),
        }
    }
    Err(OvaError::TooMany { limit: MOST_HEADERS })
}

/// What extended headers say of the next member.
#[derive(Default)]
struct Extended {
    name: Option<String>,
    size: Option<u64>,
}

impl Extended {
    /// Reads records `LENGTH KEY=VALUE\n`.
    fn read(&mut self, mut records: &[u8]) -> Result<(), OvaError> {
        while !records.is_empty() {
            let space =
                records.iter().take(20).position(|byte| *byte == b' ').ok_or(OvaError::BadExtension)?;
            let length = std::str::from_utf8(&records[..space]).ok().and_then(|digits| digits.parse().ok());
            let record = length.and_then(|length: usize| records.get(space + 1..length));
            let record =
                record.and_then(|record| record.strip_suffix(b"\n")).ok_or(OvaError::BadExtension)?;
            records = &records[space + record.len() + 2..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(OvaError::BadExtension)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.name = Some(text(value)?),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                    self.size = Some(size.ok_or(OvaError::BadExtension)?);
                }
                _ if key.starts_with(b"GNU.sparse.") => return Err(OvaError::Sparse),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name in a header: POSIX has a prefix for its directories.
fn own_name(header: &[u8; BLOCK as usize]) -> Result<String, OvaError> {
    let name = text(&header[..100])?;
    // In GNU's own format, times are where the prefix is.
    let prefix = if header[257..263] == *b"ustar\0" { text(&header[345..500])? } else { String::new() };
    Ok(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
}

/// A text up to the first NUL.
fn text(bytes: &[u8]) -> Result<String, OvaError> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8(bytes[..end].to_vec()).map_err(|_| OvaError::NotText)
}

/// The name without `./`, if it stays below the archive.
fn harmless(name: &str) -> Result<String, OvaError> {
    let plain = name.trim_start_matches("./");
    let is_plain = !plain.is_empty() && plain.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if is_plain { Ok(plain.to_owned()) } else { Err(OvaError::BadName { name: name.to_owned() }) }
}

/// A number in octal, between spaces and NULs, or in base 256 if the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (0x80, rest) => {
            rest.iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)))
        }
        (0x81.., _) => None,
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(is_blank).unwrap_or(digits.len())];
    if digits.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?, 8).ok()
}
