//! `nbdinfo --map --json` (nbdinfo(1)): extents of a metadata context, whichever that is.
//!
//! By default these types count: `data` (allocated bytes of `base:allocation`), `dirty` (changed
//! bytes of a dirty bitmap) and `local` (bytes of the top image in `qemu:allocation-depth`).

use serde::Deserialize;
use std::io::BufRead;

use super::lines::LineProblem;
use super::{Entries, Kind, ListError, RangeListOptions, json};

/// An extent. One of a context that nbdinfo does not know has no description.
#[derive(Deserialize)]
struct Extent {
    offset: u64,
    length: u64,
    #[serde(rename = "type")]
    flags: u64,
    description: Option<String>,
}

const DEFAULT: [&str; 3] = ["data", "dirty", "local"];

pub(super) fn read(
    input: &mut dyn BufRead,
    options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    json::for_each(input, Kind::Nbdinfo, |extent: Extent| {
        let description = extent.description.as_deref();
        let counts = match &options.types {
            Some(types) => {
                let number = extent.flags.to_string();
                types.iter().any(|wanted| Some(wanted.as_str()) == description || *wanted == number)
            }
            None => description.map(|word| DEFAULT.contains(&word)).ok_or_else(|| {
                let found = extent.flags.to_string();
                LineProblem::unexpected(
                    found.as_bytes(),
                    "a type with a description (choose types with --type)",
                )
            })?,
        };
        entries.push_ascending(extent.offset, extent.length, counts)
    })?;
    Ok(format!("type {}", options.types.as_ref().map_or(DEFAULT.join(", "), |types| types.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};

    fn bytes(text: &str, types: &[&str]) -> u64 {
        let types = (!types.is_empty()).then(|| types.iter().map(|&word| word.to_owned()).collect());
        let list = read(text.as_bytes(), &RangeListOptions { types, ..RangeListOptions::default() }).unwrap();
        assert_eq!(list.kind, Kind::Nbdinfo);
        assert_eq!(list.end, 7);
        list.spans.bytes()
    }

    #[test]
    fn the_context_decides_what_counts() {
        let allocation = r#"[
{ "offset": 0, "length": 4, "type": 0, "description": "data"},
{ "offset": 4, "length": 3, "type": 3, "description": "hole,zero"}
]"#;
        assert_eq!(bytes(allocation, &[]), 4);
        assert_eq!(bytes(allocation, &["hole,zero"]), 3);
        assert_eq!(bytes(allocation, &["3", "0"]), 7);
        let dirty = r#"[{"offset":0,"length":5,"type":0,"description":"clean"},{"offset":5,"length":2,"type":1,"description":"dirty"}]"#;
        assert_eq!(bytes(dirty, &[]), 2);
        let depth = r#"[{"offset":0,"length":6,"type":1,"description":"local"},{"offset":6,"length":1,"type":2,"description":"backing depth 2"}]"#;
        assert_eq!(bytes(depth, &[]), 6);
    }

    #[test]
    fn a_numeric_type_must_be_selected() {
        let text = r#"[{"offset":0,"length":7,"type":1}]"#;
        assert!(matches!(
            read(text.as_bytes(), &RangeListOptions::default()),
            Err(ListError::Entry { entry: 1, .. })
        ));
        assert_eq!(bytes(text, &["1"]), 7);
    }
}
