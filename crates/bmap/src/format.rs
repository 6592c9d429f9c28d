//! The formats of maps: recognises, reads and writes them.

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use thiserror::Error;

use super::model::Map;
use super::{csv, dfxml, jsonl, parquet, text};

/// A format of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The [text map](text).
    Text,
    /// [JSON Lines](jsonl), the only format that holds everything.
    JsonLines,
    /// [Comma-separated values](csv), one row for each range.
    Csv,
    /// [Digital Forensics XML](dfxml). Written only.
    Dfxml,
    /// [Parquet](parquet), one row for each range. Written only.
    Parquet,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As `gzip` does it.
    Gzip,
    /// As `zstd` does it.
    Zstd,
}

/// Format and compression of a file that holds a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    /// The format of the map.
    pub format: Format,
    /// How the file is compressed, if it is.
    pub compression: Option<Compression>,
}

/// Why a map could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The input failed, or its compression is damaged.
    #[error("the map could not be read")]
    Io(#[from] io::Error),
    /// The input is not a text map.
    #[error(transparent)]
    Text(#[from] text::ReadError),
    /// The input is not a map in JSON Lines.
    #[error(transparent)]
    JsonLines(#[from] jsonl::ReadError),
    /// The input is not a map in CSV.
    #[error(transparent)]
    Csv(#[from] csv::ReadError),
    /// Maps in this format cannot be read.
    #[error(
        "this is {0}, which is written only and cannot be read back: convert from the text map or JSON Lines"
    )]
    WriteOnly(Format),
}

/// Why a map could not be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The output failed.
    #[error("the map could not be written")]
    Io(#[from] io::Error),
    /// It cannot be written as a text map.
    #[error(transparent)]
    Text(#[from] text::WriteError),
    /// The Parquet file failed.
    #[error("the map could not be written")]
    Parquet(#[from] ::parquet::errors::ParquetError),
}

/// The name, for people.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a text map",
            Self::JsonLines => "JSON Lines",
            Self::Csv => "CSV",
            Self::Dfxml => "DFXML",
            Self::Parquet => "Parquet",
        })
    }
}

/// Number of bytes by which a format is recognised. bmap-tools and others begin their XML with long
/// comments.
const BEGINNING: usize = 16 * 1024;

impl FileType {
    /// The type of a file by the suffixes of its name: `.jsonl`, `.csv`, `.xml`, `.parquet`, and
    /// after any of them `.gz` or `.zst`. A file without any of these is a text map: those of the
    /// original are often just called `bmap`.
    ///
    /// ```
    /// use virt_bmap_map::{Compression, FileType, Format};
    ///
    /// let file = FileType::of("guest.jsonl.zst".as_ref());
    /// assert_eq!((file.format, file.compression), (Format::JsonLines, Some(Compression::Zstd)));
    /// assert_eq!(FileType::of("bmap".as_ref()).format, Format::Text);
    /// ```
    pub fn of(path: &Path) -> Self {
        let is = |path: &Path, known: &str| {
            path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case(known))
        };
        let compression = if is(path, "gz") {
            Some(Compression::Gzip)
        } else if is(path, "zst") {
            Some(Compression::Zstd)
        } else {
            None
        };
        let inner = compression.and_then(|_| path.file_stem()).map_or(path, Path::new);
        let formats = [
            ("jsonl", Format::JsonLines),
            ("csv", Format::Csv),
            ("xml", Format::Dfxml),
            ("parquet", Format::Parquet),
        ];
        let known = formats.iter().find(|(known, _)| is(inner, known));
        Self { format: known.map_or(Format::Text, |(_, format)| *format), compression }
    }

    /// Whether a file with this beginning may hold a map: a text, which has no zero byte, or
    /// Parquet, perhaps compressed. Everything else on a host with guests is an image.
    pub fn may_be_map(beginning: &[u8]) -> bool {
        let mut plain = Vec::new();
        // What is decoded before the beginning ends is enough.
        let _ = match Compression::of_beginning(beginning) {
            None => take(beginning, &mut plain),
            Some(Compression::Gzip) => take(MultiGzDecoder::new(beginning), &mut plain),
            Some(Compression::Zstd) => {
                zstd::Decoder::new(beginning).and_then(|decoder| take(decoder, &mut plain))
            }
        };
        !plain.contains(&0) || Format::of_beginning(&plain) == Some(Format::Parquet)
    }

    /// Writes a map. Needs no buffered output.
    ///
    /// # Errors
    /// See [`WriteError`]. What has been written by then is no whole map.
    pub fn write(self, map: &Map, mut output: impl Write + Send) -> Result<(), WriteError> {
        match self.compression {
            None => self.format.write(map, output),
            Some(Compression::Gzip) => {
                let mut encoder = GzEncoder::new(&mut output, flate2::Compression::default());
                self.format.write(map, &mut encoder)?;
                encoder.finish()?;
                Ok(output.flush()?)
            }
            Some(Compression::Zstd) => {
                let mut encoder = zstd::Encoder::new(&mut output, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                self.format.write(map, &mut encoder)?;
                encoder.finish()?;
                Ok(output.flush()?)
            }
        }
    }
}

