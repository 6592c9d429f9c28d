//! One run with several outputs, one in each format.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use virt_bmap_map::{Kind, jsonl, load, text};
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{fixture, mapping, oracle_fiwalk};

const OUTPUTS: [&str; 6] = ["a.bmap", "b.jsonl.zst", "c.csv.gz", "d.xml", "e.parquet", "-"];

#[test]
fn all_formats_of_one_run_say_the_same() {
    needs!("guestfish", "sfdisk", "fiwalk");
    let small = fixture::small();
    let options = OUTPUTS.iter().flat_map(|out| [OsStr::new("-o"), OsStr::new(out)]);
    let run = Sandbox::new().run([small.image.as_os_str()].into_iter().chain(options));
    run.assert_code(0).assert_says(&["a.bmap, b.jsonl.zst, c.csv.gz, d.xml, e.parquet, the map"]);
    assert_eq!(run.files(), OUTPUTS[..5]);
    assert!(run.stdout == run.read("a.bmap"));

    let whole = load(&run.sandbox.cwd().join("b.jsonl.zst")).unwrap();
    // All but the text have metadata, links and free space.
    let mut out = Vec::new();
    text::write(&whole.without_metadata(), &mut out).unwrap();
    assert!(out == run.stdout);
    for kind in [Kind::Metadata, Kind::Symlink, Kind::Free] {
        assert!(whole.objects().any(|object| object.kind() == kind), "{kind:?}");
    }
    assert!(!load(&run.sandbox.cwd().join("a.bmap")).unwrap().lists_metadata());
    // A run for a text map alone does not keep them, and its map is the same.
    assert!(run.stdout == mapping::of(&[small], &[]).text);
    let with = |options: [&str; 3]| {
        let words = [small.image.as_os_str()].into_iter().chain(options.map(OsStr::new));
        let run = Sandbox::new().run(words);
        run.assert_code(0);
        run.read(options[2])
    };
    let mut out = Vec::new();
    text::write(&whole, &mut out).unwrap();
    assert!(out == with(["--metadata", "-o", "all.bmap"]));
    let mut out = Vec::new();
    jsonl::write(&whole.without_metadata(), &mut out).unwrap();
    assert!(out == with(["--no-metadata", "-o", "none.jsonl"]));
    let csv = load(&run.sandbox.cwd().join("c.csv.gz")).unwrap();
    assert!(
        csv.pieces()
            .map(|piece| (piece.disk, piece.range, piece.file_offset, piece.role))
            .eq(whole.pieces().map(|piece| (piece.disk, piece.range, piece.file_offset, piece.role)))
    );
    assert!(run.read("e.parquet").starts_with(b"PAR1"));
    assert!(whole.objects().any(|object| object.kind() == Kind::File && object.attributes().inode.is_some()));

    // The Sleuth Kit finds the same files in the image, with the same bytes.
    let filesystem = small.filesystem("/dev/sda1");
    let xml = String::from_utf8(run.read("d.xml")).unwrap();
    let ours: BTreeMap<String, _> = oracle_fiwalk::parse(&xml, "img_offset").into_iter().collect();
    let theirs = oracle_fiwalk::files(filesystem);
    let mut compared = 0;
    for (name, ranges) in &theirs {
        if name.contains(|c: char| c.is_control() || c == '\\' || c == '\u{fffd}') {
            continue;
        }
        compared += 1;
        let ours = ours.get(name).unwrap_or_else(|| panic!("{name:?} is not in our DFXML"));
        assert_eq!(ours, ranges, "{name}");
    }
    assert!(compared >= 50, "only {compared} files of {} were compared", theirs.len());
}
