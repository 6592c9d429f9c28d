//! Names from inside a guest, made safe for a line of text and for a terminal.
//!
//! A name in a guest is a sequence of bytes except NUL, in no reliable encoding. There are three
//! ways to escape it. All write a byte as a backslash and three octal digits, so [`unescape`]
//! reverses each of them:
//!
//! * [`escape`] is for the text map. It escapes only bytes that would break a line or a reader, and
//!   keeps all others, valid UTF-8 or not;
//! * [`escape_to_utf8`] is for formats that hold only text. It also escapes bytes that are not
//!   UTF-8;
//! * [`Printable`](virt_bmap_ranges::Printable) is for messages. It also escapes characters that
//!   could control a terminal or make a name look like another.

use std::borrow::Cow;
use thiserror::Error;

/// A backslash that is not followed by three octal digits of a byte.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the backslash at byte {position} of the name is not followed by three octal digits (000 to 377)")]
pub struct BadEscape {
    /// Position of the backslash in the escaped name, from 0.
    pub position: usize,
}

/// Whether the text map escapes this byte: controls below the space, DEL, and the backslash.
pub(super) fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f || byte == b'\\'
}

/// Appends `byte` as backslash and three octal digits.
pub(super) fn push_octal(out: &mut Vec<u8>, byte: u8) {
    out.extend([b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]);
}

/// Appends `name` with each byte that `special` picks written in octal.
pub(super) fn push_escaped(out: &mut Vec<u8>, name: &[u8], special: impl Fn(u8) -> bool) {
    let mut rest = name;
    while let Some(at) = rest.iter().position(|&byte| special(byte)) {
        out.extend_from_slice(&rest[..at]);
        push_octal(out, rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Writes bytes below 0x20, 0x7f and the backslash as `\ooo`, and leaves all others as they are.
///
/// ```
/// use virt_bmap_map::escape::{escape, unescape};
///
/// assert_eq!(*escape(b"/a\nb\xff"), *b"/a\\012b\xff");
/// assert_eq!(*unescape(b"/a\\012b")?, *b"/a\nb");
/// # Ok::<(), virt_bmap_map::escape::BadEscape>(())
/// ```
pub fn escape(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.iter().any(|&byte| needs_escape(byte)) {
        return Cow::Borrowed(name);
    }
    let mut out = Vec::with_capacity(name.len() + 12);
    push_escaped(&mut out, name, needs_escape);
    Cow::Owned(out)
}

/// Makes a name a string, for formats that hold only text. Writes as `\ooo`, byte by byte: bytes
/// that are not UTF-8, control characters, the backslash, and the two characters that XML forbids
/// (U+FFFE and U+FFFF).
///
/// ```
/// use virt_bmap_map::escape::escape_to_utf8;
///
/// assert_eq!(escape_to_utf8(b"/caf\xc3\xa9\n\xff"), r"/café\012\377");
/// ```
pub fn escape_to_utf8(name: &[u8]) -> Cow<'_, str> {
    let special = |c: char| c.is_control() || matches!(c, '\\' | '\u{fffe}' | '\u{ffff}');
    if let Ok(name) = std::str::from_utf8(name)
        && !name.contains(special)
    {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 12);
    let octal = |out: &mut String, bytes: &[u8]| {
        for byte in bytes {
            out.push('\\');
            out.extend([byte >> 6, byte >> 3 & 7, byte & 7].map(|digit| char::from(b'0' + digit)));
        }
    };
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            if special(character) {
                octal(&mut out, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                out.push(character);
            }
        }
        octal(&mut out, chunk.invalid());
    }
    Cow::Owned(out)
}

/// Replaces each `\ooo` by its byte, even if the byte needed no escape.
///
/// # Errors
/// [`BadEscape`] for a backslash without three octal digits.
pub fn unescape(name: &[u8]) -> Result<Cow<'_, [u8]>, BadEscape> {
    let Some(first) = memchr::memchr(b'\\', name) else { return Ok(Cow::Borrowed(name)) };
    let mut out = Vec::with_capacity(name.len());
    let mut done = 0;
    let mut next = Some(first);
    while let Some(position) = next {
        out.extend_from_slice(&name[done..position]);
        let byte = name.get(position + 1..position + 4).and_then(octal).ok_or(BadEscape { position })?;
        out.push(byte);
        done = position + 4;
        next = memchr::memchr(b'\\', &name[done..]).map(|at| done + at);
    }
    out.extend_from_slice(&name[done..]);
    Ok(Cow::Owned(out))
}

/// The byte that three octal digits stand for.
fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0u8, |byte, digit| match digit {
        b'0'..=b'7' => byte.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_frozen() {
        assert_eq!(*escape(b"plain \xc3\xa9 \xff"), *b"plain \xc3\xa9 \xff");
        assert_eq!(*escape(b"\0\t\n\x1f \x7e\x7f\x80\\"), *b"\\000\\011\\012\\037 \x7e\\177\x80\\134");
    }

    #[test]
    fn an_invalid_escape_is_reported_by_its_place() {
        for (name, position) in
            [(&b"a\\"[..], 1), (b"\\12", 0), (b"ab\\128", 2), (b"\\012\\400", 4), (b"\\x41", 0)]
        {
            assert_eq!(unescape(name), Err(BadEscape { position }), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn any_name_comes_back(name in prop::collection::vec(any::<u8>(), 0..80)) {
            let escaped = escape(&name);
            prop_assert!(escaped.iter().all(|&byte| byte >= 0x20 && byte != 0x7f));
            prop_assert_eq!(&*unescape(&escaped).unwrap(), &name[..]);
            let shown = virt_bmap_ranges::Printable(&name).to_string();
            prop_assert!(!shown.chars().any(char::is_control));
            prop_assert_eq!(&*unescape(shown.as_bytes()).unwrap(), &name[..]);
        }

        #[test]
        fn any_bytes_can_be_unescaped_or_refused(name in prop::collection::vec(prop_oneof![Just(b'\\'), b'0'..=b'9', any::<u8>()], 0..40)) {
            let _ = unescape(&name);
        }
    }
}
