//! A fleet of real guests, with an appliance for each guest. The run is killed and started again.
//!
//! By default there are seven guests and one kill. With `VIRT_BMAP_FLEET=20` there are 20 guests
//! and ten kills: `make fleet-check`.

use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use virt_bmap_map::{Kind, load, text};
use virt_bmap_testutil::fixture::Fixture;
use virt_bmap_testutil::random::Random;
use virt_bmap_testutil::sandbox::{Sandbox, processes_with, sealed};
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{cache, fixture, formats, layered, mapping, textmap, tools};

/// The mapper of the fleet. It writes down the guest's id, and runs the program that is its first
/// argument.
///
/// The guest `hangs` has a timeout of one second, and its appliance boots for longer, so that it
/// fails as a guest does in which nothing happens. The appliance of `stuck` is stopped when it begins
/// to read the first filesystem, so that the probe waits for it.
const MAPPER: &str = r#"#!/bin/bash
program=$1; shift
for word; do image=$word; done
id=$(basename "${image%.*}")
echo "$id" >> "$STARTED"
case $id in
    hangs) exec "$program" --appliance=boot --timeout=1 "$@" ;;
    stuck) exec "$program" --timeout=25 "$@" 2> >(
        while IFS= read -r line; do
            case $line in *'[1/'*reading*) [ -n "$stopped" ] || pkill -STOP -P $$ qemu-system; stopped=1 ;; esac
            printf '%s\n' "$line" >&2
        done) ;;
    *) exec "$program" "$@" ;;
esac
"#;

/// The most memory in bytes that a guest may take on the host: its mapper, and the `qemu-nbd` that
/// serves its image.
const MAX_MEMORY: u64 = 100_000_000;

/// The guests of the fleet by id: the raw image from which each image is converted and whose map
/// the guest's map must equal, and the status that is expected.
struct Fleet {
    dir: tempfile::TempDir,
    made_of: BTreeMap<String, &'static Fixture>,
    expected: BTreeMap<String, &'static str>,
}

impl Fleet {
    /// Seven guests. If more are wanted, the others have all kinds of filesystems.
    fn new(wanted: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        fs::write(dir.path().join("mapper"), MAPPER).unwrap();
        fs::set_permissions(dir.path().join("mapper"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut fleet = Self { dir, made_of: BTreeMap::new(), expected: BTreeMap::new() };
        let (small, lv, blank) = (fixture::small(), fixture::lv_only(), fixture::blank());
        fleet.add("ext4", small, "qcow2", "", "complete");
        fleet.add("lv", lv, "vmdk", "subformat=streamOptimized", "complete");
        fleet.add("damaged", fixture::damaged(), "raw", "", "incomplete");
        fleet.add("blank", blank, "raw", "", "complete");
        fleet.add("hangs", blank, "raw", "", "hung");
        fleet.add("locked", blank, "raw", "", "failed");
        fleet.add("corrupt", blank, "qcow2", "", "failed");
        // The offset of the level-1 table, at byte 40, is invalid.
        let corrupt = File::options().write(true).open(fleet.image("corrupt.qcow2")).unwrap();
        corrupt.write_all_at(&u64::MAX.to_be_bytes(), 40).unwrap();
        if wanted > fleet.expected.len() {
            fleet.add("stuck", fixture::guest(), "qcow2", "", "incomplete");
            let kinds = [mixed(), fixture::guest(), small, lv, fixture::plain()];
            let formats = [("vdi", ""), ("qcow2", ""), ("vhdx", ""), ("vpc", "force_size=on")];
            for number in fleet.expected.len()..wanted {
                let (format, options) = formats[number % formats.len()];
                fleet.add(
                    &format!("more{number:02}"),
                    kinds[number % kinds.len()],
                    format,
                    options,
                    "complete",
                );
            }
        }
        fleet
    }

    fn add(&mut self, id: &str, raw: &'static Fixture, format: &str, options: &str, status: &'static str) {
        formats::convert(&raw.image, &self.image(&format!("{id}.{format}")), format, options);
        self.made_of.insert(id.to_owned(), raw);
        self.expected.insert(id.to_owned(), status);
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self, name: &str) -> PathBuf {
        self.at("images").join(name)
    }

    fn images(&self) -> Vec<PathBuf> {
        fs::read_dir(self.at("images")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new().env("STARTED", self.at("started")).deadline(Duration::from_secs(1800))
    }

    fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["fleet".into(), self.at("images").into()];
        args.extend(["-j2", "--json", "--retries=0", "--out-dir"].map(OsString::from));
        args.push(self.at("maps").into());
        for word in [self.at("mapper").as_os_str(), crate::PROGRAM.as_ref()] {
            args.extend(["--mapper".into(), word.to_owned()]);
        }
        args
    }

    /// The guests for which a mapper was started since the last call.
    fn started(&self) -> Vec<String> {
        let started = fs::read_to_string(self.at("started")).unwrap_or_default();
        fs::remove_file(self.at("started")).ok();
        started.lines().map(str::to_owned).collect()
    }

    /// The guests that have a record and a map, with the text of the record.
    fn finished(&self) -> BTreeMap<String, String> {
        let records = fs::read_dir(self.at("maps/.fleet/guests")).into_iter().flatten().flatten();
        let records = records.filter_map(|entry| {
            let path = entry.path();
            let id = path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned();
            let record = fs::read_to_string(&path).unwrap();
            let parsed: Value = serde_json::from_str(&record).unwrap();
            assert_eq!(parsed["status"], self.expected[&id], "{record}");
            (!parsed["maps"].as_array().unwrap().is_empty()).then_some((id, record))
        });
        records.collect()
    }

    /// Fails unless each file with the name of a map is a complete and correct map.
    fn check_maps(&self) {
        let maps = fs::read_dir(self.at("maps")).into_iter().flatten().flatten();
        for path in maps.map(|entry| entry.path()) {
            let Some(id) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".bmap") else {
                continue;
            };
            let alone = mapping::of(&[self.made_of[id]], &[]);
            let map = fs::read(&path).unwrap();
            // The map of `stuck` lacks a filesystem.
            if id != "stuck" {
                assert!(textmap::body(&map) == textmap::body(&alone.text), "{id}");
            }
            let Ok(whole) = load(&self.at("maps").join(format!("{id}.jsonl.zst"))) else {
                // The run was killed after it had put one of the two maps in place.
                assert!(!self.finished().contains_key(id), "{id} has no map as JSON Lines");
                continue;
            };
            let mut out = Vec::new();
            text::write(&whole.without_metadata(), &mut out).unwrap();
            assert!(out == map, "{id}: the two maps differ");
        }
    }

    /// The records in `fleet.jsonl`, by id. No id may occur twice.
    fn records(&self) -> BTreeMap<String, Value> {
        virt_bmap_testutil::fleet::records(&self.at("maps/fleet.jsonl"))
    }
}

#[test]
fn good_and_bad_guests() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io", "pkill", "bash");
    let wanted = std::env::var("VIRT_BMAP_FLEET").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    let fleet = Fleet::new(wanted);
    let images = sealed(fleet.images());
    let holder = Holder::of(&fleet.image("locked.raw"));

