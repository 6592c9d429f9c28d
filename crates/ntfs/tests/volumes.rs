//! Volumes made by mkntfs and filled through ntfs-3g, compared with what The Sleuth Kit's `istat`
//! says of each attribute, and with the volume's own bitmap.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_ntfs::{AttributeType, Content, Stream, Volume};
use virt_bmap_testutil::tools::{self, is_root, needs};

/// Fills a mounted volume: files in many pieces, with streams, with many names; a large directory;
/// sparse and compressed files.
const FILL: &str = r#"
cd "$1"
mkdir many compressed
for i in $(seq 1 600); do echo "$i" > "many/a rather long name of file number $i"; done
for i in $(seq 1 200); do
    head -c 5000 /dev/zero | tr '\0' "$((i % 10))" >> pieces
    head -c 3000 /dev/zero | tr '\0' x > "between$i"
done
for i in $(seq 1 2 200); do rm "between$i"; done
head -c 900000 /dev/zero | tr '\0' y > fragmented
printf 0123456789 > small
for i in $(seq 1 60); do ln small "another name of a small file $i"; done
head -c 60000 /dev/zero | tr '\0' s > value
setfattr -n user.big -v "0s$(base64 -w0 value)" pieces
setfattr -n user.onDir -v "0s$(base64 -w0 value)" many
truncate -s 3000000 sparse
printf middle | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
setfattr -n system.ntfs_attrib_be -v 0x00000810 compressed
head -c 400000 /dev/zero | tr '\0' c > compressed/file
mkdir 'Größe 🦀'
"#;

struct Made {
    image: PathBuf,
    _directory: tempfile::TempDir,
}

fn make(cluster: u64, size: u64) -> Made {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("ntfs.img");
    File::create(&image).unwrap().set_len(size).unwrap();
    let path = image.to_str().unwrap();
    tools::run("mkntfs", ["-q", "-Q", "-F", "-c", &cluster.to_string(), path]);
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    tools::run("ntfs-3g", ["-o", "compression", path, root.to_str().unwrap()]);
    let filled = tools::command("sh").args(["-ec", FILL, "fill", root.to_str().unwrap()]).status();
    tools::run("umount", [root.to_str().unwrap()]);
    assert!(filled.unwrap().success());
    Made { image, _directory: directory }
}

/// The clusters of each non-resident attribute, by its number in `istat`: type, then a running
/// number. Holes are 0.
fn istat(image: &Path, number: u64) -> Vec<(u32, String, Vec<u64>)> {
    let output = tools::command("istat").args(["-f", "ntfs"]).arg(image).arg(number.to_string()).output();
    let said = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
    let mut attributes: Vec<(u32, String, Vec<u64>)> = Vec::new();
    let mut is_resident = true;
    for line in said.lines().skip_while(|line| *line != "Attributes: ") {
        if let Some(rest) = line.strip_prefix("Type: ") {
            let kind = rest.split_once('(').unwrap().1.split('-').next().unwrap().parse().unwrap();
            let name = rest.split_once("Name: ").unwrap().1.split("   ").next().unwrap();
            is_resident = !rest.contains("Non-Resident");
            if !is_resident {
                attributes.push((kind, name.to_owned(), Vec::new()));
            }
        } else if !is_resident && let Some((.., clusters)) = attributes.last_mut() {
            clusters.extend(line.split_whitespace().filter_map(|number| number.parse::<u64>().ok()));
        }
    }
    attributes
}

#[test]
fn all_clusters_are_those_of_istat_and_of_the_bitmap() {
    needs!("mkntfs", "ntfs-3g", "istat", "setfattr", "umount");
    if !is_root("mount through FUSE") {
        return;
    }
    for (cluster, size) in [(512, 48), (1024, 48), (4096, 64), (65536, 96)] {
        let made = make(cluster, size << 20);
        let volume = Volume::open(File::open(&made.image).unwrap()).unwrap();
        assert_eq!(volume.geometry().cluster, cluster);
        assert!(!volume.is_dirty() && !volume.is_log_open());
        let mut claimed = BTreeSet::new();
        let mut held = 0;
        let mut compared = 0;
        for (number, file) in volume.files() {
            let file = file.unwrap();
            assert_eq!(file.problems, BTreeSet::new(), "{number}");
            let mut expected: BTreeMap<(u32, String), Vec<u64>> = BTreeMap::new();
            let has_clusters = file.streams.iter().any(|stream| matches!(stream.content, Content::Runs(_)));
            // A program for each of a thousand small files would take long.
            let theirs = if has_clusters { istat(&made.image, number) } else { Vec::new() };
            for (kind, name, clusters) in theirs {
                expected.entry((kind, name)).or_default().extend(clusters);
            }
            for stream in &file.streams {
                held += stream.clusters();
                for (lcn, run) in stream.runs().iter().filter_map(|run| Some((run.lcn?, run))) {
                    assert!((lcn..lcn + run.length).all(|cluster| claimed.insert(cluster)), "{number}");
                }
                let clusters = stream
                    .runs()
                    .iter()
                    .flat_map(|run| (0..run.length).map(move |index| run.lcn.map_or(0, |lcn| lcn + index)));
                let name = if stream.name.is_empty() { "N/A".into() } else { stream.name.clone() };
                let key = (stream.kind.0, String::from_utf8(name).unwrap());
                // istat lists clusters up to the end of the data, and as holes those beyond the
                // initialized size.
                if let Some(expected) = expected.get(&key) {
                    let clusters: Vec<u64> = clusters.take(expected.len()).collect();
                    assert_eq!(clusters.len(), expected.len(), "{number} {key:?}");
                    let written = stream.initialized.div_ceil(cluster) as usize;
                    let is_same = (clusters.iter().zip(expected).enumerate())
                        .all(|(index, (ours, theirs))| ours == theirs || *theirs == 0 && index >= written);
                    assert!(is_same, "{number} {key:?}");
                    compared += 1;
                } else {
                    assert_eq!(stream.clusters(), 0, "{number} {key:?}");
                }
            }
        }
        assert!(compared > 100, "{compared}");
        let mut free = 0;
        volume.free_clusters(|_, length| free += length).unwrap();
        assert_eq!(held + free, volume.geometry().clusters(), "clusters of {cluster} bytes");
    }
}

