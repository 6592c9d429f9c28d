//! Maps the guests, judges every file, and makes the table.

use crate::arbiter::{Copies, Ranges, Rules, Scan, Verdict, judge};
use crate::books::{self, Books};
use crate::counts::{Bytes, grouped};
use crate::flat::Flat;
use crate::guests::{Guest, Row};
use crate::population::TestFile;
use crate::second::Second;
use crate::{noise, peers};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use virt_bmap_map::{self as bmap, Kind, PieceFlags};
use virt_bmap_testutil::ranges::Range;
use virt_bmap_testutil::{ranges, sandbox, tools};

/// The time limit of a run. The slow probe needs a third of a second for each object on an idle
/// machine.
const DEADLINE: Duration = Duration::from_secs(900);

/// A value of `--probe`.
pub(crate) struct Probe {
    /// Its name.
    pub(crate) name: &'static str,
    /// Further options for the program.
    options: &'static [&'static str],
    /// Whether it is so slow for each object that it maps only the small guest.
    is_slow: bool,
    /// Whether it reads with cold caches, so that the file's ranges include metadata.
    reads_metadata: bool,
    /// Whether it names only the copy that it read.
    is_one_leg: bool,
}

/// All probes, in the order of the table.
pub(crate) const PROBES: [Probe; 3] = [
    Probe { name: "agent", options: &[], is_slow: false, reads_metadata: false, is_one_leg: false },
    Probe { name: "extents", options: &[], is_slow: false, reads_metadata: false, is_one_leg: false },
    Probe { name: "guestfsd", options: &[], is_slow: true, reads_metadata: true, is_one_leg: true },
];

/// One line of the table.
pub(crate) struct Line {
    /// The filesystem or layer.
    pub(crate) name: String,
    /// The probe that mapped it.
    pub(crate) probe: &'static str,
    /// How many files were compared. A file on a snapshot and on its origin counts twice.
    pub(crate) files: usize,
    /// How many are exact.
    pub(crate) exact: usize,
    /// How many files have no blocks of their own or were not found, by reason.
    pub(crate) marked: BTreeMap<&'static str, usize>,
    /// The bytes of the files.
    pub(crate) bytes: Bytes,
    /// The number of streams and resource forks among the files, and their bytes.
    pub(crate) streams: (usize, Bytes),
    /// The files with a wrong map: the path, and what is wrong.
    pub(crate) wrong: Vec<(String, String)>,
    /// How often the second oracles agree.
    pub(crate) second: String,
    /// The files for which a second oracle differs: the path, and both answers.
    pub(crate) differing: Vec<(String, String)>,
    /// Why there are no numbers, if there are none.
    pub(crate) blocked: Option<String>,
}

/// The files of a map, by path. A path may occur on several devices, or in several subvolumes of
/// one device, so below the path the ranges are by place.
type Files = BTreeMap<String, BTreeMap<String, Ranges>>;

/// The part of a map that is judged.
struct Map {
    files: Files,
}

impl Map {
    /// Reads the lines of files, and ignores lines of other types.
    fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        Self { files: files_of(&text) }
    }

    /// The files below a directory of this name. The directory may be on any device, or in a
    /// subvolume, which the map shows as a directory.
    fn instances(&self, directory: &str) -> Files {
        let mut found = Files::new();
        for (path, devices) in &self.files {
            let Some(at) = path.find(directory) else { continue };
            for (device, ranges) in devices {
                let place = format!("{device} {}", &path[..at]).trim_end().to_owned();
                found.entry(path[at..].to_owned()).or_default().insert(place, ranges.clone());
            }
        }
        found
    }
}

/// The probes with which a guest is mapped.
fn probes(guest: &Guest) -> impl Iterator<Item = &'static Probe> {
    let is_small = guest.is_small;
    PROBES.iter().filter(move |probe| is_small || !probe.is_slow)
}