    let (kills, latest) = if wanted > 7 { (10, 15_000) } else { (1, 8_000) };
    let mut random = Random::of(7, 0);
    for round in 0..kills {
        let before = fleet.finished();
        fleet.started();
        let mut run = fleet.sandbox().start(fleet.args());
        run.wait(Duration::from_millis(random.below(latest)));
        run.signal(Signal::KILL);
        // This also checks that no process and no temporary file is left.
        let run = run.finish();
        assert!([128 + 9, 3].contains(&run.code()), "{}", run.stderr);
        let after = fleet.finished();
        eprintln!("killed after {:.1?}, round {round}: {} guests have maps", run.elapsed, after.len());
        assert!(before.iter().all(|(id, record)| after.get(id) == Some(record)), "a guest was done again");
        let started = fleet.started();
        assert!(!started.iter().any(|id| before.contains_key(id)), "{started:?} were started");
        fleet.check_maps();
    }

    let before = fleet.finished();
    let watch = MemoryWatch::of(&fleet.at("started"));
    let run = fleet.sandbox().run(fleet.args());
    let watched = watch.end();
    run.assert_code(3);
    let (started, rest) = (fleet.started(), fleet.expected.len() - before.len());
    assert_eq!((started.len(), BTreeSet::from_iter(&started).len()), (rest, rest), "{started:?}");
    assert!(!started.iter().any(|id| before.contains_key(id)), "{started:?} were started");
    assert!(before.iter().all(|(id, record)| fleet.finished().get(id) == Some(record)));
    fleet.check_maps();
    let records = fleet.records();
    let status =
        |(id, record): (&String, &Value)| (id.clone(), record["status"].as_str().unwrap().to_owned());
    let expected = fleet.expected.iter().map(|(id, status)| (id.clone(), (*status).to_owned()));
    assert_eq!(records.iter().map(status).collect::<BTreeMap<_, _>>(), expected.collect(), "{}", run.stderr);
    assert_eq!(fs::read_dir(fleet.at("maps/.fleet/work")).unwrap().count(), 0);
    let with_maps = records.values().filter(|record| record["maps"] != serde_json::json!([])).count();
    // The other two entries are fleet.jsonl and .fleet.
    assert_eq!(fs::read_dir(fleet.at("maps")).unwrap().count(), 2 * with_maps + 2);
    check_reasons(&records);
    check_counts(&fleet, &records);
    check_memory(&records, &watched);

