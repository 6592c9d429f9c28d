//! The tables of warnings in `docs/formats.md` must have every kind of cause, with its data and its
//! exit status.

use std::collections::BTreeSet;
use virt_bmap_map::Cause;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md");

/// One sample of each kind.
const SAMPLES: &[&str] = &[
    r#"{"kind":"device-failed","error":"no"}"#,
    r#"{"kind":"volume-inactive","error":"no"}"#,
    r#"{"kind":"volume-group-unreadable"}"#,
    r#"{"kind":"outside-dynamic-volumes"}"#,
    r#"{"kind":"array-member-unused"}"#,
    r#"{"kind":"members-missing","count":1,"lost":false}"#,
    r#"{"kind":"filesystem-device-missing"}"#,
    r#"{"kind":"same-uuid","device":"/dev/sdb"}"#,
    r#"{"kind":"locked","reason":"no-key"}"#,
    r#"{"kind":"key-too-slow","seconds":9}"#,
    r#"{"kind":"unknown-content"}"#,
    r#"{"kind":"signature-unused","signature":"zfs_member","label":"tank"}"#,
    r#"{"kind":"disk-truncated","described":9,"size":5}"#,
    r#"{"kind":"mount-failed","filesystem":"ext4","error":"no"}"#,
    r#"{"kind":"filesystem-too-new","filesystem":"ext4","kernel":"6.1","error":"no"}"#,
    r#"{"kind":"hung","filesystem":"ext4","seconds":9}"#,
    r#"{"kind":"kernel-crashed","filesystem":"ext4","panic":"no"}"#,
    r#"{"kind":"walk-cut-short","error":"no"}"#,
    r#"{"kind":"file-failed","operation":"read","errno":5,"offset":512}"#,
    r#"{"kind":"directory-loop"}"#,
    r#"{"kind":"directory-corrupt","error":"no"}"#,
    r#"{"kind":"directory-holes"}"#,
    r#"{"kind":"call-failed","error":"no"}"#,
    r#"{"kind":"name-not-utf8"}"#,
    r#"{"kind":"unmappable","error":"no"}"#,
    r#"{"kind":"encrypted-files-unplaced","count":2}"#,
    r#"{"kind":"unexplained","ranges":2,"bytes":8192}"#,
    r#"{"kind":"claimed-twice","ranges":1,"bytes":4096,"example":["/a","/b"]}"#,
    r#"{"kind":"claimed-free","ranges":1,"bytes":4096}"#,
    r#"{"kind":"records-damaged","count":2}"#,
    r#"{"kind":"directories-unplaced","count":2}"#,
    r#"{"kind":"directory-contradicted"}"#,
    r#"{"kind":"more-omitted","count":2}"#,
    r#"{"kind":"sentence","text":"words"}"#,
    r#"{"kind":"remark","text":"words"}"#,
    r#"{"kind":"blank","disk":true}"#,
    r#"{"kind":"signature-besides","signature":"zfs_member","label":"tank"}"#,
    r#"{"kind":"volume-group-renamed","group":"vg"}"#,
    r#"{"kind":"suspended"}"#,
    r#"{"kind":"journal-missing"}"#,
    r#"{"kind":"copies-differ"}"#,
    r#"{"kind":"chunks-unknown"}"#,
    r#"{"kind":"journal-replayed"}"#,
    r#"{"kind":"hibernated"}"#,
    r#"{"kind":"not-unmounted"}"#,
    r#"{"kind":"encrypted-names","count":2}"#,
    r#"{"kind":"not-exact","count":2}"#,
    r#"{"kind":"rewritten","count":2}"#,
    r#"{"kind":"image-may-be-torn"}"#,
    r#"{"kind":"image-changed"}"#,
    r#"{"kind":"image-rounded-up","size":3,"rounded":512}"#,
    r#"{"kind":"image-unclean"}"#,
    r#"{"kind":"image-unread","sectors":8}"#,
];

/// All kinds that a reader knows. The error for an unknown kind lists them.
fn kinds() -> BTreeSet<String> {
    let error = serde_json::from_str::<Cause>(r#"{"kind":"?"}"#).unwrap_err().to_string();
    error.split('`').skip(1).step_by(2).filter(|&kind| kind != "?").map(str::to_owned).collect()
}

/// The tables of the section: for each kind its data, and the number of its table, counted from 0.
fn documented() -> Vec<(String, BTreeSet<String>, usize)> {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let section = page.split("\n### Warnings\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut rows = Vec::new();
    for (number, table) in section.split("| Kind | Data | Meaning |\n|---|---|---|\n").skip(1).enumerate() {
        for row in table.lines().take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.split('|').collect();
            rows.push((words(cells[1]).remove(0), words(cells[2]).into_iter().collect(), number));
        }
    }
    rows
}

#[test]
fn the_documentation_has_each_kind_of_warning() {
    let documented = documented();
    let names: Vec<_> = documented.iter().map(|(kind, ..)| kind.clone()).collect();
    assert_eq!(names.iter().cloned().collect::<BTreeSet<_>>(), kinds());
    assert_eq!(names.len(), kinds().len(), "a kind is there twice");
}

#[test]
fn the_documentation_has_the_data_and_the_status_of_each_kind() {
    let mut sampled = BTreeSet::new();
    for sample in SAMPLES {
        let cause: Cause = serde_json::from_str(sample).unwrap();
        assert_eq!(serde_json::to_string(&cause).unwrap(), *sample);
        let fields: serde_json::Map<_, _> = serde_json::from_str(sample).unwrap();
        let kind = fields["kind"].as_str().unwrap();
        let documented = documented();
        let (_, data, table) = documented.iter().find(|(name, ..)| name == kind).unwrap();
        let known: BTreeSet<String> = fields.keys().filter(|&key| key != "kind").cloned().collect();
        assert_eq!(*data, known, "{kind}");
        // The third table has the kinds whose exit status depends on the data.
        assert!(*table == 2 || cause.is_incomplete() == (*table == 0), "{kind}: table {table}");
        sampled.insert(kind.to_owned());
    }
    assert_eq!(sampled, kinds(), "a kind has no sample");
}
