//! Rows of a table with names from inside a guest, as CSV and as JSON.
//!
//! Names may hold any bytes. CSV has them as [`Printable`] displays them, and an apostrophe
//! precedes a name that a spreadsheet would read as a formula. In JSON, a second field has the
//! bytes of a name that is not UTF-8, in hexadecimal.

use serde_json::ser::Formatter;
use std::io::{self, Write};

use crate::ObjectName;
use virt_bmap_ranges::Printable;

/// One value of a row.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A name from inside the guest.
    Name(&'a [u8]),
    /// A word of this program.
    Word(&'a str),
    /// A number of bytes, an offset, or any other number.
    Number(u64),
    /// The letter of a kind.
    Letter(u8),
    /// Unknown or absent.
    Nothing,
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value<'_> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nothing, Into::into)
    }
}

/// A column's name and the value of a row in it.
pub type Cell<'a> = (&'static str, Value<'a>);

/// The path of an object, if it has one.
pub fn path(name: Option<ObjectName<'_>>) -> Value<'_> {
    name.filter(|name| !name.path.is_empty()).map_or(Value::Nothing, |name| Value::Name(name.path))
}

/// The letter of an object's kind.
pub fn letter(name: Option<ObjectName<'_>>) -> Value<'_> {
    name.map_or(Value::Nothing, |name| Value::Letter(name.kind.letter()))
}

/// The device that an object is, or is on.
pub fn device(name: Option<ObjectName<'_>>) -> Value<'_> {
    name.map_or(Value::Nothing, |name| Value::Name(name.device))
}

/// Writes a table, with the names of the columns in the first row.
///
/// # Errors
/// The output's.
pub fn csv_rows<'a, const N: usize>(
    out: &mut dyn Write,
    rows: impl Iterator<Item = [Cell<'a>; N]>,
    columns: [&'static str; N],
) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(columns)?;
    for row in rows {
        csv_row(&mut csv, &row)?;
    }
    csv.flush()
}

/// Writes one row.
///
/// # Errors
/// The output's.
pub fn csv_row<W: Write>(csv: &mut csv::Writer<W>, row: &[Cell<'_>]) -> csv::Result<()> {
    for &(_, value) in row {
        match value {
            Value::Name(name) => csv.write_field(cell_of_name(name))?,
            Value::Word(word) => csv.write_field(word)?,
            Value::Number(number) => csv.write_field(number.to_string())?,
            Value::Letter(letter) => csv.write_field([letter])?,
            Value::Nothing => csv.write_field("")?,
        }
    }
    csv.write_record(None::<&[u8]>)
}

/// A name in a cell of a table. Spreadsheets read a cell that begins with one of these characters
/// as a formula. A name that begins with an apostrophe gets another one, so that removing one
/// apostrophe always restores the name.
fn cell_of_name(name: &[u8]) -> String {
    let text = Printable(name).to_string();
    if name.first().is_some_and(|first| b"=+-@\t\r'".contains(first)) { format!("'{text}") } else { text }
}

/// Writes a row as an object.
///
/// # Errors
/// The output's.
pub fn json_object(out: &mut dyn Write, cells: &[Cell<'_>]) -> io::Result<()> {
    out.write_all(b"{")?;
    json_fields(out, cells)?;
    out.write_all(b"}")
}

/// Writes a row as the fields of an object, without the braces.
pub fn json_fields(out: &mut dyn Write, cells: &[Cell<'_>]) -> io::Result<()> {
    for (number, &(column, value)) in cells.iter().enumerate() {
        if number > 0 {
            out.write_all(b", ")?;
        }
        write!(out, "\"{column}\": ")?;
        match value {
            Value::Name(name) => {
                let text = String::from_utf8_lossy(name);
                json_string(out, &text)?;
                if std::str::from_utf8(name).is_err() {
                    write!(out, ", \"{column}_hex\": \"")?;
                    name.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
                    out.write_all(b"\"")?;
                }
            }
            Value::Word(word) => json_string(out, word)?,
            Value::Number(number) => write!(out, "{number}")?,
            Value::Letter(letter) => write!(out, "\"{}\"", char::from(letter))?,
            Value::Nothing => out.write_all(b"null")?,
        }
    }
    Ok(())
}

fn json_string(out: &mut dyn Write, text: &str) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(out, Harmless);
    Ok(serde::Serialize::serialize(text, &mut serializer)?)
}

/// Escapes more than JSON demands: control characters above the space, and those that change the
/// direction of text, may control a terminal as well.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(steers) {
            out.write_all(&rest.as_bytes()[..at])?;
            let mut characters = rest[at..].chars();
            if let Some(character) = characters.next() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
            rest = characters.as_str();
        }
        out.write_all(rest.as_bytes())
    }
}

/// Whether [`Printable`] would escape it.
fn steers(character: char) -> bool {
    !character.is_ascii_graphic()
        && character != ' '
        && Printable(character.encode_utf8(&mut [0; 4]).as_bytes()).to_string().starts_with('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(cells: &[Cell<'_>]) -> String {
        let mut out = Vec::new();
        json_object(&mut out, cells).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_names_are_unambiguous_and_escaped() {
        assert_eq!(json(&[("path", Value::Name(b"/a \"b\"\\\n"))]), r#"{"path": "/a \"b\"\\\n"}"#);
        assert_eq!(
            json(&[("path", Value::Name("/é\u{9b}\u{202e}\u{7f}𝄞".as_bytes()))]),
            r#"{"path": "/é\u009b\u202e\u007f𝄞"}"#
        );
        let odd = json(&[("path", Value::Name(b"/\xff\x1b")), ("n", Value::Nothing)]);
        assert_eq!(odd, "{\"path\": \"/\u{fffd}\\u001b\", \"path_hex\": \"2fff1b\", \"n\": null}");
        let read: serde_json::Value = serde_json::from_str(&odd).unwrap();
        assert_eq!(read["path"], "/\u{fffd}\u{1b}");
    }

    #[test]
    fn csv_has_no_formulas() {
        for (name, cell) in [
            (&b"=cmd()"[..], "'=cmd()"),
            (b"+1", "'+1"),
            (b"-1", "'-1"),
            (b"@a", "'@a"),
            (b"\t=1", r"'\011=1"),
            (b"\r=1", r"'\015=1"),
            (b"'=1", "''=1"),
            (b"/a=b", "/a=b"),
            (b"/a\n\xff\\", r"/a\012\377\134"),
        ] {
            assert_eq!(cell_of_name(name), cell);
        }
        let mut out = Vec::new();
        let rows = [[("a", Value::Name(b"/x, \"y\"")), ("b", Value::Number(7))]];
        csv_rows(&mut out, rows.into_iter(), ["a", "b"]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a,b\n\"/x, \"\"y\"\"\",7\n");
    }
}