    // Guests that have a map are not mapped again. Of the three others, `locked` is no longer
    // locked and succeeds.
    drop((holder, images));
    fs::remove_file(fleet.image("stuck.qcow2")).ok();
    let _images = sealed(fleet.images());
    let again = fleet.sandbox().run(fleet.args());
    again.assert_code(3).assert_says(&["3 guests to map", "locked: starting (last attempt: failed)"]);
    assert_eq!(fleet.records()["locked"]["status"], "complete");
    fleet.check_maps();
}

/// Checks what the records say of the guests that could not be mapped completely.
fn check_reasons(records: &BTreeMap<String, Value>) {
    let error = |id: &str| records[id]["error"].as_str().unwrap().to_owned();
    assert!(error("corrupt").contains("corrupt.qcow2"), "{}", error("corrupt"));
    assert!(error("locked").contains("--force-share"), "{}", error("locked"));
    assert!(error("hangs").contains("nothing happened for 1 seconds"), "{}", error("hangs"));
    assert!(records["damaged"]["unexamined"].as_array().unwrap().len() >= 2);
    assert!(records["blank"]["warnings"][0]["cause"]["kind"] == "blank");
    assert_eq!(records["ext4"]["disks"][0]["opened"]["format"], "qcow2");
    if let Some(stuck) = records.get("stuck") {
        let left_out = stuck["unexamined"].as_array().unwrap();
        assert_eq!(left_out.len(), 1, "{stuck}");
        assert!(left_out[0]["cause"]["kind"] == "hung", "{stuck}");
    }
}

/// A map has as many files as its record counts, or fewer, since files without bytes are counted
/// too.
fn check_counts(fleet: &Fleet, records: &BTreeMap<String, Value>) {
    for (id, record) in records.iter().filter(|(_, record)| record["counts"]["filesystems"] != 0) {
        let Some(counted) = record["counts"]["files"].as_u64() else { continue };
        let map = load(&fleet.at("maps").join(format!("{id}.jsonl.zst"))).unwrap();
        let files = map.objects().filter(|object| object.kind() == Kind::File).count() as u64;
        assert!((1..=counted).contains(&files), "{id}: {files} of {counted}");
    }
}

/// Compares the memory of each guest with the limit, and the peak in its record with what was
/// observed.
fn check_memory(records: &BTreeMap<String, Value>, watched: &BTreeMap<String, Memory>) {
    for (id, record) in records {
        let Some(peak) = record["peak_memory"].as_u64() else { continue };
        let seen = watched.get(id).copied().unwrap_or_default();
        let helpers = seen.helpers as f64 / 1e6;
        eprintln!("{id}: {:.1} MB, and {helpers:.1} MB of qemu-nbd", peak as f64 / 1e6);
        assert!(peak + seen.helpers <= MAX_MEMORY, "{id}: {peak} and {seen:?}");
        // The record and the observation are of different moments.
        let tolerance = 8 << 20;
        assert!(seen.mapper.saturating_sub(tolerance) <= peak && peak > tolerance, "{id}: {peak}, {seen:?}");
    }
    let both = watched.iter().filter(|(id, seen)| records[*id]["peak_memory"].is_u64() && seen.mapper > 0);
    assert!(both.count() > 0, "no mapper was seen: {watched:?}");
}

/// The peak memory of a guest's processes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    mapper: u64,
    /// All `qemu-nbd` processes that the mapper started.
    helpers: u64,
}

/// Watches the processes of a fleet's run until the run has ended.
struct MemoryWatch {
    thread: thread::JoinHandle<BTreeMap<String, Memory>>,
    is_over: &'static AtomicBool,
}

impl MemoryWatch {
    /// Watches the run whose mappers write to the list `started`.
    fn of(started: &Path) -> Self {
        let mark = format!("STARTED={}", started.display());
        let is_over: &AtomicBool = Box::leak(Box::default());
        let thread = thread::spawn(move || {
            let mut peaks: BTreeMap<(u32, String), u64> = BTreeMap::new();
            let mut guests: BTreeMap<u32, String> = BTreeMap::new();
            let mut parents: BTreeMap<(u32, String), u32> = BTreeMap::new();
            while !is_over.load(Ordering::Relaxed) {
                for process in processes(&mark) {
                    let key = (process.pid, process.name.clone());
                    if let Some(id) = process.guest() {
                        guests.insert(process.pid, id);
                    }
                    parents.insert(key.clone(), process.parent);
                    let peak = peaks.entry(key).or_default();
                    *peak = process.peak.max(*peak);
                }
                thread::sleep(Duration::from_millis(50));
            }
            let mut found: BTreeMap<String, Memory> = BTreeMap::new();
            for ((pid, name), peak) in peaks {
                if let Some(id) = guests.get(&pid).filter(|_| name == "virt-bmap-rs") {
                    let memory = found.entry(id.clone()).or_default();
                    memory.mapper = memory.mapper.max(peak);
                } else if name == "qemu-nbd"
                    && let Some(id) = guests.get(&parents[&(pid, name)])
                {
                    found.entry(id.clone()).or_default().helpers += peak;
                }
            }
            found
        });
        Self { thread, is_over }
    }

