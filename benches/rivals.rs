//! How long a whole run takes, beside two programs that parse filesystems themselves.
//!
//! ```text
//! cargo bench --bench rivals               # writes a table in docs/performance.md
//! cargo bench --bench rivals -- million    # 1,000,000 files on ext4; writes another table there
//! ```
//!
//! `map_extents` of dfImageTools (PyPI), `fiwalk` of The Sleuth Kit and this program list the
//! places of the files of the same guests, by turns, three times; the medians count. The table says
//! how many files and directories each program gives a place. Of the largest guests on ext4 and on
//! XFS it also has the time from the first filesystem to the shutdown of the appliance. The
//! benchmark fails if this program takes more than 4 times as long as `map_extents` for these, or
//! more than 1.5 times without launch and shutdown, or more than 8 s for 10,000 objects on LVM. A
//! whole run on the million files may take 1.5 times as long, and each program runs once.
//! Needs `mke2fs`, `guestfish`, `fiwalk`, `python3` with `venv`, and what mapping needs; the first
//! run installs dfImageTools in the directory of the images. Nothing else should run at the same
//! time.

#![allow(clippy::expect_used)]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::{Guest, MANY, MILLION};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;
use virt_bmap::mapper::MapperOptions;
use virt_bmap_testutil::{guestfish, tools};

const RUNS: usize = 3;
/// What a run of this program may take for the largest guests on ext4 and XFS, `map_extents` being
/// 1; and without launch and shutdown.
const BAR: f64 = 4.0;
const BAR_OF_READING: f64 = 1.5;
/// What a run may take for a million files, `map_extents` being 1.
const BAR_OF_MILLION: f64 = 1.5;
/// What a run may take for 10,000 objects on LVM, in seconds.
const BAR_OF_LVM: f64 = 8.0;
/// The version of dfImageTools.
const DFIMAGETOOLS: &str = "dfimagetools==20260507";

const FEW: Guest = Guest { name: "few", directories: 10, files: 90, mean: 6_000, image_mib: 64, runs: RUNS };
const SOME: Guest =
    Guest { name: "some", directories: 1_000, files: 9_000, mean: 6_000, image_mib: 400, runs: RUNS };
const GUESTS: [Guest; 3] = [FEW, SOME, MANY];

/// How the files of a guest are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Ext4,
    Xfs,
    Lvm,
}

impl Layout {
    fn described(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS in a partition",
            Self::Lvm => "ext4 and XFS on LVM",
        }
    }

    /// Makes the image, if no earlier run has left it.
    fn image(self, guest: &Guest, directory: &Path) -> PathBuf {
        let disk = "run\npart-disk /dev/sda gpt";
        let commands = match self {
            Self::Ext4 => return guest.image(directory),
            Self::Xfs => format!("{disk}\nmkfs xfs /dev/sda1\nmount /dev/sda1 /\ntar-in all.tar /"),
            Self::Lvm => format!(
                "{disk}\npvcreate /dev/sda1\nvgcreate vg /dev/sda1\nlvcreate-free root vg 50\n\
                 lvcreate-free home vg 100\nmkfs ext4 /dev/vg/root\nmkfs xfs /dev/vg/home\n\
                 mount /dev/vg/root /\ntar-in first.tar /\numount /\n\
                 mount /dev/vg/home /\ntar-in second.tar /"
            ),
        };
        let image = directory.join(format!("{}-{self:?}.img", guest.name));
        if image.exists() {
            return image;
        }
        let tree = guest.tree(directory);
        let mut names: Vec<_> = fs::read_dir(&tree)
            .expect("the tree can be listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        let (first, second) = names.split_at(names.len() / 2);
        for (archive, names) in [("all.tar", &names[..]), ("first.tar", first), ("second.tar", second)] {
            let mut tar = tools::command("tar");
            tools::output(tar.arg("-cf").arg(directory.join(archive)).arg("-C").arg(&tree).args(names));
        }
        let partial = image.with_extension("partial");
        let file = fs::File::create(&partial).expect("an image is made");
        // XFS takes at least 300 MB, and LVM holds two filesystems.
        file.set_len((guest.image_mib + 700) << 20).expect("an image gets its size");
        let partial_name = partial.file_name().and_then(|name| name.to_str()).expect("a name");
        guestfish::run(directory, &format!("add-drive {partial_name} format:raw\n{commands}\n"));
        fs::rename(&partial, &image).expect("the image gets its name");
        fs::remove_dir_all(&tree).expect("the tree is removed");
        image
    }
}

