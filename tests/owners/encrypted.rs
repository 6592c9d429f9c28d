//! Encrypted data, mapped without the key. Files that their filesystem encrypts are mapped where
//! they lie. A volume of BitLocker causes one warning.

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::layered::{self, pattern};
use virt_bmap_testutil::mapped::Mapped;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, layout, mastering};

/// Sizes of the partitions in MiB: ext4 with blocks of 1 KiB, ext4 with blocks of 4 KiB, f2fs, and
/// a volume of BitLocker.
const PARTS: [u64; 4] = [32, 32, 64, 8];

/// Each filesystem has a directory `plain` and an encrypted directory, with the same files in both:
/// files of one byte, of many blocks in pieces, with holes, with blocks that were never written,
/// with two names, and in a subdirectory. While the kernel has the key, the script writes down what
/// FIEMAP reports for their extents.
const SCRIPT: &str = r#"
modprobe -a cts xts 2>/dev/null || true
fill() {
    cd $1
    printf x > tiny
    dd status=none if=$SRC of=large bs=1M count=1
    for n in 1 2 3 4 5 6 7 8; do for f in a b; do
        dd status=none if=$SRC of=$f bs=16k count=1 skip=$n seek=$n conv=notrunc,fsync
    done; done
    dd status=none if=$SRC of=holes bs=64k count=1 seek=9
    truncate -s 1M holes
    : > unwritten; fallocate -n -l 200k unwritten
    dd status=none if=$SRC of=unwritten bs=64k count=1 conv=notrunc
    : > empty
    mkdir -p deep/er; dd status=none if=$SRC of=deep/er/file bs=5000 count=1
    ln large deep/link
    ln -s "a rather long target of a symbolic link" link
    cd /
}
for part in 1 2 3; do
    case $part in
        1) mkfs.ext4 -q -b 1024 -O encrypt /dev/sda$part ;;
        2) mkfs.ext4 -q -b 4096 -O encrypt /dev/sda$part ;;
        3) mkfs.f2fs -q -f -O encrypt /dev/sda$part > /dev/null ;;
    esac
    m=/mnt/$part; mkdir -p $m; mount /dev/sda$part $m; mkdir $m/plain $m/secret
    id=$(printf %064d $part | xfs_io -c add_enckey $m | sed 's/.*identifier //')
    xfs_io -c "set_encpolicy -v 2 $id" $m/secret
    fill $m/plain; fill $m/secret
    sync -f $m
    # Unwritten extents become written ones in memory first.
    umount $m; mount /dev/sda$part $m
    printf %064d $part | xfs_io -c add_enckey $m > /dev/null
    find $m/secret -type f | while read f; do
        echo "file $part $(stat -c '%i %s' $f)"
        xfs_io -r -c 'fiemap -v' $f
    done >> /extents
    umount $m
done
dd status=none if=/extents of=/dev/sdb conv=sync
"#;

fn disks() -> (PathBuf, PathBuf) {
    let key = cache::key((SCRIPT, PARTS, layered::SOURCE, mastering::MAKERS[1]));
    let dir = cache::directory("encrypted", &key, |dir| {
        layered::make(dir, &[(140, &PARTS), (1, &[])], &[pattern(1, 1 << 20)], SCRIPT);
        let volume = dir.join("bitlocker");
        mastering::bitlocker(&volume, PARTS[3] << 20, "secret");
        let disk = File::options().write(true).open(dir.join("1.raw")).unwrap();
        disk.write_all_at(&fs::read(&volume).unwrap(), (1 + 32 + 32 + 64) << 20).unwrap();
    });
    (dir.join("1.raw"), dir.join("2.raw"))
}

/// What the kernel, which has the key, reports for an encrypted file: its size, and those of its
/// extents that were written.
#[derive(Default)]
struct Known {
    size: u64,
    extents: Vec<(u64, u64)>,
}

/// The files in the list that the script wrote, by partition and inode number.
fn known(list: &Path) -> BTreeMap<(u32, u64), Known> {
    /// `FIEMAP_EXTENT_UNWRITTEN`
    const UNWRITTEN: u32 = 0x800;
    let text = String::from_utf8(fs::read(list).unwrap()).unwrap();
    let mut known = BTreeMap::<_, Known>::new();
    let mut current = None;
    for line in text.trim_end_matches('\0').lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["file", part, inode, size] => {
                let file = (part.parse().unwrap(), inode.parse().unwrap());
                // A file with two names is in the list twice. The second entry replaces the first.
                known.insert(file, Known { size: size.parse().unwrap(), extents: Vec::new() });
                current = Some(file);
            }
            // A line of extents, in sectors: range in the file, range on the device, length, flags.
            [number, _, place, _, flags] if number.ends_with(':') && place.contains("..") => {
                let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap();
                if flags & UNWRITTEN == 0 {
                    let (first, last) = place.split_once("..").unwrap();
                    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
                    known.get_mut(&current.unwrap()).unwrap().extents.push((first * 512, (last + 1) * 512));
                }
            }
            _ => {}
        }
    }
    known
}

