//! The entries that `qemu-img map --output=json` prints, see qemu-img(1).

use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};
use std::fmt;
use std::io;
use virt_bmap_ranges::DiskRange;

/// An entry, as far as it is needed. Newer versions add fields.
#[derive(serde::Deserialize)]
pub(super) struct MapEntry {
    pub(super) start: u64,
    pub(super) length: u64,
    /// Which image of the chain: 0 is the top.
    pub(super) depth: u64,
    /// Whether that image has data or zeroes for the range. Absent before QEMU 6.1.
    #[serde(default)]
    pub(super) present: bool,
    #[serde(default)]
    pub(super) zero: bool,
    pub(super) data: bool,
    /// Offset in the image's file; absent if the range takes no space there or is compressed.
    pub(super) offset: Option<u64>,
}

impl MapEntry {
    /// Its range, cut at the end of a disk of `size` bytes.
    pub(super) fn within(&self, size: u64) -> DiskRange {
        let end = self.start.saturating_add(self.length).min(size);
        DiskRange::new(self.start.min(end), end)
    }
}

/// Calls `each` with every entry of the array that `input` is. The text is held in memory
/// meanwhile: to parse it byte by byte as it comes takes three times as long.
pub(super) fn read(input: &mut (impl io::Read + ?Sized), each: impl FnMut(MapEntry)) -> io::Result<()> {
    let mut text = Vec::new();
    input.read_to_end(&mut text)?;
    let mut json = serde_json::Deserializer::from_slice(&text);
    json.deserialize_seq(Each(each))?;
    Ok(json.end()?)
}

/// Visits the entries of an array one at a time.
struct Each<F>(F);

impl<'de, F: FnMut(MapEntry)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<(), A::Error> {
        while let Some(entry) = array.next_element()? {
            (self.0)(entry);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_anything_else_is_refused() {
        let read = |text: &str| {
            let mut ranges = Vec::new();
            read(&mut text.as_bytes(), |entry| ranges.push(entry.within(12))).map(|()| ranges)
        };
        let entry =
            |start: i64| format!(r#"{{"start": {start}, "length": 9, "depth": 0, "data": true, "new": 1}}"#);
        let both = format!("[{}, {}]", entry(0), entry(9));
        assert_eq!(read(&both).unwrap(), [DiskRange::new(0, 9), DiskRange::new(9, 12)]);
        for text in [
            both[..both.len() - 1].to_owned(),
            format!("[{}]", entry(-1)),
            format!("{both} []"),
            r#"[{"start": 0, "length": 9, "depth": 0}]"#.to_owned(),
            "{}".to_owned(),
        ] {
            assert!(read(&text).is_err(), "{text}");
        }
    }
}
