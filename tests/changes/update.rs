//! `virt-bmap-rs update` of a guest whose files were changed. The new map must be equal to a map
//! that is made from scratch, byte for byte, and the answer must list the changes.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;
use virt_bmap_map as bmap;
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{fixture, formats, mapping, textmap};

#[test]
fn an_updated_map_is_one_from_scratch() {
    needs!("guestfish", "sfdisk", "debugfs");
    let fixture = fixture::small();
    let mapping = mapping::of(&[fixture], &[]);
    assert_eq!(mapping.code, 0, "{}", mapping.stderr);
    let sandbox = Sandbox::new();
    let cwd = sandbox.cwd();
    let image = cwd.join("guest.raw");
    formats::copy(&fixture.image, &image);
    fs::write(cwd.join("guest.bmap"), &mapping.text).unwrap();
    fs::write(cwd.join("made"), vec![b'+'; 300_000]).unwrap();

    // debugfs, another program, changes the filesystem in the image.
    let plain = |path: &str| path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    let text = String::from_utf8_lossy(&mapping.text).into_owned();
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.splitn(6, ' ').collect();
        if let [_, start, end, "f", _, path] = fields[..]
            && plain(path)
            && !path.starts_with("/special")
        {
            let offset = |hex| u64::from_str_radix(hex, 16).unwrap();
            *sizes.entry(path).or_default() += offset(end) - offset(start);
        }
    }
    let mut largest: Vec<(&str, u64)> = sizes.into_iter().collect();
    largest.sort_by_key(|(path, size)| (std::cmp::Reverse(*size), *path));
    let [removed, shrunk, renamed, ..] = largest[..] else { panic!("{largest:?}") };
    let requests = format!(
        "write {made} added\nrm {removed}\npunch {shrunk} 1 1\nln {renamed} /renamed\nunlink {renamed}\n",
        made = cwd.join("made").display(),
        removed = removed.0,
        shrunk = shrunk.0,
        renamed = renamed.0,
    );
    fs::write(cwd.join("requests"), requests).unwrap();
    let start = fixture.partitions[0].segments[0].disk;
    let partition = format!("{}?offset={start}", image.display());
    tools::run("debugfs", ["-w", "-f", cwd.join("requests").to_str().unwrap(), &partition]);

    let run = sandbox.run(["update", "guest.bmap", "--image", "guest.raw", "--json"]);
    run.assert_code(0).assert_says(&["mapping again: ", "guest.raw was changed after the map was written"]);
    let answer: Value = serde_json::from_slice(&run.stdout).unwrap();
    let rows = answer["rows"].as_array().unwrap().iter();
    let name = |row: &Value| row["path"].as_str().or(row["old_path"].as_str()).unwrap().to_owned();
    let files = rows.filter(|row| row["type"] == "f");
    let changes: BTreeMap<String, &str> =
        files.map(|row| (name(row), row["change"].as_str().unwrap())).collect();
    let expected =
        [("/added", "added"), (removed.0, "removed"), (shrunk.0, "shrunk"), ("/renamed", "renamed")];
    assert_eq!(changes, expected.map(|(name, change)| (name.to_owned(), change)).into());

    let began = SystemTime::now();
    let run = run.sandbox.run(["guest.raw", "-o", "scratch.bmap"]);
    run.assert_code(0);
    // The map's modification time is the start of the mapping. Thus an image that is written during
    // the mapping is newer than the map.
    let age = cwd.join("scratch.bmap").metadata().unwrap().modified().unwrap().duration_since(began).unwrap();
    assert!(age < run.elapsed / 2, "{age:?} of {:?}", run.elapsed);
    assert!(run.read("guest.bmap") == run.read("scratch.bmap"), "not the map from scratch");
    assert!(run.read("guest.bmap") != mapping.text, "not written");

    let run = run.sandbox.run(["update", "guest.bmap"]);
    run.assert_code(0);
    assert_eq!(run.stdout, b"unchanged\n");
    assert!(run.read("guest.bmap") == run.read("scratch.bmap"), "written again");
}

