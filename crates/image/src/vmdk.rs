//! The references of a VMDK: extents and the parent of a snapshot.
//!
//! A VMDK's text, the *descriptor*, is a file of its own or lies inside a sparse extent. Where qemu
//! is lenient in reading it, this must be no stricter, or a hostile descriptor could hide a name
//! from us that qemu finds; so the same loose grammar is followed.

use super::error::FileRole;
use super::file::{PlainFile, bytes_at};
use super::references::{Reference, References, Unreadable};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Magic of a sparse extent.
pub(super) const SPARSE: &[u8; 4] = b"KDMV";
/// Magic of the older sparse extent of ESX.
const COWD: &[u8; 4] = b"COWD";
/// Longest descriptor that qemu reads.
pub(super) const MAX_DESCRIPTOR: usize = 1 << 20;
/// Where qemu looks for the parent's name: so many bytes of the descriptor.
const MAX_PARENT_AREA: usize = 20 * 512;
/// Unit of all sizes and offsets in a VMDK, in bytes.
pub(super) const SECTOR: u64 = 512;

/// Whether qemu takes a file with these first bytes for a VMDK.
pub(super) fn is_vmdk(head: &[u8]) -> bool {
    match bytes_at::<4>(head, 0) {
        Some(magic) => &magic == SPARSE || &magic == COWD || is_descriptor(head),
        None => false,
    }
}

/// Whether a text is a descriptor: comments and blank lines, and then a line `version=`.
fn is_descriptor(mut text: &[u8]) -> bool {
    loop {
        let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        let (line, rest) = (&text[..end], text.get(end + 1..).unwrap_or_default());
        if !line.starts_with(b"#") && !line.trim_ascii().is_empty() {
            let version = line.trim_ascii_end();
            return matches!(version, b"version=1" | b"version=2" | b"version=3");
        }
        if rest.is_empty() {
            return false;
        }
        text = rest;
    }
}

/// Reads the references of a VMDK.
pub(super) fn references(file: &PlainFile) -> Result<References, Unreadable> {
    let head = file.read(0, 512)?;
    let mut files = Vec::new();
    let parent_area = if head.starts_with(SPARSE) {
        let offset = descriptor_offset(&head);
        if is_stub(&head) {
            files = extents(&file.read(offset, MAX_DESCRIPTOR)?);
        }
        file.read(offset, MAX_PARENT_AREA)?
    } else if head.starts_with(COWD) {
        Vec::new()
    } else {
        let text = file.read(0, MAX_DESCRIPTOR)?;
        files = extents(&text);
        text[..text.len().min(MAX_PARENT_AREA)].to_vec()
    };
    if let Some(name) = parent(&parent_area)? {
        let name = OsStr::from_bytes(name).to_owned();
        files.push(Reference { role: FileRole::Backing, name, format: Some("vmdk".to_owned()), needed: 0 });
    }
    Ok(References { files, ..References::default() })
}

/// Whether a file that a descriptor names as its extent is a descriptor in disguise, and would name
/// further extents.
pub(super) fn is_nested(extent: &PlainFile) -> std::io::Result<bool> {
    let head = extent.read(0, 512)?;
    Ok(head.starts_with(SPARSE) && is_stub(&head))
}

/// Whether a sparse extent has no capacity of its own, and only carries a descriptor.
fn is_stub(head: &[u8]) -> bool {
    bytes_at(head, 12).map(u64::from_le_bytes) == Some(0)
}

/// Where a sparse extent's descriptor begins, in bytes.
fn descriptor_offset(head: &[u8]) -> u64 {
    bytes_at(head, 28).map_or(0, u64::from_le_bytes).saturating_mul(SECTOR)
}

