//! The oracle is qemu: a byte of the file is changed, and the disk that `qemu-img convert` then
//! gives differs from the former one where the part says that it may, and nowhere else.

use super::*;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use virt_bmap_ranges::DiskOffset;

/// Runs one of qemu's programs in a directory.
fn qemu(directory: &Path, line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').map(|word| word.trim_matches('\'')).collect();
    Command::new(words[0]).args(&words[1..]).current_dir(directory).output().unwrap().status.success()
}

/// The same for `qemu-io`, whose commands have blanks.
fn write(directory: &Path, image: &str, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let output = Command::new("qemu-io").args(commands).arg(image).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The disk as qemu reads it; `None` if it refuses the image.
fn disk(directory: &Path, image: &str) -> Option<Vec<u8>> {
    qemu(directory, &format!("qemu-img convert -O raw {image} flat"))
        .then(|| fs::read(directory.join("flat")).unwrap())
}

fn container(directory: &Path, image: &str, file: &str) -> Container {
    Container::find(&directory.join(image), &OpenOptions::default(), &directory.join(file)).unwrap()
}

fn parts(container: &Container, wanted: &[(u64, u64)]) -> Vec<Part> {
    let wanted: Vec<_> = wanted.iter().map(|&(start, end)| ContainerRange::new(start, end)).collect();
    container.parts(&wanted).unwrap()
}

/// Where two disks differ.
fn differences(before: &[u8], after: &[u8]) -> Vec<u64> {
    let blocks = before.chunks(4096).zip(after.chunks(4096)).enumerate().filter(|(_, (a, b))| a != b);
    let bytes = blocks.flat_map(|(block, (a, b))| {
        (0..a.len()).filter(move |&at| a[at] != b[at]).map(move |at| (block * 4096 + at) as u64)
    });
    bytes.collect()
}

/// Damages the file at the beginning of each of its parts, and compares what then is damaged on the
/// disk. Returns the kinds of parts for which damage was seen.
fn check(directory: &Path, image: &str, file: &str) -> Vec<Holds> {
    let path = directory.join(file);
    let image_file = container(directory, image, file);
    let size = image_file.size;
    let all = parts(&image_file, &[(0, size)]);
    assert_eq!(all.iter().map(|part| part.at.end.0).max(), Some(size));
    let before = disk(directory, image).unwrap();
    let original = fs::read(&path).unwrap();
    let mut seen = Vec::new();
    for part in &all {
        let at = part.at.start.0;
        let [here] = &parts(&image_file, &[(at, at + 1)])[..] else {
            continue; // data that two compressed clusters share
        };
        assert_eq!(here.holds, part.holds);
        // The first bytes of an entry of a qcow2 are flags, those of a grain are its number.
        let ahead = match part.holds {
            Holds::Data => 0,
            Holds::Compressed if file.ends_with("vmdk") => 20,
            _ => 5,
        };
        let damaged = (at + ahead).min(part.at.end.0 - 1);
        let byte = [original[damaged as usize] ^ 0x55];
        let writable = File::options().write(true).open(&path).unwrap();
        writable.write_all_at(&byte, damaged).unwrap();
        let after = disk(directory, image);
        writable.write_all_at(&original[damaged as usize..][..1], damaged).unwrap();
        let [told] = &parts(&image_file, &[(damaged, damaged + 1)])[..] else { continue };
        let Some(after) = after else {
            assert_eq!(told.holds.effect(), Effect::Disk, "{told:?}");
            seen.push(told.holds);
            continue;
        };
        let differs = differences(&before, &after);
        let is_told = |at: u64| told.guest.bytes_in(DiskRange::new(at, at + 1)) == 1;
        assert!(differs.iter().all(|&at| is_told(at)), "{told:?} {:?}", differs.first());
        if told.holds == Holds::Data {
            assert_eq!(differs.len() as u64, told.guest.bytes(), "{told:?}");
        }
        if !differs.is_empty() {
            seen.push(told.holds);
        }
    }
    seen.sort_by_key(|holds| holds.word());
    seen.dedup();
    seen
}

#[test]
fn damage_to_a_qcow2_reaches_what_is_told() {
    for options in ["cluster_size=4k", "cluster_size=65536", "cluster_size=16k,extended_l2=on", "compat=0.10"]
    {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert!(qemu(directory, &format!("qemu-img create -f qcow2 -o {options} a.qcow2 6M")));
        write(
            directory,
            "a.qcow2",
            &["write -q -P 1 0 300k", "write -q -P 2 2M 20k", "write -q -P 3 4100k 1"],
        );
        write(directory, "a.qcow2", &["write -q -c -P 4 3M 64k"]);
        let seen = check(directory, "a.qcow2", "a.qcow2");
        for holds in [Holds::Data, Holds::Compressed, Holds::FirstTable, Holds::Header] {
            assert!(seen.contains(&holds), "{options}: {holds:?} is not in {seen:?}");
        }
        assert!(!seen.contains(&Holds::RefcountBlock) && !seen.contains(&Holds::Unused), "{seen:?}");
    }
}

#[test]
fn an_image_above_covers_one_below() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    assert!(qemu(directory, "qemu-img create -f qcow2 -o cluster_size=4k a.qcow2 4M"));
    write(directory, "a.qcow2", &["write -q -P 1 0 300k", "write -q -c -P 4 3M 4k"]);
    assert!(qemu(directory, "qemu-img create -f qcow2 -b a.qcow2 -F qcow2 b.qcow2"));
    write(directory, "b.qcow2", &["write -q -P 2 64k 64k", "write -q -z 128k 64k"]);
    let below = check(directory, "b.qcow2", "a.qcow2");
    assert!(below.contains(&Holds::Data) && below.contains(&Holds::SecondTable), "{below:?}");
    check(directory, "b.qcow2", "b.qcow2");
    let lower = container(directory, "b.qcow2", "a.qcow2");
    let data: u64 = parts(&lower, &[(0, lower.size)])
        .iter()
        .filter(|part| part.holds == Holds::Data)
        .map(|part| part.guest.bytes())
        .sum();
    assert_eq!(data, (300 - 128) << 10);
}