fn marks(object: &Value) -> Vec<&str> {
    object["marks"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn encrypted_files_are_where_the_kernel_says_with_the_key() {
    needs!("guestfish", "sfdisk", "python3", "xfs_io", "mkfs.ext4", "mkfs.f2fs", "cryptsetup");
    let (disk, list) = disks();
    let known = known(&list);
    let partitions = layout::partitions(&disk, "/dev/sda");
    let mapped = Mapped::of(std::slice::from_ref(&disk), &["--metadata"]);
    // Nothing tells where the encrypted files of f2fs lie, and there is no key for BitLocker.
    assert_eq!(mapped.code, 3, "{}", mapped.stderr);
    assert_eq!(mapped.cause("/dev/sda1", "encrypted-names")["count"], 8);
    assert!(mapped.cause("/dev/sda3", "encrypted-files-unplaced")["count"].as_u64() > Some(0));
    assert_eq!(mapped.cause("/dev/sda4", "locked")["reason"], "no-key");
    assert_eq!(mapped.stderr.lines().filter(|line| line.contains("/dev/sda4")).count(), 1);

    what_bitlocker_keeps_has_names(&mapped, partitions[3].segments[0].disk);
    let mut seen = 0;
    for ((part, inode), file) in &known {
        let device = format!("/dev/sda{part}");
        let is_it = |(name, object): &(&String, &Value)| {
            name.starts_with(&format!("f {device} ")) && object["inode"] == *inode
        };
        let (name, object) = mapped.objects.iter().find(is_it).unwrap_or_else(|| panic!("{device} {inode}"));
        assert!(!name.contains("secret/large") && name.contains("/secret/"), "{name}");
        assert!(marks(object).contains(&"encrypted"), "{object}");
        assert_eq!(object["size"], file.size, "{object}");
        let at = partitions.iter().find(|partition| partition.device == device).unwrap();
        let start = at.segments[0].disk;
        let mut ours: Vec<(u64, u64)> = mapped
            .pieces(name)
            .iter()
            .filter(|piece| piece.start >= start)
            .map(|piece| (piece.start - start, piece.end - start))
            .collect();
        if *part == 3 {
            assert_eq!(ours, [], "{name}");
            continue;
        }
        let unwritten = object["ranges"].as_array().into_iter().flatten();
        let unwritten = unwritten.filter(|range| range["flags"].to_string().contains("unwritten"));
        let unwritten: Vec<u64> = unwritten.map(|range| range["start"].as_u64().unwrap() - start).collect();
        ours.retain(|(start, _)| !unwritten.contains(start));
        assert_eq!(joined(ours), joined(file.extents.clone()), "{device} {inode} {name}");
        seen += u32::from(!file.extents.is_empty());
    }
    assert!(seen >= 12, "only {seen} encrypted files have blocks");
    // Files that are not encrypted are mapped as usual.
    let plain = mapped.file("f /dev/sda2 /plain/large", 0, 1 << 20);
    assert!(plain == pattern(1, 1 << 20));
    let link = mapped.objects.keys().filter(|name| name.starts_with("f /dev/sda2 /secret/")).count();
    assert_eq!(link, 9, "with the second name of one of them");
}

/// Compares BitLocker's metadata with what `cryptsetup` reports. The volume begins at `start`.
fn what_bitlocker_keeps_has_names(mapped: &Mapped, start: u64) {
    let volume = mapped.images[0].with_file_name("bitlocker");
    let said = tools::run("cryptsetup", [OsStr::new("bitlkDump"), volume.as_os_str()]);
    let said = String::from_utf8(said).unwrap();
    let number = |text: &str, word: &str| -> u64 {
        let (_, rest) = text.split_once(word).unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let (_, segments) = said.split_once("Metadata segments:").unwrap();
    let (areas, header) = segments.split_once("Volume header").unwrap();
    let areas: Vec<(u64, u64)> = areas
        .split("FVE metadata area")
        .skip(1)
        .map(|area| (start + number(area, "Offset:"), number(area, "Size:")))
        .collect();
    assert_eq!(areas.len(), 3, "{said}");
    let places = |name: &str| -> Vec<(u64, u64)> {
        let pieces = mapped.pieces(&format!("m /dev/sda4 {name}")).into_iter();
        pieces.map(|piece| (piece.start, piece.end - piece.start)).collect()
    };
    assert_eq!(places("[BitLocker metadata]"), areas, "{said}");
    // BitLocker has moved the volume's original first sectors elsewhere. Its header is in their
    // place.
    assert_eq!(places("[BitLocker header]"), [(start, number(header, "Size:"))], "{said}");
    for at in areas.iter().map(|(at, _)| *at).chain([start + 3]) {
        assert_eq!(mapped.read(1, at, 8), b"-FVE-FS-");
    }
}

fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => joined.push((start, end)),
        }
    }
    joined
}
