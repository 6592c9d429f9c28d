//! How long a look at a state of a guest's disks takes in an appliance that is kept.
//!
//! ```text
//! cargo bench --bench looks            # writes a table in docs/performance.md
//! cargo bench --bench looks -- ntfs    # measures this filesystem, and writes none
//! ```
//!
//! Needs `guestfish`, and what mapping needs. A guest of 10,000 files and directories, on each of
//! several filesystems, is mapped once. Then a block of one of its files is written, and the
//! filesystem is looked at again, several times over. The maps must be the same. The median counts.
//! Ends with status 1 if a look takes longer than the bar of its filesystem. Nothing else should
//! run at the same time.

#![allow(clippy::expect_used)]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::Guest;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virt_bmap::mapper::{Cancel, EarlierMaps, KeptAppliance, MapperOptions, described};
use virt_bmap_image::{Location, OpenOptions, Overlay, Source};
use virt_bmap_map::{Kind, Map};
use virt_bmap_ranges::{DiskRange, RangeSet};
use virt_bmap_testutil::{guestfish, tools};

const LOOKS: usize = 11;

const GUEST: Guest =
    Guest { name: "some", directories: 1_000, files: 9_000, mean: 6_000, image_mib: 1_100, runs: 1 };

/// The filesystems, and what a look may take.
const FILESYSTEMS: [(&str, Duration); 4] = [
    ("ext4", Duration::from_millis(200)),
    ("xfs", Duration::from_millis(200)),
    ("btrfs", Duration::from_millis(1500)),
    ("ntfs", Duration::from_millis(1500)),
];

fn main() -> ExitCode {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes");
    fs::create_dir_all(&directory).expect("a directory is made");
    let mut rows =
        String::from("| filesystem | objects | first look | look | bar |\n|---|--:|--:|--:|--:|\n");
    let mut exit = ExitCode::SUCCESS;
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |kind: &str| only.is_empty() || only.iter().any(|word| word == kind);
    for (kind, bar) in FILESYSTEMS.into_iter().filter(|(kind, _)| wanted(kind)) {
        let image = image(kind, &directory);
        let (objects, first, mut looks) = look(&image);
        looks.sort();
        let look = looks[LOOKS / 2];
        let row = format!(
            "| {kind} | {objects} | {:.2} s | {:.2} s | {:.1} s |",
            first.as_secs_f64(),
            look.as_secs_f64(),
            bar.as_secs_f64()
        );
        println!("{row}");
        let _ = writeln!(rows, "{row}");
        if look > bar {
            exit = ExitCode::FAILURE;
        }
    }
    if only.is_empty() {
        page::replace("looks", &rows);
    }
    exit
}

/// Makes the guest on this filesystem, if no earlier run has left it.
fn image(kind: &str, directory: &Path) -> PathBuf {
    let image = directory.join(format!("{}-whole-{kind}.img", GUEST.name));
    if image.exists() {
        return image;
    }
    let tree = GUEST.tree(directory);
    let mut tar = tools::command("tar");
    tools::output(tar.arg("-cf").arg(directory.join("whole.tar")).arg("-C").arg(&tree).arg("."));
    let partial = image.with_extension("partial");
    let file = fs::File::create(&partial).expect("an image is made");
    file.set_len(GUEST.image_mib << 20).expect("an image gets its size");
    let name = partial.file_name().and_then(|name| name.to_str()).expect("a name");
    let commands = format!("run\nmkfs {kind} /dev/sda\nmount /dev/sda /\ntar-in whole.tar /");
    guestfish::run(directory, &format!("add-drive {name} format:raw\n{commands}\n"));
    fs::rename(&partial, &image).expect("the image gets its name");
    fs::remove_dir_all(&tree).expect("the tree is removed");
    image
}

/// Looks at a disk that changes. Returns the number of objects, and the times.
fn look(image: &Path) -> (usize, Duration, Vec<Duration>) {
    let image = virt_bmap_image::open(&Location::File(image.into()), &OpenOptions::default());
    let image = image.expect("the image is opened");
    let images = described(std::slice::from_ref(&image));
    let disk = Overlay::new(image.source, 1 << 30, &std::env::temp_dir()).expect("a layer is made");
    let disk = Arc::new(disk);
    let disks: [Arc<dyn Source>; 1] = [disk.clone()];
    let mut appliance =
        KeptAppliance::new(MapperOptions { metadata: true, ..MapperOptions::default() }, images);
    let (cancel, mut maps, mut times) = (Cancel::default(), EarlierMaps::new(), Vec::new());
    let mut look = |written: &[RangeSet<_>], maps: &mut EarlierMaps| -> Arc<Map> {
        let began = Instant::now();
        let look = appliance.look(&disks, written, maps, &cancel, &mut |_| {}).expect("a look succeeds");
        times.push(began.elapsed());
        let map = Arc::new(look.map);
        for filesystem in &map.header().filesystems {
            maps.insert(filesystem.device.clone(), map.clone());
        }
        map
    };
    let first = look(&[RangeSet::new()], &mut maps);
    let block = written_block(&first);
    let mut bytes = [0; 512];
    disk.read_at(&mut bytes, block.start).expect("a block is read");
    for _ in 0..LOOKS {
        // With other bytes, the checksum of btrfs would be wrong.
        disk.write_at(&bytes, block.start).expect("a block is written");
        let again = look(&[RangeSet::from_iter([block])], &mut maps);
        let files = |map: &Map| map.objects().filter(|object| object.kind() == Kind::File).count();
        assert_eq!(files(&again), files(&first));
    }
    let begin = times.remove(0);
    (first.objects().len(), begin, times)
}

/// A sector of a file.
fn written_block(map: &Map) -> DiskRange {
    let mut files = map.objects().filter(|object| object.kind() == Kind::File && object.pieces().len() > 0);
    let piece = files.find_map(|file| file.nth_piece(0)).expect("a file has blocks");
    DiskRange { end: virt_bmap_ranges::DiskOffset(piece.range.start.0 + 512), start: piece.range.start }
}
