//! The Sleuth Kit as oracle. `fiwalk` parses a copy of a filesystem and prints DFXML.

use super::fixture::Filesystem;
use super::ranges::{Range, normalise};
use super::tools;
use std::collections::BTreeMap;
use std::ffi::OsStr;

/// The regular files with the ranges of the *guest disk* that hold their bytes, by absolute path in
/// the filesystem. Left out are names that XML cannot hold, deleted files, and the files that
/// `fiwalk` invents (`$OrphanFiles`).
pub fn files(filesystem: &Filesystem) -> BTreeMap<String, Vec<Range>> {
    // -z: no hashes, -g: no file magic, -O: only allocated files; `-X` writes DFXML to a file.
    let out = tempfile::tempdir().unwrap();
    let xml = out.path().join("dfxml");
    tools::run(
        "fiwalk",
        [
            OsStr::new("-z"),
            OsStr::new("-g"),
            OsStr::new("-O"),
            OsStr::new("-X"),
            xml.as_os_str(),
            filesystem.flat.as_os_str(),
        ],
    );
    let text = std::fs::read(&xml).unwrap();
    parse(&String::from_utf8_lossy(&text), "fs_offset")
        .into_iter()
        .map(|(name, ranges)| (name, filesystem.volume.to_disk(&ranges)))
        .collect()
}

/// The regular files of a DFXML document with their ranges. `offset` is the attribute of a run that
/// gives its place: `fs_offset` or `img_offset`.
pub fn parse(text: &str, offset: &str) -> BTreeMap<String, Vec<Range>> {
    let document = roxmltree::Document::parse(text).unwrap();
    let mut files = BTreeMap::new();
    for object in document.descendants().filter(|n| n.has_tag_name("fileobject")) {
        let value = |name| object.children().find(|n| n.tag_name().name() == name).and_then(|n| n.text());
        let named = |n: &roxmltree::Node<'_, '_>, name| n.tag_name().name() == name;
        let (Some(name), Some("r")) = (value("filename"), value("name_type")) else { continue };
        if name.starts_with('$') || object.children().any(|n| named(&n, "unalloc")) {
            continue;
        }
        let runs = object.descendants().filter(|n| named(n, "byte_run")).filter_map(|run| {
            let number = |name| run.attribute(name).and_then(|v| v.parse::<u64>().ok());
            // A hole has no place, the run of an inode itself has no length, and data in a record
            // of NTFS have place 0.
            let start = number(offset)?;
            let is_resident = run.attribute("type") == Some("resident");
            (run.attribute("fill").is_none() && !is_resident).then_some(start..start + number("len")?)
        });
        files.insert(format!("/{name}"), normalise(runs));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_inodes_and_deleted_files_are_left_out() {
        let text = "<dfxml><volume>
            <fileobject><filename>a</filename><name_type>r</name_type><byte_runs>
              <byte_run file_offset='0' fs_offset='4096' img_offset='4096' len='10'/>
              <byte_run file_offset='10' fill='0' len='10'/></byte_runs>
              <byte_runs facet='inode'><byte_run fs_offset='1'/></byte_runs></fileobject>
            <fileobject><filename>d</filename><name_type>d</name_type></fileobject>
            <fileobject><filename>x</filename><name_type>r</name_type><unalloc>1</unalloc></fileobject>
            </volume></dfxml>";
        let files = parse(text, "fs_offset");
        assert_eq!(files.len(), 1);
        assert_eq!(files["/a"], [4096..4106]);
    }
}
