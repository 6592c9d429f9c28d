//! Lists of attributes: which records hold the attributes of a file that does not fit one record
//! (`ATTR_LIST_ENTRY` of `layout.h`).

use crate::fields::Fields as _;
use crate::record::{Problem, Reference};
use std::collections::HashSet;

/// Largest list in bytes; Windows makes none that is larger.
pub(crate) const LARGEST: u64 = 256 << 10;

/// The records that a list names, each once, in the order of the list; and whether the list is
/// sound.
pub(crate) fn records(list: &[u8]) -> (Vec<Reference>, Option<Problem>) {
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let entry = rest.le16(4).and_then(|length| {
            let length = usize::from(length);
            let entry = rest.get(..length).filter(|_| length >= 24 && length % 8 == 0)?;
            Some((Reference::from(entry.le64(16)?), length))
        });
        let Some((reference, length)) = entry else { return (records, Some(Problem::AttributeList)) };
        if seen.insert(reference) {
            records.push(reference);
        }
        rest = &rest[length..];
    }
    (records, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(record: u64) -> Vec<u8> {
        let mut entry = vec![0; 32];
        entry[0] = 0x80;
        entry[4] = 32;
        entry[16..24].copy_from_slice(&record.to_le_bytes());
        entry
    }

    #[test]
    fn records_are_listed_once() {
        let reference = |number, sequence| Reference { number, sequence };
        let list = [entry(64), entry(3 << 48 | 65), entry(64)].concat();
        assert_eq!(records(&list), (vec![reference(64, 0), reference(65, 3)], None));
        assert_eq!(records(&[]), (vec![], None));
        let mut cut = list.clone();
        cut[36] = 8;
        assert_eq!(records(&cut), (vec![reference(64, 0)], Some(Problem::AttributeList)));
        assert_eq!(records(&list[..40]), (vec![reference(64, 0)], Some(Problem::AttributeList)));
    }
}
