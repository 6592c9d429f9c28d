//! Columns of numbers and texts in one compressed block, for the page.
//!
//! A number is a variable-length integer: seven bits a byte, the lowest first, the highest bit set
//! in all bytes but the last. A text column is its lines, each ended by a line feed. All columns
//! follow one another in a zlib stream, which stands in the page in base64. `decode.js` is the
//! other end.

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// The largest whole number that JavaScript counts exactly up to.
pub(super) const MAX_EXACT: u64 = (1 << 53) - 1;

/// Columns that are being collected.
#[derive(Default)]
pub(super) struct Columns {
    data: Vec<u8>,
    index: BTreeMap<String, Place>,
}

/// Where a column is in the uncompressed data.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Place {
    start: usize,
    end: usize,
    /// Numbers in it, or lines.
    count: usize,
}

impl Columns {
    /// Adds a column of numbers. A column of zeroes is left out, and the page assumes zeroes.
    pub(super) fn numbers(&mut self, name: impl Into<String>, numbers: impl IntoIterator<Item = u64>) {
        let (start, mut count, mut seen) = (self.data.len(), 0, 0);
        for number in numbers {
            count += 1;
            seen |= number;
            self.number(number);
        }
        if seen == 0 {
            self.data.truncate(start);
        } else {
            self.index.insert(name.into(), Place { start, end: self.data.len(), count });
        }
    }

    /// Adds a column of texts, which must hold no line feed.
    pub(super) fn texts<T: std::fmt::Display>(&mut self, name: &str, texts: impl IntoIterator<Item = T>) {
        let (start, mut count) = (self.data.len(), 0);
        for text in texts {
            count += 1;
            // A vector takes all that is written to it.
            let _ = writeln!(self.data, "{text}");
        }
        self.index.insert(name.to_owned(), Place { start, end: self.data.len(), count });
    }

    /// Which columns there are, and where.
    pub(super) fn index(&self) -> &BTreeMap<String, Place> {
        &self.index
    }

    /// Writes the compressed block.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, out: impl Write) -> io::Result<()> {
        let mut encoder = ZlibEncoder::new(EncoderWriter::new(out, &STANDARD), Compression::new(3));
        encoder.write_all(&self.data)?;
        encoder.finish()?.finish()?;
        Ok(())
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.data.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.data.push(number as u8);
    }
}

/// A signed number as an unsigned one: 0, -1, 1, -2, 2, … become 0, 1, 2, 3, 4, …
pub(super) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// An optional number, with 0 for unknown. Numbers that JavaScript cannot count count as unknown.
pub(super) fn known(number: Option<u64>) -> u64 {
    number.filter(|&number| number < MAX_EXACT).map_or(0, |number| number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use std::io::Read as _;

    /// The uncompressed bytes.
    fn bytes(columns: &Columns) -> Vec<u8> {
        let mut text = Vec::new();
        columns.write(&mut text).unwrap();
        let zlib = STANDARD.decode(text).unwrap();
        let mut bytes = Vec::new();
        flate2::read::ZlibDecoder::new(&zlib[..]).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_encoding_is_frozen() {
        let mut columns = Columns::default();
        columns.numbers("a", [0, 1, 127, 128, 300, u64::MAX]);
        columns.numbers("zeros", [0, 0]);
        columns.texts("b", ["x", "", "é"]);
        let expected: &[u8] =
            b"\0\x01\x7f\x80\x01\xac\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x\n\n\xc3\xa9\n";
        assert_eq!(bytes(&columns), expected);
        assert_eq!(
            serde_json::to_string(columns.index()).unwrap(),
            r#"{"a":{"start":0,"end":17,"count":6},"b":{"start":17,"end":23,"count":3}}"#
        );
    }

    #[test]
    fn signs_and_unknown_numbers_are_numbers() {
        assert_eq!([0, -1, 1, -2, i64::MAX, i64::MIN].map(zigzag), [0, 1, 2, 3, u64::MAX - 1, u64::MAX]);
        assert_eq!([None, Some(0), Some(1 << 52), Some(u64::MAX)].map(known), [0, 1, (1 << 52) + 1, 0]);
    }
}
