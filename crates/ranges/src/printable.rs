//! Displays names from inside a guest safely.

use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Displays a name so that it is safe for a terminal.
///
/// Escaped as `\ooo`, byte by byte: control characters (C0, DEL, and C1, which some terminals
/// obey), characters that change the direction of text (a name could read as another), Unicode's
/// line and paragraph separators, bytes that are not UTF-8, and the backslash.
///
/// ```
/// use virt_bmap_ranges::Printable;
///
/// assert_eq!(Printable(b"/caf\xc3\xa9\x1b[2J").to_string(), r"/café\033[2J");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl<'a> Printable<'a> {
    /// A path on the host, which may be just as hostile.
    pub fn path(path: &'a Path) -> Self {
        Self(path.as_os_str().as_bytes())
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            chunk.valid().chars().try_for_each(|c| shown(f, c, c == '\\' || steers_terminal(c)))?;
            octal_fmt(f, chunk.invalid())?;
        }
        Ok(())
    }
}

/// Displays text of another program, or names that were escaped already, so that it is safe for a
/// terminal.
///
/// Escapes as [`Printable`] does, except for the backslash, which may begin an escape.
///
/// ```
/// use virt_bmap_ranges::PrintableText;
///
/// assert_eq!(PrintableText("\x1b[2J /a\\012b").to_string(), r"\033[2J /a\012b");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PrintableText<'a>(pub &'a str);

impl fmt::Display for PrintableText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| shown(f, c, steers_terminal(c)))
    }
}

fn shown(f: &mut fmt::Formatter<'_>, character: char, is_escaped: bool) -> fmt::Result {
    if is_escaped {
        octal_fmt(f, character.encode_utf8(&mut [0; 4]).as_bytes())
    } else {
        f.write_char(character)
    }
}

fn octal_fmt(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\{byte:03o}"))
}

/// The bidirectional controls are those of Unicode's property `Bidi_Control` (PropList.txt).
fn steers_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_are_escaped() {
        let cases: [(&[u8], &str); 6] = [
            (b"\x1b]0;title\x07", r"\033]0;title\007"),
            ("c1 \u{9b}31m".as_bytes(), r"c1 \302\23331m"),
            ("gpj\u{202e}exe".as_bytes(), r"gpj\342\200\256exe"),
            (b"not utf-8 \xff\xc3", r"not utf-8 \377\303"),
            (b"back\\slash", r"back\134slash"),
            ("日本 ok".as_bytes(), "日本 ok"),
        ];
        for (name, shown) in cases {
            assert_eq!(Printable(name).to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn any_name_is_printed_without_control_characters(name in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(!Printable(&name).to_string().chars().any(char::is_control));
        }
    }
}
