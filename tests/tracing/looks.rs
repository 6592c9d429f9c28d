//! The map of each look at a guest's disks must be the map that a fresh appliance makes of the same
//! state. A guest works on files, its writes are recorded, and the states of that history are
//! looked at one after the other. `make operations-torture` compares many states of all
//! filesystems.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap::mapper::{Cancel, EarlierMaps, KeptAppliance, MapperOptions, described, map_sources};
use virt_bmap::operations::States;
use virt_bmap_history::{Recorded, RecordedBase};
use virt_bmap_image::{Image, ImageFormat, Location, OpenOptions};
use virt_bmap_map::{Kind, Map};
use virt_bmap_ranges::{DiskOffset, RangeSet};
use virt_bmap_testutil::filesystems::{FILESYSTEMS, Filesystem, images};
use virt_bmap_testutil::sandbox::{Finished, Sandbox, sealed};
use virt_bmap_testutil::script::{Writer, features};
use virt_bmap_testutil::usermode::{self, needs_guest};

/// Files that no step touches: with and without blocks, in several directories.
const TREE: &str = "
    for d in a a/b a/b/c d; do
        mkdir /mnt/$d
        for f in 1 2 3 4 5 6 7 8 9 10 11 12; do yes $d$f | head -c ${f}000 >/mnt/$d/file$f; done
        : >/mnt/$d/empty
        echo short >/mnt/$d/short
    done
    sync
";

/// Has a guest perform `steps` on each filesystem, and records what it writes.
fn record(sandbox: Sandbox, filesystems: &[&Filesystem], steps: usize) -> Finished {
    let images = images(filesystems);
    let mut script = String::new();
    for ((filesystem, letter), part) in filesystems.iter().zip('a'..).zip(0..) {
        let rounds = Writer::new(21, part, features(filesystem.name)).rounds(steps, 1);
        let steps: Vec<&Value> = rounds.iter().flat_map(|round| &round.steps).collect();
        let list = json!({"sync": filesystem.sync, "every": 1, "operations": steps});
        let name = format!("{}.json", filesystem.name);
        fs::write(sandbox.cwd().join(&name), list.to_string()).unwrap();
        let device = format!("/dev/vd{letter}");
        script += &usermode::within(&device, filesystem.mount, TREE);
        script += &usermode::perform(&device, filesystem.mount, &name);
    }
    let command = usermode::command(&sandbox.cwd(), images.len(), &script);
    // Nothing is looked up in it.
    fs::write(sandbox.cwd().join("some.bmap"), "1 0 200 v /dev/sda\n").unwrap();
    let options = ["--image-format", "raw", "--map", "some.bmap", "--force", "-o", "log"];
    let options = options.into_iter().chain(["--record", "history", "--run", &command]);
    let run =
        sandbox.run(["trace"].into_iter().chain(images.iter().map(|i| i.to_str().unwrap())).chain(options));
    run.assert_code(0);
    run
}

/// What a map says of a filesystem.
fn content(map: &Map, device: &[u8]) -> BTreeSet<String> {
    let is_of_it =
        |kind| matches!(kind, Kind::File | Kind::Directory | Kind::Symlink | Kind::Metadata | Kind::Free);
    let objects = map.objects().filter(|object| object.name().device == device && is_of_it(object.kind()));
    let described = objects.map(|object| {
        let pieces: Vec<_> =
            object.pieces().map(|piece| (piece.disk, piece.range, piece.file_offset, piece.role)).collect();
        format!("{} {:?} {pieces:?}", object.name(), object.attributes())
    });
    let filesystems = map.header().filesystems.iter().filter(|filesystem| filesystem.device == device);
    described.chain(filesystems.map(|filesystem| format!("{filesystem:?}"))).collect()
}

fn open(image: &Path) -> Image {
    let options = OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() };
    virt_bmap_image::open(&Location::File(image.into()), &options).unwrap()
}

/// Looks at each state of the history, and compares every `each`-th look, and the last one.
fn check(history: &Path, filesystems: &[&Filesystem], each: usize) {
    let images: Vec<Image> = images(filesystems).iter().map(|image| open(image)).collect();
    let infos = described(&images);
    let base = |image: &Image| RecordedBase {
        source: image.source.clone(),
        identity: virt_bmap_trace::identity(image),
    };
    let options = MapperOptions { metadata: true, ..MapperOptions::default() };
    let mut appliance = KeptAppliance::new(options.clone(), infos.clone());
    let (cancel, mut maps) = (Cancel::default(), EarlierMaps::new());
    let mut replayed: Vec<RangeSet<DiskOffset>> = Vec::new();
    let states: Vec<States> = Recorded::open(history, images.iter().map(base).collect())
        .unwrap()
        .map(|state| States::from(state.unwrap()))
        .collect();
    assert!(states.len() > 3, "{} states", states.len());
    let mut wrong = Vec::new();
    for (number, state) in states.iter().enumerate() {
        let mut written = state.written.clone();
        for (written, replayed) in written.iter_mut().zip(&replayed) {
            written.extend(replayed.iter());
        }
        let look = appliance.look(&state.disks, &written, &maps, &cancel, &mut |_| {}).unwrap();
        replayed = look.replayed;
        let map = Arc::new(look.map);
        for filesystem in &map.header().filesystems {
            maps.insert(filesystem.device.clone(), map.clone());
        }
        if number % each != each - 1 && number + 1 < states.len() {
            continue;
        }
        let fresh = map_sources(&state.disks, infos.clone(), Vec::new(), &options, &cancel, &mut |_| {});
        let fresh = fresh.unwrap().map;
        for filesystem in &fresh.header().filesystems {
            let device = &filesystem.device;
            let [kept, fresh] = [&*maps[device], &fresh].map(|map| content(map, device));
            let [more, less] = [kept.difference(&fresh), fresh.difference(&kept)];
            wrong.extend(more.map(|line| format!("state {number}, only in the look: {line}")));
            wrong.extend(less.map(|line| format!("state {number}, not in the look: {line}")));
        }
    }
    assert!(wrong.is_empty(), "{} of {} states:\n{}", wrong.len(), states.len(), wrong.join("\n"));
}

fn looks_are_maps(names: &[&str], steps: usize, each: usize) {
    let chosen: Vec<&Filesystem> =
        FILESYSTEMS.iter().filter(|filesystem| names.contains(&filesystem.name)).collect();
    let images = images(&chosen);
    let _sealed = sealed(&images);
    let sandbox = Sandbox::new().deadline(Duration::from_secs(600));
    let run = record(sandbox, &chosen, steps);
    check(&run.sandbox.cwd().join("history"), &chosen, each);
}

#[test]
fn a_look_is_the_map_of_a_fresh_appliance() {
    needs_guest!();
    if std::env::var_os("VIRT_BMAP_OPERATIONS").is_some() {
        let all: Vec<&str> = FILESYSTEMS.iter().map(|filesystem| filesystem.name).collect();
        all.chunks(3).for_each(|names| looks_are_maps(names, 20, 8));
    } else {
        looks_are_maps(&["ext4", "btrfs", "ntfs"], 3, 1000);
    }
}