/// A program that lists the places of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    MapExtents,
    Fiwalk,
    Ours,
}

impl Program {
    fn named(self) -> &'static str {
        match self {
            Self::MapExtents => "map_extents",
            Self::Fiwalk => "fiwalk",
            Self::Ours => "virt-bmap-rs",
        }
    }

    /// What its output never has, whatever the guest.
    fn never_has(self) -> &'static str {
        match self {
            Self::MapExtents => "directories; metadata; proof",
            Self::Fiwalk => "LVM; proof",
            Self::Ours => "metadata and free space without `--metadata`",
        }
    }

    /// Runs it once. Returns the seconds and what it has found.
    fn run(self, image: &Path, directory: &Path) -> (f64, Found) {
        let output = directory.join("output");
        let _ = fs::remove_file(&output);
        let mut command = match self {
            Self::MapExtents => Command::new(directory.join("venv/bin/map_extents")),
            Self::Fiwalk => Command::new("fiwalk"),
            Self::Ours => Command::new(env!("CARGO_BIN_EXE_virt-bmap-rs")),
        };
        match self {
            Self::MapExtents => {
                let file = fs::File::create(&output).expect("the output is made");
                command.args(["--partitions", "all", "--volumes", "all"]).arg(image).stdout(file)
            }
            Self::Fiwalk => command.args(["-z", "-g", "-X"]).arg(&output).arg(image).stdout(Stdio::null()),
            Self::Ours => command.arg(image).arg("-q").arg("-o").arg(output.with_extension("bmap")),
        };
        let began = Instant::now();
        let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status().expect("the program runs");
        let took = began.elapsed().as_secs_f64();
        let output = if self == Self::Ours { output.with_extension("bmap") } else { output };
        let text = String::from_utf8_lossy(&fs::read(output).unwrap_or_default()).into_owned();
        let found = match self {
            Self::MapExtents => of_map_extents(&text),
            Self::Fiwalk => of_fiwalk(&text),
            Self::Ours => of_ours(&text),
        };
        // `fiwalk` ends with an error where it finds no filesystem.
        assert!(status.success() || self == Self::Fiwalk, "{}: {status}", self.named());
        (took, found)
    }
}

/// How many files and directories have a place on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    files: usize,
    directories: usize,
}

fn of_map_extents(text: &str) -> Found {
    let names: BTreeSet<&str> =
        text.lines().filter_map(|line| line.split_once("\tFILE_CONTENT\t").map(|(_, name)| name)).collect();
    Found { files: names.len(), directories: 0 }
}

/// Counts the entries with a place, but neither `.` and `..` nor The Sleuth Kit's own.
fn of_fiwalk(text: &str) -> Found {
    let mut found = Found::default();
    for entry in text.split("<fileobject>").skip(1) {
        let between =
            |from: &str, to: &str| entry.split_once(from)?.1.split_once(to).map(|(inside, _)| inside);
        let name = between("<filename>", "</filename>").unwrap_or_default();
        let is_special = name.starts_with('$') || name == "." || name.ends_with("/.") || name.ends_with("..");
        if is_special || !entry.contains("img_offset=") {
            continue;
        }
        match between("<name_type>", "</name_type>") {
            Some("r") => found.files += 1,
            Some("d") => found.directories += 1,
            _ => {}
        }
    }
    found
}