/// Maps a guest with each probe and judges its rows.
///
/// The first probe maps it twice: in libguestfs's appliance, and with metadata in the program's
/// own. Files, directories and devices must be the same in both maps.
pub(crate) fn measure(guest: &Guest) -> (Vec<Line>, Vec<Books>) {
    let raw = guest.images();
    let staging = tempfile::tempdir().unwrap();
    let images: Vec<PathBuf> = (raw.iter().zip(guest.formats()).enumerate())
        .map(|(number, (raw, format))| {
            if format == "raw" {
                return raw.clone();
            }
            let image = staging.path().join(format!("disk{number}.{format}"));
            let args = ["convert", "-f", "raw", "-O", format].map(OsStr::new);
            tools::run("qemu-img", args.into_iter().chain([raw.as_os_str(), image.as_os_str()]));
            image
        })
        .collect();
    let mut scan = Scan::of(&raw, &guest.plain);
    if guest.rows.iter().any(|row| row.rules.compressible) {
        scan.decompress();
    }
    let texts: Vec<(&Probe, Vec<u8>)> = probes(guest)
        .map(|probe| {
            let appliance = if probe.name == PROBES[0].name { "stock" } else { "own" };
            let run = map(guest, probe, &images, &["-o", "out.bmap", "--appliance", appliance]);
            (probe, run.read("out.bmap"))
        })
        .collect();
    let with_metadata = with_metadata(guest, &images);
    assert_same(guest, &texts[0].1, &with_metadata);
    if let Some(disk) = guest.recorded {
        let missing = peers::recorded(&with_metadata, disk);
        assert!(missing.is_empty(), "{missing:#?}");
    }
    let noise = noise::consequences(guest, &books::free(&with_metadata, None));
    let maps: Vec<(&Probe, Map)> = texts.iter().map(|(probe, text)| (*probe, Map::parse(text))).collect();
    let (mut lines, mut all_books) = (Vec::new(), Vec::new());
    for row in &guest.rows {
        let flat = row.place.as_ref().map(|place| Flat::of(place, &raw));
        let mut second = flat.as_ref().map(|flat| Second::of(row, flat));
        for (probe, map) in &maps {
            lines.push(line(row, probe, &scan, map, second.as_mut()));
        }
        let line = &lines[lines.len() - maps.len()];
        let mut books = Books::of(row, &with_metadata, flat.as_ref(), line);
        books.noise(&books::free(&with_metadata, Some(row)), noise.get(row.slug()));
        all_books.push(books);
    }
    (lines, all_books)
}

/// Maps a guest with a probe and further options.
fn map(guest: &Guest, probe: &Probe, images: &[PathBuf], more: &[&str]) -> sandbox::Finished {
    let args = images.iter().map(|image| image.as_os_str());
    let probing = ["--probe", probe.name];
    let rest = more.iter().chain(&probing).chain(&guest.options).chain(probe.options);
    let run = sandbox::Sandbox::new().deadline(DEADLINE).run(args.chain(rest.map(OsStr::new)));
    assert!(matches!(run.code(), 0 | 3), "{}: {}", guest.name, run.stderr);
    if let Some(dir) = std::env::var_os("ACCURACY_KEEP") {
        let at = |suffix| PathBuf::from(&dir).join(format!("{}.{}.{suffix}", guest.name, probe.name));
        let out = run.sandbox.cwd().join(more[1]);
        std::fs::copy(&out, at(out.extension().unwrap().to_str().unwrap())).unwrap();
        std::fs::write(at("stderr"), &run.stderr).unwrap();
    }
    run
}

/// Maps a guest with metadata.
fn with_metadata(guest: &Guest, images: &[PathBuf]) -> bmap::Map {
    let run = map(guest, &PROBES[0], images, &["-o", "out.jsonl", "--metadata", "--appliance", "own"]);
    bmap::load(&run.sandbox.cwd().join("out.jsonl")).unwrap()
}