#[test]
fn damage_to_a_vmdk_reaches_what_is_told() {
    for subformat in ["monolithicSparse", "streamOptimized", "monolithicFlat"] {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert!(qemu(directory, "qemu-img create -f raw raw 6M"));
        write(directory, "raw", &["write -q -P 1 0 300k", "write -q -P 2 2M 20k", "write -q -P 3 4100k 1"]);
        assert!(qemu(directory, &format!("qemu-img convert -O vmdk -o subformat={subformat} raw a.vmdk")));
        let file = if subformat == "monolithicFlat" { "a-flat.vmdk" } else { "a.vmdk" };
        let seen = check(directory, "a.vmdk", file);
        let expected: &[Holds] = match subformat {
            "monolithicSparse" => &[Holds::Data, Holds::SecondTable, Holds::Header],
            "streamOptimized" => &[Holds::Compressed, Holds::SecondTable, Holds::Header],
            _ => &[Holds::Data],
        };
        assert!(expected.iter().all(|holds| seen.contains(holds)), "{subformat}: {seen:?}");
    }
}

/// A disk of several extents, each with its part of the disk.
#[test]
fn extents_follow_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    assert!(qemu(directory, "qemu-img create -f vmdk -o subformat=twoGbMaxExtentSparse a.vmdk 5G"));
    write(directory, "a.vmdk", &["write -q -P 7 4500M 64k"]);
    let file = fs::read(directory.join("a-s003.vmdk")).unwrap();
    let at = file.windows(512).position(|bytes| bytes == [7; 512]).unwrap() as u64;
    let [part] = &parts(&container(directory, "a.vmdk", "a-s003.vmdk"), &[(at, at + 512)])[..] else {
        panic!()
    };
    assert_eq!(part.holds, Holds::Data);
    assert_eq!(part.guest.iter().collect::<Vec<_>>(), [DiskRange::new(4500 << 20, (4500 << 20) + 512)]);
}

#[test]
fn other_formats_have_the_places_of_qemu() {
    for format in ["vdi", "vpc", "qed"] {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert!(qemu(directory, &format!("qemu-img create -f {format} a.{format} 6M")));
        let name = format!("a.{format}");
        let output = Command::new("qemu-io")
            .args(["-f", format, "-c", "write -q -P 7 2M 64k", &name])
            .current_dir(directory)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let file = fs::read(directory.join(&name)).unwrap();
        let at = file.windows(512).position(|bytes| bytes == [7; 512]).unwrap() as u64;
        let found = parts(&container(directory, &name, &name), &[(0, 1), (at, at + 512)]);
        let [head, data] = &found[..] else { panic!("{format}: {found:?}") };
        assert_eq!((head.holds, head.holds.effect()), (Holds::Metadata, Effect::Unknown));
        assert_eq!(data.guest.iter().next().unwrap().start, DiskOffset(2 << 20), "{format}");
    }
    let directory = tempfile::tempdir().unwrap();
    assert!(qemu(directory.path(), "qemu-img create -f vhdx a.vhdx 8M"));
    let path = directory.path().join("a.vhdx");
    let container = Container::find(&path, &OpenOptions::default(), &path).unwrap();
    let found = container.parts(&[ContainerRange::new(0, 1)]);
    assert!(matches!(found, Err(ContainerError::NoPlaces { .. })), "{found:?}");
}

#[test]
fn a_file_of_another_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    for name in ["a", "b"] {
        assert!(qemu(directory, &format!("qemu-img create -f qcow2 {name}.qcow2 1M")));
    }
    let found =
        Container::find(&directory.join("a.qcow2"), &OpenOptions::default(), &directory.join("b.qcow2"));
    assert!(matches!(found, Err(ContainerError::NotOfImage { .. })), "{found:?}");
}

mod hostile {
    use super::super::{Piece, qcow2, vmdk};
    use crate::file::PlainFile;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn plain(content: &[u8]) -> PlainFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        PlainFile::open(file.path()).unwrap()
    }

    proptest! {
        /// Whatever is in a file: an answer or a refusal, in bounded time.
        #[test]
        fn no_image_makes_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 600..6000),
            bits in 9u8..22,
            words in prop::collection::vec((0usize..70, prop::sample::select(vec![0u64, 1, 512, 1024, 4096, 1 << 40, u64::MAX])), 0..8),
        ) {
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            bytes[36..40].copy_from_slice(&9_u32.to_be_bytes());
            for (word, value) in &words {
                bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_be_bytes());
            }
            bytes[20..24].copy_from_slice(&u32::from(bits).to_be_bytes());
            let mut count = 0_u64;
            let mut each = |_: Piece| count += 1;
            let _ = qcow2::walk(&plain(&bytes), false, &mut each);
            bytes[..4].copy_from_slice(b"KDMV");
            for (word, value) in words {
                bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            let _ = vmdk::walk(&plain(&bytes), &[], None, 1 << 30, &mut each);
            prop_assert!(count < 10_000_000);
        }
    }
}
