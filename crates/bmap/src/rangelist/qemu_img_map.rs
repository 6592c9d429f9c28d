//! `qemu-img map --output=json` (qemu-img(1)): which image of a chain holds each range of a disk.
//!
//! An entry counts if the image at the selected depth (0, the top, by default) has data or written
//! zeroes for the range. Preallocated ranges (a place in the file without data), holes of a raw
//! image, and ranges of images below do not count.

use serde::Deserialize;
use std::io::BufRead;

use super::{Depth, Entries, Kind, ListError, RangeListOptions, json};

/// An entry, as far as it is needed. Newer versions add fields.
#[derive(Deserialize)]
struct MapEntry {
    start: u64,
    length: u64,
    /// Which image of the chain: 0 is the top.
    depth: u64,
    /// Whether that image has something for the range. Absent before QEMU 6.1.
    #[serde(default)]
    present: bool,
    #[serde(default)]
    zero: bool,
    data: bool,
    /// Where in the image's file; absent where it takes no room there, and where it is compressed.
    offset: Option<u64>,
}

impl MapEntry {
    fn is_written(&self) -> bool {
        self.data || (self.present && self.zero && self.offset.is_none())
    }
}

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let depth = options.depth.unwrap_or(Depth::Of(0));
    json::for_each(input, Kind::QemuImgMap, |entry: MapEntry| {
        let has_depth = match depth {
            Depth::Any => true,
            Depth::Of(depth) => entry.depth == depth,
        };
        entries.push_ascending(entry.start, entry.length, has_depth && entry.is_written())
    })?;
    Ok(match depth {
        Depth::Any => "data, or written as zeroes, at any depth".to_owned(),
        Depth::Of(depth) => format!("data, or written as zeroes, at depth {depth}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Depth, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    /// By qemu-img 7.2 of an overlay into which 64 KiB of data and 64 KiB of zeroes were written.
    const OVERLAY: &str = r#"[{ "start": 0, "length": 4096, "depth": 1, "present": true, "zero": false, "data": true, "offset": 0},
{ "start": 4096, "length": 61440, "depth": 1, "present": true, "zero": true, "data": false, "offset": 4096},
{ "start": 65536, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "offset": 327680},
{ "start": 131072, "length": 131072, "depth": 1, "present": true, "zero": true, "data": false, "offset": 131072},
{ "start": 262144, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false},
{ "start": 327680, "length": 720896, "depth": 0, "present": false, "zero": true, "data": false}]
"#;

    #[test]
    fn writes_in_the_overlay_count() {
        let list = read(OVERLAY.as_bytes(), &RangeListOptions::default()).unwrap();
        assert_eq!(
            list.spans.iter().collect::<Vec<_>>(),
            [DiskRange::new(65536, 131_072), DiskRange::new(262_144, 327_680)]
        );
        assert_eq!((list.entries, list.counted, list.end), (6, 2, 1 << 20));
        let spans = |depth| {
            let options = RangeListOptions { depth: Some(depth), ..RangeListOptions::default() };
            read(OVERLAY.as_bytes(), &options).unwrap().spans.bytes()
        };
        assert_eq!(spans(Depth::Of(1)), 4096);
        assert_eq!(spans(Depth::Any), 4096 + 2 * 65536);
        assert_eq!(spans(Depth::Of(2)), 0);
    }

    #[test]
    fn bad_json_is_refused() {
        for text in [
            &OVERLAY[..OVERLAY.len() - 40],
            r#"[{"start": 0, "length": 9, "depth": 0}]"#,
            r#"[{"start": -1, "length": 9, "depth": 0, "data": true}]"#,
            r#"[{"start": 0, "length": 9, "depth": 0, "data": true}] []"#,
        ] {
            assert!(
                matches!(read(text.as_bytes(), &RangeListOptions::default()), Err(ListError::Json { .. })),
                "{text}"
            );
        }
        let descending = r#"[{"start": 9, "length": 9, "depth": 0, "data": true}, {"start": 0, "length": 9, "depth": 0, "data": true}]"#;
        let error = read(descending.as_bytes(), &RangeListOptions::default()).unwrap_err();
        assert!(matches!(error, ListError::Entry { entry: 2, .. }), "{error}");
    }
}