/// Files, directories and devices must have the same ranges in a text map without metadata as in
/// one with it, apart from data inside metadata.
fn assert_same(guest: &Guest, text: &[u8], with_metadata: &bmap::Map) {
    const ABSENT: PieceFlags = PieceFlags::INLINE.union(PieceFlags::UNWRITTEN).union(PieceFlags::PARITY);
    let mut expected: Vec<(String, Ranges)> =
        objects_of(&String::from_utf8_lossy(text)).into_iter().collect();
    let mut found: Vec<(String, Ranges)> = with_metadata
        .objects()
        .filter(|object| !matches!(object.kind(), Kind::Metadata | Kind::Symlink | Kind::Free))
        .map(|object| {
            let name = object.name();
            let [device, path] = [name.device, name.path].map(String::from_utf8_lossy);
            let letter = char::from(object.kind().letter());
            (format!("{letter} {device} {path}").trim_end().to_owned(), books::ranges_of(object, ABSENT))
        })
        .filter(|(_, ranges)| !ranges.is_empty())
        .collect();
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let differing = expected.iter().zip(&found).find(|(a, b)| a != b);
    assert!(
        expected == found,
        "{}: with metadata, or by the other appliance, the map is another: {differing:x?}; {} and {} objects",
        guest.name,
        expected.len(),
        found.len()
    );
}

/// The lines of a guest that could not be made or mapped.
pub(crate) fn unmeasured(guest: &Guest) -> Vec<Line> {
    let rows = guest.rows.iter().flat_map(|row| probes(guest).map(move |probe| (row, probe)));
    rows.map(|(row, probe)| Line { blocked: Some("not measured".into()), ..Line::new(row, probe) }).collect()
}

impl Line {
    /// Whether the map is not as the oracle says. The probe that reads metadata along names too
    /// much, which is a mark.
    pub(crate) fn is_wrong(&self) -> bool {
        let is_less = self.bytes.found < self.bytes.known;
        let is_more = self.bytes.right < self.bytes.named && self.probe != "guestfsd";
        self.blocked.is_some() || !self.wrong.is_empty() || is_less || is_more
    }

    fn new(row: &Row, probe: &Probe) -> Self {
        Self {
            name: row.name.to_owned(),
            probe: probe.name,
            files: 0,
            exact: 0,
            marked: BTreeMap::new(),
            bytes: Bytes::default(),
            streams: (0, Bytes::default()),
            wrong: Vec::new(),
            second: String::new(),
            differing: Vec::new(),
            blocked: None,
        }
    }
}

fn line(row: &Row, probe: &Probe, scan: &Scan, map: &Map, mut second: Option<&mut Second>) -> Line {
    let mut line = Line::new(row, probe);
    let mut rules = Rules { metadata: probe.reads_metadata, ..row.rules };
    if probe.is_one_leg {
        rules.copies = Copies::Any;
    }
    if let Some(second) = &mut second {
        second.begin();
    }
    let mapped = map.instances(&format!("/{}/", row.slug()));
    if mapped.is_empty() {
        line.blocked = Some("not in the map".into());
        return line;
    }
    let mut is_awake = false;
    let nothing = BTreeMap::from([(String::from("no device"), Ranges::new())]);
    let known: BTreeSet<&String> = row.files.iter().flat_map(|file| &file.names).collect();
    let invented = mapped.keys().filter(|name| !known.contains(name));
    line.wrong.extend(invented.map(|name| (name.clone(), "there is no such file".into())));
    for file in &row.files {
        for name in &file.names {
            let devices = mapped.get(name).unwrap_or(&nothing);
            for (device, ranges) in devices {
                line.files += 1;
                let (verdict, bytes) = judge(scan, file, ranges, rules);
                line.bytes += bytes;
                if file.is_stream() {
                    line.streams.0 += 1;
                    line.streams.1 += bytes;
                }
                match verdict {
                    Verdict::Exact => {
                        if !is_awake && file.size >= 4096 && !rules.metadata {
                            assert_awake(scan, file, ranges, rules);
                            is_awake = true;
                        }
                        line.exact += 1;
                        let others = second.as_mut().map(|second| second.compare(name, ranges));
                        line.differing.extend(others.into_iter().flatten().map(|what| (name.clone(), what)));
                    }
                    Verdict::Without(why) | Verdict::Unseen(why) => *line.marked.entry(why).or_default() += 1,
                    Verdict::OneCopy => {
                        line.wrong.push((name.clone(), format!("{device}: a copy is missing")));
                    }
                    Verdict::Wrong(how) => line.wrong.push((name.clone(), format!("{device}: {how}"))),
                }
            }
            if mapped.contains_key(name) && devices.len() != row.instances {
                let seen: Vec<_> = devices.keys().collect();
                line.wrong.push((
                    name.clone(),
                    format!("on {} devices, not {}: {seen:?}", seen.len(), row.instances),
                ));
            }
        }
    }
    line.second = second.map(|second| second.summary()).unwrap_or_default();
    line
}