#[test]
fn a_fleet_brings_maps_up_to_date() {
    needs!("guestfish", "sfdisk", "debugfs");
    let sandbox = Sandbox::new();
    let cwd = sandbox.cwd();
    let fixture = fixture::small();
    formats::copy(&fixture.image, &cwd.join("guest.raw"));
    let run = sandbox.run(["fleet", "guest.raw", "--update"]);
    run.assert_code(0);
    fs::write(cwd.join("made"), vec![b'+'; 300_000]).unwrap();
    fs::write(cwd.join("requests"), format!("write {} added\n", cwd.join("made").display())).unwrap();
    let start = fixture.partitions[0].segments[0].disk;
    let partition = format!("{}?offset={start}", cwd.join("guest.raw").display());
    tools::run("debugfs", ["-w", "-f", cwd.join("requests").to_str().unwrap(), &partition]);

    let run = run.sandbox.run(["fleet", "guest.raw", "--update"]);
    run.assert_code(0).assert_says(&["guest: starting", "guest.raw has changed", "1 added, 0 removed"]);
    let record: Value = serde_json::from_slice(&run.read("maps/fleet.jsonl")).unwrap();
    assert_eq!((&record["changes"]["added"], &record["changes"]["removed"]), (&1.into(), &0.into()));
    let earlier = ["guest.raw", "--earlier", "maps/guest.jsonl.zst", "-o", "again.bmap"];
    let run = run.sandbox.run(earlier);
    run.assert_code(0).assert_says(&["0 added, 0 removed, 0 changed since the baseline"]);
    // Only the bodies are compared, since the fleet names images by their absolute paths.
    let [again, fleet] = ["again.bmap", "maps/guest.bmap"].map(|name| run.read(name));
    assert!(textmap::body(&again) == textmap::body(&fleet));
    assert!(run.taken_over() > Some(50), "{}", run.stderr);
}