#[test]
fn names_streams_sizes_and_directories_are_found() {
    needs!("mkntfs", "ntfs-3g", "setfattr", "umount");
    if !is_root("mount through FUSE") {
        return;
    }
    let made = make(4096, 64 << 20);
    let volume = Volume::open(File::open(&made.image).unwrap()).unwrap();
    let root = volume.file(5).unwrap().unwrap();
    let mut names = BTreeMap::new();
    volume.entries(&root, |entry| names.extend([(entry.name.name, entry.file)])).unwrap();
    let get = |name: &str| {
        let reference = names[name.as_bytes()];
        let file = volume.file(reference.number).unwrap().unwrap();
        assert_eq!(file.sequence, reference.sequence);
        file
    };
    assert!(get("Größe 🦀").is_directory);
    let big = get("pieces").named(AttributeType::DATA, b"big").cloned().unwrap();
    assert_eq!((big.size, big.clusters()), (60000, 15));
    let many = get("many");
    assert_eq!(many.named(AttributeType::DATA, b"onDir").unwrap().clusters(), 15);
    let mut entries = 0;
    volume.entries(&many, |_| entries += 1).unwrap();
    assert_eq!(entries, 600);
    let small = get("small");
    assert_eq!((small.names.len(), small.links), (61, 61));
    assert!(small.stream(AttributeType::ATTRIBUTE_LIST).is_some());
    assert_eq!(small.data().unwrap().size, 10);
    let sparse = get("sparse");
    assert!(sparse.data().unwrap().is_sparse && sparse.data().unwrap().clusters() <= 16);
    let mut compressed = Vec::new();
    volume.entries(&get("compressed"), |entry| compressed.push(entry.file)).unwrap();
    let compressed = volume.file(compressed[0].number).unwrap().unwrap();
    assert!(compressed.data().unwrap().is_compressed);
    assert!(compressed.data().unwrap().clusters() < 98);
    // Each file of the root names it as its directory.
    for (name, reference) in &names {
        let file = volume.file(reference.number).unwrap().unwrap();
        assert!(file.names.iter().any(|own| own.name == *name && own.parent.number == 5), "{name:?}");
    }
}

/// Damage in each of the first kilobytes of `$MFT` is survived: no panic, no run outside of the
/// volume, and what is not concerned is still found.
#[test]
fn damaged_records_are_survived() {
    needs!("mkntfs");
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("ntfs.img");
    let file = File::create_new(&image).unwrap();
    file.set_len(2 << 20).unwrap();
    tools::run("mkntfs", ["-q", "-Q", "-F", image.to_str().unwrap()]);
    let bytes = fs::read(&image).unwrap();
    let volume = Volume::open(&bytes[..]).unwrap();
    let clusters = volume.geometry().clusters();
    let count = volume.files().count();
    let start = volume.place_of(0).unwrap() as usize;
    for at in (0..12 << 10).step_by(3) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[start + at] = value;
            let Ok(volume) = Volume::open(&damaged[..]) else { continue };
            let mut found = 0;
            for (_, file) in volume.files() {
                found += 1;
                let Ok(file) = file else { continue };
                let runs = file.streams.iter().flat_map(Stream::runs);
                assert!(runs.into_iter().all(|run| run.lcn.is_none_or(|lcn| lcn + run.length <= clusters)));
                let _ = volume.entries(&file, |_| {});
            }
            let is_mft = at < 1 << 10;
            assert!(is_mft || found + 1 >= count, "{at} {value}: {found}");
        }
    }
    file.write_all_at(&[0; 4096], 0).unwrap();
    assert!(Volume::open(File::open(&image).unwrap()).is_err());
}