/// Checks the judge itself: three wrong versions of an exact map must be judged wrong. One is
/// empty, one names another place, and one names more than a block too much.
fn assert_awake(scan: &Scan, file: &TestFile, exact: &Ranges, rules: Rules) {
    let changed = |change: &dyn Fn(&Range) -> Range| -> Ranges {
        exact.iter().map(|(disk, list)| (*disk, list.iter().map(change).collect())).collect()
    };
    let wrong = [
        Ranges::new(),
        changed(&|range| range.start + (1 << 20)..range.end + (1 << 20)),
        changed(&|range| range.start..range.end + 2 * rules.block),
    ];
    for map in wrong {
        let (verdict, bytes) = judge(scan, file, &map, rules);
        assert!(!bytes.is_perfect(), "{}: {map:x?} is counted as {bytes:?}", file.names[0]);
        assert!(matches!(verdict, Verdict::Wrong(_)), "{}: {map:x?} is taken for {verdict:?}", file.names[0]);
    }
}

fn files_of(map: &str) -> Files {
    let mut files = Files::new();
    for (name, ranges) in objects_of(map) {
        let fields: Vec<&str> = name.splitn(3, ' ').collect();
        let ["f", device, path] = fields[..] else { continue };
        files.entry(path.to_owned()).or_default().insert(device.to_owned(), ranges);
    }
    files
}

/// The objects of a text map, by type, device and path.
fn objects_of(map: &str) -> BTreeMap<String, Ranges> {
    let mut objects: BTreeMap<String, Ranges> = BTreeMap::new();
    for line in map.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let [disk, start, end, name] = fields[..] else { panic!("{line}") };
        let hex = |digits| u64::from_str_radix(digits, 16).unwrap();
        let ranges = objects.entry(name.to_owned()).or_default();
        ranges.entry(disk.parse().unwrap()).or_default().push(hex(start)..hex(end));
    }
    for ranges in objects.values_mut().flat_map(BTreeMap::values_mut) {
        *ranges = ranges::normalise(std::mem::take(ranges));
    }
    objects
}

/// The table as Markdown.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let mut text = String::from(
        "| filesystem or layer | probe | files | exact | marked | wrong | bytes | recall | precision | oracle |\n\
         |---|---|--:|--:|---|--:|--:|--:|--:|---|\n",
    );
    for line in lines {
        if let Some(why) = &line.blocked {
            writeln!(text, "| {} | {} | | | {why} | | | | | |", line.name, line.probe).unwrap();
            continue;
        }
        let marked: Vec<_> = line.marked.iter().map(|(why, count)| format!("{count} {why}")).collect();
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | patterns{} |",
            line.name,
            line.probe,
            line.files,
            line.exact,
            marked.join(", "),
            line.wrong.len(),
            grouped(line.bytes.known),
            line.bytes.recall(),
            line.bytes.precision(),
            line.second
        )
        .unwrap();
    }
    text
}