impl Format {
    /// Writes a map in this format. Needs no buffered output.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn write(self, map: &Map, output: impl Write + Send) -> Result<(), WriteError> {
        match self {
            Self::Text => text::write(map, output)?,
            Self::JsonLines => jsonl::write(map, output)?,
            Self::Csv => csv::write(map, output)?,
            Self::Dfxml => dfxml::write(map, output)?,
            Self::Parquet => parquet::write(map, output)?,
        }
        Ok(())
    }

    fn read(self, input: impl Read) -> Result<Map, ReadError> {
        match self {
            Self::Text => Ok(text::read(input)?),
            Self::JsonLines => Ok(jsonl::read(input)?),
            Self::Csv => Ok(csv::read(input)?),
            Self::Dfxml | Self::Parquet => Err(ReadError::WriteOnly(self)),
        }
    }

    /// The format that the beginning of a file shows, if it shows any.
    fn of_beginning(bytes: &[u8]) -> Option<Self> {
        let finds = |what| memchr::memmem::find(bytes, what).is_some();
        match bytes {
            [b'{', ..] => Some(Self::JsonLines),
            [b'#' | b'0'..=b'9', ..] => Some(Self::Text),
            [b'P', b'A', b'R', b'1', ..] => Some(Self::Parquet),
            _ if bytes.starts_with(b"disk,start,") => Some(Self::Csv),
            _ if finds(b"<dfxml") => Some(Self::Dfxml),
            // The text reader knows those of bmap-tools.
            _ if finds(b"<bmap ") => Some(Self::Text),
            _ => None,
        }
    }
}

impl Compression {
    /// By the first bytes of the file: RFC 1952, section 2.3.1, and RFC 8878, section 3.1.1.
    fn of_beginning(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"\x1f\x8b") {
            Some(Self::Gzip)
        } else if bytes.starts_with(b"\x28\xb5\x2f\xfd") {
            Some(Self::Zstd)
        } else {
            None
        }
    }
}

/// Reads a map in any format, compressed or not. The contents decide; if they show no format, the
/// name does (`named`).
///
/// # Errors
/// See [`ReadError`].
pub fn read(input: impl Read, named: Format) -> Result<Map, ReadError> {
    let (beginning, input) = peek(input)?;
    match Compression::of_beginning(&beginning) {
        None => Format::of_beginning(&beginning).unwrap_or(named).read(input),
        Some(Compression::Gzip) => read_plain(MultiGzDecoder::new(input), named),
        Some(Compression::Zstd) => read_plain(zstd::Decoder::new(input)?, named),
    }
}

fn read_plain(input: impl Read, named: Format) -> Result<Map, ReadError> {
    let (beginning, input) = peek(input)?;
    Format::of_beginning(&beginning).unwrap_or(named).read(input)
}

/// Reads as many bytes as tell a map from an image. An image has zeroes among them: in its header, or
/// in a partition table.
fn take(input: impl Read, plain: &mut Vec<u8>) -> io::Result<usize> {
    input.take(16 << 10).read_to_end(plain)
}

/// Returns the beginning of the input, and the input as if nothing had been read of it.
fn peek<R: Read>(mut input: R) -> io::Result<(Vec<u8>, impl Read)> {
    let mut beginning = Vec::new();
    input.by_ref().take(BEGINNING as u64).read_to_end(&mut beginning)?;
    Ok((beginning.clone(), io::Cursor::new(beginning).chain(input)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_and_images_are_told_apart() {
        let packed = |bytes: &[u8], kind: Option<Compression>| match kind {
            None => bytes.to_vec(),
            Some(Compression::Gzip) => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Some(Compression::Zstd) => zstd::encode_all(bytes, 0).unwrap(),
        };
        let text = "# virt-bmap-rs 0.1.0 map 1\n1 0 200 v /dev/sda\n".repeat(20_000);
        let noise: Vec<u8> = (0..300_000_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
        for kind in [None, Some(Compression::Gzip), Some(Compression::Zstd)] {
            let is_map = |bytes: &[u8]| {
                let bytes = packed(bytes, kind);
                FileType::may_be_map(&bytes[..bytes.len().min(256 << 10)])
            };
            assert!(is_map(text.as_bytes()) && is_map(b"PAR1\0\0\0\0"), "{kind:?}");
            assert!(!is_map(&noise) && !is_map(&[0; 512]), "{kind:?}");
        }
    }
}