/// An unchanged inode does not hide that its file lies elsewhere. On `/dev/sda1` the partition was
/// moved. On `/dev/sda2` a block of extents and a block of a directory were changed, which leaves
/// no trace in the inode. What the kernel cleans up when it mounts a filesystem is the same each
/// time. A directory with two parents, which only damage can cause, is in the map once.
#[test]
fn what_moved_without_a_change_of_its_inode_is_seen() {
    needs!("guestfish", "sfdisk", "debugfs", "mkfs.ext4", "mount");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    const MIB: u64 = 1 << 20;
    const FILES: usize = 40;
    const FOLDERS: usize = 10;
    let sandbox = Sandbox::new();
    let cwd = sandbox.cwd();
    let tree = cwd.join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..FILES {
        fs::write(tree.join(format!("file{number}")), vec![b'a' + number as u8 % 26; 5000 + number * 100])
            .unwrap();
    }
    for number in 0..FOLDERS {
        let folder = tree.join(format!("folder{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("one"), "1").unwrap();
        fs::write(folder.join("two"), vec![b'2'; 5000]).unwrap();
    }
    fs::create_dir(tree.join("folder0/below")).unwrap();
    fs::write(tree.join("pieces"), vec![b'+'; 64 * 4096]).unwrap();
    for name in ["first", "second", "open.raw", "twice.raw"] {
        fs::File::create_new(cwd.join(name)).unwrap().set_len(16 * MIB).unwrap();
        // Without checksums the test can change a block of extents by hand.
        let seed = "hash_seed=aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa";
        let options = ["-q", "-F", "-b", "4096", "-O", "^metadata_csum", "-E", seed, "-d"];
        let mut mkfs = tools::command("mkfs.ext4");
        tools::output(mkfs.args(options).arg(&tree).arg(cwd.join(name)));
        let punches: String = (0..32).map(|n| format!("punch pieces {0} {0}\n", n * 2)).collect();
        fs::write(cwd.join("requests"), punches).unwrap();
        tools::run(
            "debugfs",
            ["-w", "-f", cwd.join("requests").to_str().unwrap(), cwd.join(name).to_str().unwrap()],
        );
    }
    deleted_while_open(&cwd);
    disk(&cwd, 1);

    let images = ["guest.raw", "open.raw", "twice.raw"];
    let run = sandbox.run([&images[..], &["-o", "guest.jsonl"]].concat());
    run.assert_code(0);
    let header: Value =
        serde_json::from_slice(run.read("guest.jsonl").split(|b| *b == b'\n').next().unwrap()).unwrap();
    let has_digests = |number: usize| header["filesystems"][number]["inodes"].is_array();
    assert_eq!([0, 1, 2, 3].map(has_digests), [true; 4], "{header}");

    swap_extents(&cwd.join("second"));
    swap_names(&cwd.join("second"));
    disk(&cwd, 2);
    tools::run("debugfs", ["-w", "-R", "ln /folder0/below /twice", cwd.join("twice.raw").to_str().unwrap()]);
    let run = run.sandbox.run(["update", "guest.jsonl", "--verbose"]);
    run.assert_code(3).assert_says(&["was visited before", "is damaged"]);
    // Reused are all files of /dev/sda2 but `/pieces`, whose extents were swapped, and all files of
    // /dev/sdb but `/file7`, which was deleted.
    let taken_over = FILES + 2 * FOLDERS;
    assert_eq!(run.taken_over(), Some(2 * taken_over as u64), "{}", run.stderr);
    // On /dev/sda2 the agent lists the root, and the directories that share an inode digest with
    // `/folder3`, in which names were swapped. On /dev/sdb those whose inodes lie in the blocks that
    // the replay of the journal changed.
    let listed = run.directories_listed();
    let all = FOLDERS as u64 + 3;
    assert!(matches!(listed[..], [first, 2..=4, 2..=8, twice] if [first, twice] == [all; 2]), "{listed:?}");
    let run = run.sandbox.run([&images[..], &["-o", "scratch.jsonl"]].concat());
    run.assert_code(3);
    assert!(run.read("guest.jsonl") == run.read("scratch.jsonl"), "not the map from scratch");
    let text = String::from_utf8(run.read("guest.jsonl")).unwrap();
    let objects = text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
    let swapped = objects.filter(|object| object["path"] == "/folder3/one");
    let sizes: Vec<(String, u64)> =
        swapped.map(|it| (it["device"].as_str().unwrap().to_owned(), it["size"].as_u64().unwrap())).collect();
    let expected = [("/dev/sda1", 1), ("/dev/sda2", 5000), ("/dev/sdb", 1), ("/dev/sdc", 1)];
    assert_eq!(sizes, expected.map(|(device, size)| (device.to_owned(), size)));
}

/// Puts the two filesystems on `guest.raw`. The first begins at `mib` MiB.
fn disk(cwd: &Path, mib: u64) {
    let table = format!("label: dos\nstart={mib}MiB, size=16MiB\nstart=20MiB, size=16MiB\n");
    let image = fs::File::create(cwd.join("guest.raw")).unwrap();
    image.set_len(40 << 20).unwrap();
    fs::write(cwd.join("table"), table).unwrap();
    let table = fs::File::open(cwd.join("table")).unwrap();
    tools::output(tools::command("sfdisk").arg("-q").arg(cwd.join("guest.raw")).stdin(table));
    for (name, mib) in [("first", mib), ("second", 20)] {
        image.write_all_at(&fs::read(cwd.join(name)).unwrap(), mib << 20).unwrap();
    }
}

/// Makes `open.raw` a filesystem whose journal says that a file was deleted while it was open.
fn deleted_while_open(cwd: &Path) {
    let (image, root) = (cwd.join("open.raw"), cwd.join("root"));
    virt_bmap_testutil::mounted::mounted(&image, "ext4", "loop", &root, || {
        let open = fs::File::open(root.join("file7")).unwrap();
        fs::remove_file(root.join("file7")).unwrap();
        tools::run("sync", ["-f", root.to_str().unwrap()]);
        fs::copy(&image, cwd.join("copy")).unwrap();
        drop(open);
    });
    fs::rename(cwd.join("copy"), &image).unwrap();
}

/// Swaps the names of two files of `/folder3`, in the directory's block.
fn swap_names(image: &Path) {
    let said = tools::run("debugfs", ["-R", "blocks /folder3", image.to_str().unwrap()]);
    let at = String::from_utf8(said).unwrap().trim().parse::<u64>().unwrap() * 4096;
    let file = fs::OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, at).unwrap();
    let find = |name: &[u8]| block.windows(name.len()).position(|bytes| bytes == name).unwrap() as u64;
    let [one, two] = [&b"one"[..], b"two"].map(find);
    file.write_all_at(b"two", at + one).unwrap();
    file.write_all_at(b"one", at + two).unwrap();
}

/// Swaps the places of the first two extents of `/pieces`, in the block of extents that its inode
/// points to.
fn swap_extents(image: &Path) {
    let said = tools::run("debugfs", ["-R", "stat /pieces", image.to_str().unwrap()]);
    let said = String::from_utf8(said).unwrap();
    let block = said.split_once("(ETB0):").unwrap().1;
    let block: u64 = block[..block.find(|c: char| !c.is_ascii_digit()).unwrap()].parse().unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(image).unwrap();
    // The block has a header of 12 bytes, then extents of 12 bytes each. The last four bytes of an
    // extent say where it lies.
    let places = [24, 36].map(|end| block * 4096 + end - 4);
    let [mut first, mut second] = [[0; 4]; 2];
    file.read_exact_at(&mut first, places[0]).unwrap();
    file.read_exact_at(&mut second, places[1]).unwrap();
    assert_ne!(first, second);
    file.write_all_at(&second, places[0]).unwrap();
    file.write_all_at(&first, places[1]).unwrap();
}

/// The baseline is a map of the release that wrote version 1 of JSON Lines. That version kept
/// warnings as sentences. They do not say reliably which files of their device are affected, so no
/// file of such a device is reused.
#[test]
fn of_a_map_of_version_1_no_device_with_a_warning_is_trusted() {
    needs!("zstd", "debugfs");
    const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats/version-1");
    let sandbox = Sandbox::new();
    let cwd = sandbox.cwd().to_owned();
    let image = cwd.join("guest.raw");
    tools::run("zstd", ["-q", "-d", &format!("{KEPT}/guest.raw.zst"), "-o", image.to_str().unwrap()]);
    let kept = fs::read_to_string(format!("{KEPT}/guest.jsonl")).unwrap();
    fs::write(cwd.join("guest.jsonl"), &kept).unwrap();
    let warning = r#""/dev/sda2 /file3: cannot open it: Structure needs cleaning (os error 117)""#;
    assert!(kept.lines().next().unwrap().ends_with(&format!("\"warnings\":[{warning}]}}")));
    fs::write(cwd.join("more.jsonl"), kept.replacen(warning, r#""and more: 7 like these""#, 1)).unwrap();

    let run = sandbox.run(["guest.raw", "-o", "scratch.jsonl"]);
    run.assert_code(3);
    let of_device = |device: &str| {
        let line = format!(r#"{{"type":"f","device":"{device}""#);
        kept.lines().filter(|kept| kept.starts_with(&line)).count() as u64
    };
    let (first, second) = (of_device("/dev/sda1"), of_device("/dev/sda2"));
    assert_eq!((first, second), (9, 8));
    let mut run = run;
    // The new map says what its warning is about, so all its files can be reused.
    for (earlier, taken_over) in
        [("guest.jsonl", first), ("more.jsonl", 0), ("scratch.jsonl", first + second)]
    {
        run = run.sandbox.run(["guest.raw", "--earlier", earlier, "-o", "again.jsonl"]);
        run.assert_code(3);
        assert_eq!(run.taken_over().unwrap_or(0), taken_over, "{earlier}: {}", run.stderr);
        assert!(run.read("again.jsonl") == run.read("scratch.jsonl"), "{earlier}: not the map from scratch");
    }
    // That map had no metadata, which was not asked for.
    let scratch = bmap::load(&cwd.join("scratch.jsonl")).unwrap().without_metadata();
    let mut plain = Vec::new();
    bmap::jsonl::write(&scratch, &mut plain).unwrap();
    let body = |map: &str| map.split_once('\n').unwrap().1.to_owned();
    assert!(body(&String::from_utf8(plain).unwrap()) == body(&kept), "not what version 1 had");
}
