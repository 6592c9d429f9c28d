//! `DiskChangeInfo`, which VMware's `QueryChangedDiskAreas` returns (Virtual Infrastructure JSON
//! API, "DiskChangeInfo"): the areas of a disk that changed, in bytes.
//!
//! ```text
//! {"startOffset": 0, "length": 8388608, "changedArea": [{"start": 1048576, "length": 65536}]}
//! ```
//!
//! One call may cover only a part of the disk, so several of these may follow one another, or be in
//! an array. Names may begin with capitals, as PowerCLI writes them.

use serde::Deserialize;
use std::io::BufRead;

use super::recognise::Head;
use super::{Entries, Kind, ListError, RangeListOptions};

#[derive(Deserialize)]
struct DiskChangeInfo {
    #[serde(alias = "ChangedArea", default)]
    #[serde(rename = "changedArea")]
    changed_area: Option<Vec<Area>>,
    /// Tells it from other objects.
    #[serde(rename = "startOffset", alias = "StartOffset")]
    _start: u64,
}

#[derive(Deserialize)]
struct Area {
    #[serde(alias = "Start")]
    start: u64,
    #[serde(alias = "Length")]
    length: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Calls {
    One(DiskChangeInfo),
    Several(Vec<DiskChangeInfo>),
}

/// Whether a list begins like this.
pub(super) fn is(head: Head<'_>) -> bool {
    head.text.starts_with(b"{") && head.has_one_of(&["\"changedArea\"", "\"ChangedArea\"", "\"startOffset\""])
        || head.text.starts_with(b"[") && head.has_one_of(&["\"startOffset\"", "\"StartOffset\""])
}

pub(super) fn read(
    input: &mut dyn BufRead,
    _options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let kind = Kind::Vmware;
    let mut text = Vec::new();
    input.read_to_end(&mut text)?;
    for calls in serde_json::Deserializer::from_slice(&text).into_iter::<Calls>() {
        let calls = match calls.map_err(|source| ListError::Json { kind, source })? {
            Calls::One(one) => vec![one],
            Calls::Several(several) => several,
        };
        for area in calls.into_iter().filter_map(|call| call.changed_area).flatten() {
            let entry = entries.number + 1;
            let pushed = entries.push(area.start, area.length, true);
            pushed.map_err(|problem| ListError::Entry { entry, kind, problem })?;
        }
    }
    Ok("changed areas".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    #[test]
    fn areas_of_one_call_and_of_several_count() {
        let first = r#"{"_typeName": "DiskChangeInfo", "startOffset": 0, "length": 4194304,
            "changedArea": [{"_typeName": "DiskChangeExtent", "start": 1048576, "length": 65536}]}"#;
        let second = r#"{"StartOffset": 4194304, "Length": 4194304, "ChangedArea": [{"Length": 512, "Start": 4194304}]}"#;
        let third = r#"{"startOffset": 8388608, "length": 0}"#;
        let both = [DiskRange::new(1 << 20, (1 << 20) + 65536), DiskRange::new(4 << 20, (4 << 20) + 512)];
        for text in [format!("{first}\n{second}\n{third}\n"), format!("[{first}, {second}, {third}]")] {
            let list = read(text.as_bytes(), &RangeListOptions::default()).unwrap();
            assert_eq!(list.kind, Kind::Vmware);
            assert_eq!(list.spans.iter().collect::<Vec<_>>(), both);
        }
    }

    #[test]
    fn a_damaged_list_is_refused() {
        for text in [
            r#"{"startOffset": 0, "length": 1, "changedArea": [{"start": 1}]}"#,
            r#"{"startOffset": 0, "length": 1, "changedArea": [{"start": 18446744073709551615, "length": 9}]}"#,
            r#"{"startOffset": 0, "length": 1, "changedArea": ["#,
        ] {
            let error = read(text.as_bytes(), &RangeListOptions::default()).unwrap_err();
            assert!(matches!(error, ListError::Json { .. } | ListError::Entry { .. }), "{error}");
        }
    }
}