/// Counts the names in a text map, see docs/map-format.md.
fn of_ours(text: &str) -> Found {
    let of_type = |letter: &str| {
        let name = |line: &'_ str| {
            let mut fields = line.splitn(5, ' ').skip(3);
            (fields.next()? == letter).then(|| fields.next().map(str::to_owned))?
        };
        text.lines().filter(|line| !line.starts_with('#')).filter_map(name).collect::<BTreeSet<_>>().len()
    };
    Found { files: of_type("f"), directories: of_type("d") }
}

fn main() -> ExitCode {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rivals");
    fs::create_dir_all(&directory).expect("a directory is made");
    let venv = directory.join("venv");
    if !venv.join("bin/map_extents").exists() {
        tools::output(tools::command("python3").args(["-m", "venv"]).arg(&venv));
        tools::output(Command::new(venv.join("bin/pip")).args(["install", "--quiet", DFIMAGETOOLS]));
    }
    let mut table = String::from(
        "| guest | program | whole run | `map_extents` = 1 | files | directories | never has |\n\
         |---|---|--:|--:|--:|--:|---|\n",
    );
    let mut missed = Vec::new();
    let mut judge = |what: String, is: f64, bar: f64| {
        println!("{what}: {is:.2}, bar {bar}");
        if is > bar {
            missed.push(what);
        }
    };
    let is_million = std::env::args().any(|argument| argument == MILLION.name);
    let (name, layouts, guests): (_, &[Layout], &[Guest]) = match is_million {
        true => ("rivals-million", &[Layout::Ext4], &[MILLION]),
        false => ("rivals", &[Layout::Ext4, Layout::Xfs, Layout::Lvm], &GUESTS),
    };
    for &layout in layouts {
        for guest in guests {
            let image = layout.image(guest, &directory);
            const PROGRAMS: [Program; 3] = [Program::MapExtents, Program::Fiwalk, Program::Ours];
            let mut runs = [const { Vec::new() }; PROGRAMS.len()];
            // Reads the image into the page cache.
            for program in &PROGRAMS[..2] {
                program.run(&image, &directory);
            }
            for _ in 0..guest.runs {
                for (runs, program) in runs.iter_mut().zip(PROGRAMS) {
                    runs.push(program.run(&image, &directory));
                }
            }
            let mut rival = None;
            for (runs, program) in runs.iter_mut().zip(PROGRAMS) {
                runs.sort_by(|(a, _), (b, _)| a.total_cmp(b));
                let (took, Found { files, directories }) = runs[guest.runs / 2];
                let times = took / *rival.get_or_insert(took);
                let objects = guest.files + guest.directories;
                println!("{} {objects} {}: {took:.2} s", layout.described(), program.named());
                let _ = writeln!(
                    table,
                    "| {objects} objects, {} | {} | {took:.2} s | {times:.1} | {files} | {directories} | {} |",
                    layout.described(),
                    program.named(),
                    program.never_has(),
                );
                if program == Program::Ours && guest.name == MANY.name && layout != Layout::Lvm {
                    judge(format!("{}, whole run", layout.described()), times, BAR);
                    let options = MapperOptions { metadata: false, ..MapperOptions::default() };
                    let mut reading = [(); RUNS].map(|()| guest::map(&image, &options).reading.as_secs_f64());
                    reading.sort_by(f64::total_cmp);
                    let (took, times) = (reading[RUNS / 2], reading[RUNS / 2] / rival.unwrap_or(f64::NAN));
                    judge(format!("{}, without launch", layout.described()), times, BAR_OF_READING);
                    let _ = writeln!(
                        table,
                        "| {objects} objects, {} | the same without launch and shutdown | {took:.2} s | {times:.1} | {files} | {directories} | {} |",
                        layout.described(),
                        program.never_has(),
                    );
                }
                if program == Program::Ours && guest.name == MILLION.name {
                    judge("a million files, whole run".into(), times, BAR_OF_MILLION);
                }
                if program == Program::Ours && guest.name == SOME.name && layout == Layout::Lvm {
                    judge(format!("{}, seconds", layout.described()), took, BAR_OF_LVM);
                }
            }
        }
    }
    println!("{table}");
    page::replace(name, &table);
    if missed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("above their bars: {missed:?}");
    ExitCode::FAILURE
}