/// The name of the parent, as a C program finds it: the text ends at the first NUL, the first
/// mention of the key counts, two characters (`="`) are skipped.
fn parent(text: &[u8]) -> Result<Option<&[u8]>, Unreadable> {
    const KEY: &[u8] = b"parentFileNameHint";
    let text = until_nul(text);
    let Some(at) = text.windows(KEY.len()).position(|window| window == KEY) else { return Ok(None) };
    let value = text.get(at + KEY.len() + 2..).unwrap_or_default();
    match value.iter().position(|byte| *byte == b'"') {
        Some(0) => Ok(None),
        Some(end) => Ok(Some(&value[..end])),
        None => Err(Unreadable::Broken("the name of its parent has no end".to_owned())),
    }
}

fn until_nul(text: &[u8]) -> &[u8] {
    &text[..text.iter().position(|byte| *byte == 0).unwrap_or(text.len())]
}

/// An extent that a descriptor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent<'t> {
    name: &'t [u8],
    /// Sectors of the disk that it holds. qemu takes those of a sparse extent from the extent.
    pub(super) sectors: u64,
    /// The first sector in its file, if it holds the disk's bytes as they are.
    pub(super) flat: Option<u64>,
}

impl Extent<'_> {
    /// Least length of its file, if known.
    fn needed(self) -> u64 {
        self.flat.map_or(0, |offset| offset.saturating_add(self.sectors).saturating_mul(SECTOR))
    }
}

/// The files that a descriptor names as its extents.
fn extents(text: &[u8]) -> Vec<Reference> {
    let reference = |extent: Extent<'_>| Reference {
        role: FileRole::Extent,
        name: OsStr::from_bytes(extent.name).to_owned(),
        format: None,
        needed: extent.needed(),
    };
    listed(text).into_iter().map(reference).collect()
}

/// The extents that a descriptor names, in the order of the disk. Other lines are skipped.
pub(super) fn listed(text: &[u8]) -> Vec<Extent<'_>> {
    let text = until_nul(text);
    let mut found = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        // What begins on a blank line begins on the next line too, and is not to be found twice.
        if !line.iter().all(|byte| is_space(*byte)) {
            found.extend(extent(&text[start..]));
        }
        start += line.len();
    }
    found
}

/// The extent that is named where `text` begins: `RW <sectors> <type> "<name>" [<offset>]`. White
/// space between these may be line ends, and may be missing where the next thing cannot be
/// mistaken.
fn extent(text: &[u8]) -> Option<Extent<'_>> {
    let mut scanner = Scanner(text);
    if scanner.word() != b"RW" {
        return None;
    }
    let sectors = u64::try_from(scanner.number()?).ok().filter(|sectors| *sectors > 0)?;
    let kind = scanner.word();
    let name = scanner.quoted()?;
    let offset = scanner.number().and_then(|offset| u64::try_from(offset).ok()).unwrap_or(0);
    let flat = match kind {
        b"FLAT" | b"VMFS" => Some(offset),
        b"SPARSE" | b"VMFSSPARSE" | b"SESPARSE" => None,
        _ => return None,
    };
    Some(Extent { name, sectors, flat })
}

/// isspace(3) in the C locale; Rust's own notion of ASCII white space lacks the vertical tab.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// Takes things off the front of a text, the way scanf(3) does.
struct Scanner<'t>(&'t [u8]);

impl<'t> Scanner<'t> {
    /// Longest word.
    const WORD: usize = 9;
    /// Longest quoted name.
    const NAME: usize = 511;

    fn take(&mut self, max: usize, wanted: impl Fn(u8) -> bool) -> &'t [u8] {
        let length = self.0.iter().take(max).take_while(|byte| wanted(**byte)).count();
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn skip_space(&mut self) {
        self.take(usize::MAX, is_space);
    }