    /// Stops watching and returns the peaks, by guest.
    fn end(self) -> BTreeMap<String, Memory> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A process, as described in proc(5).
struct Process {
    pid: u32,
    name: String,
    parent: u32,
    arguments: String,
    peak: u64,
}

impl Process {
    /// The id of the guest that this process maps.
    fn guest(&self) -> Option<String> {
        let work = self.arguments.split("/.fleet/work/").nth(1)?;
        Some(work.split('/').next()?.to_owned())
    }
}

/// The processes whose environment contains `mark`.
fn processes(mark: &str) -> Vec<Process> {
    let look = |directory: &Path| {
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let field =
            |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        Some(Process {
            pid: field("Pid:")?.parse().ok()?,
            name: field("Name:")?,
            parent: field("PPid:")?.parse().ok()?,
            arguments: String::from_utf8_lossy(&fs::read(directory.join("cmdline")).ok()?).into_owned(),
            peak: field("VmHWM:")?.strip_suffix(" kB")?.parse::<u64>().ok()? << 10,
        })
    };
    processes_with(mark).iter().filter_map(|(_, directory)| look(directory)).collect()
}

/// A disk with five filesystems of different kinds. Each has one file whose content is known.
fn mixed() -> &'static Fixture {
    static MIXED: std::sync::OnceLock<Fixture> = std::sync::OnceLock::new();
    MIXED.get_or_init(|| {
        const SIZE: usize = 200_000;
        let kinds = ["mkfs.xfs -q", "mkfs.btrfs -q", "mkfs.ntfs -q -f", "mkfs.f2fs -q", "mkfs.vfat"];
        let parts = [320, 128, 64, 64, 64];
        let contents: Vec<_> = (1..=5).map(|id| layered::pattern(id, SIZE)).collect();
        let fill = |(id, mkfs)| layered::fill(&format!("/dev/sda{id}"), mkfs, id, SIZE);
        let script: String = (1..).zip(kinds).map(fill).collect();
        let dir = cache::directory("fleet-mixed", &cache::key((layered::SOURCE, &script)), |dir| {
            layered::make(dir, &[(660, &parts)], &contents, &script);
            fs::write(dir.join("sha256"), tools::sha256(&dir.join("1.raw"))).unwrap();
        });
        let (image, sha256) = (dir.join("1.raw"), fs::read_to_string(dir.join("sha256")).unwrap());
        // The fleet's map is compared with the map of a run for this guest alone. Check here that
        // the latter is right.
        let fixture =
            Fixture { image, sha256, partitions: vec![], logical_volumes: vec![], filesystems: vec![] };
        let (map, file) = (mapping::of(&[&fixture], &[]).map, File::open(&fixture.image).unwrap());
        for (number, content) in (1..).zip(&contents) {
            let mut read = Vec::new();
            for range in &map.paths(1, 'f', &format!("/dev/sda{number}"))[&b"/file"[..]] {
                let at = read.len();
                read.resize(at + (range.end - range.start) as usize, 0);
                file.read_exact_at(&mut read[at..], range.start).unwrap();
            }
            assert!(read.starts_with(content), "/dev/sda{number}: these are not the bytes of its file");
        }
        fixture
    })
}

/// Holds an image open until it is dropped, as a running virtual machine does.
struct Holder(Child);

impl Holder {
    fn of(image: &Path) -> Self {
        let mut command = tools::command("qemu-io");
        command.args(["-f", "raw", "-c", "sleep 3600000"]).arg(image).stdout(Stdio::null());
        let mut holder = Self(command.spawn().unwrap());
        while !is_locked(image) {
            assert!(holder.0.try_wait().unwrap().is_none(), "qemu-io ended");
            thread::sleep(Duration::from_millis(20));
        }
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Whether any process holds a lock on the file.
fn is_locked(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{} ", path.metadata().unwrap().ino());
    fs::read_to_string("/proc/locks").unwrap().lines().any(|line| line.contains(&inode))
}