    fn word(&mut self) -> &'t [u8] {
        self.skip_space();
        self.take(Self::WORD, |byte| !is_space(byte))
    }

    /// A number, clipped at 64 bits.
    fn number(&mut self) -> Option<i64> {
        self.skip_space();
        let sign = self.take(1, |byte| byte == b'-' || byte == b'+');
        let digits = self.take(usize::MAX, |byte| byte.is_ascii_digit());
        if digits.is_empty() {
            return None;
        }
        let digit = |value: i64, byte: &u8| value.saturating_mul(10).saturating_add(i64::from(byte - b'0'));
        let value = digits.iter().fold(0_i64, digit);
        Some(if sign == b"-" { -value } else { value })
    }

    fn quoted(&mut self) -> Option<&'t [u8]> {
        self.skip_space();
        if self.take(1, |byte| byte == b'"').is_empty() {
            return None;
        }
        let name = self.take(Self::NAME, |byte| !matches!(byte, b'"' | b'\n' | b'\r'));
        // qemu has the name also where the closing quote is missing.
        self.take(1, |byte| byte == b'"');
        (!name.is_empty()).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Vec<(String, u64)> {
        extents(text.as_bytes()).into_iter().map(|e| (e.name.into_string().unwrap(), e.needed)).collect()
    }

    #[test]
    fn extents_are_found_in_every_spelling() {
        let flat = |name: &str, needed| (name.to_owned(), needed);
        for text in [
            "RW 8 FLAT \"a\" 2\n",
            "# x\nRW  8\tFLAT   \"a\"   2",
            "RW\n8\nFLAT\n\"a\"\n2\n",
            "  RW 8FLAT \"a\"2\r\n",
            "RW +8 FLAT \"a\n2",
            "RW 8 \x0bFLAT\x0b\"a\" 2",
        ] {
            assert_eq!(found(text), [flat("a", 5120)], "{text:?}");
        }
        assert_eq!(found("RW 8 SPARSE \"s\"\nRW 8 VMFS \"v\"\n"), [flat("s", 0), flat("v", 4096)]);
        assert_eq!(found("RW 9223372036854775807 FLAT \"a\" 99999999999999999999"), [flat("a", u64::MAX)]);
        for text in [
            "RW 8 ZERO\n",
            "RW 0 FLAT \"a\" 0",
            "RW -8 FLAT \"a\" 0",
            "NOACCESS 8 FLAT \"a\" 0",
            "RW 8 FLAT \"\" 0",
        ] {
            assert_eq!(found(text), [], "{text:?}");
        }
        assert_eq!(found("RW 8 FLAT \"a\" 0\n\0RW 8 FLAT \"b\" 0\n").len(), 1);
    }

    #[test]
    fn a_descriptor_is_known_by_its_version_line() {
        for text in ["version=1\n", "# Disk DescriptorFile\nversion=3\r\n", "#\n \n  \r\nversion=2\n"] {
            assert!(is_vmdk(text.as_bytes()), "{text:?}");
        }
        for text in ["", "#", "####", "hello\nversion=1\n", "version=4\n", "\0\0\0\0"] {
            assert!(!is_vmdk(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn a_parent_is_found_as_a_c_program_finds_it() {
        let name =
            |text: &str| parent(text.as_bytes()).unwrap().map(|n| String::from_utf8(n.to_vec()).unwrap());
        assert_eq!(name("x\nparentFileNameHint=\"../b.vmdk\"\n").as_deref(), Some("../b.vmdk"));
        assert_eq!(name("# parentFileNameHint: nbd:x\"").as_deref(), Some("nbd:x"));
        assert_eq!(name("parentFileNameHint=\"\""), None);
        assert_eq!(name("a\0parentFileNameHint=\"b\""), None);
        assert!(parent(b"parentFileNameHint=\"b").is_err());
        assert!(parent(b"parentFileNameHint").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(RW|FLAT|SPARSE|[ \n\"\0]|[0-9]|parentFileNameHint|=|#|version=1){0,40}") {
            let _ = extents(text.as_bytes());
            let _ = parent(text.as_bytes());
            let _ = is_vmdk(text.as_bytes());
        }
    }
}
