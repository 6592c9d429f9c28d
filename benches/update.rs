//! How fast a map is updated. The guest has 100,000 directories and files, and 500 files change.
//!
//! ```text cargo bench --bench update # writes a table in docs/performance.md ```
//!
//! Needs `mke2fs` and `debugfs` (e2fsprogs), and what mapping needs. The guest is mapped from
//! scratch and updated in turns, three times with each probe. The fastest time of each counts. Both
//! maps must be equal. Ends with status 1 if an update takes more than a fifth of the time of a
//! mapping with the same probe, without the boot. Nothing else should run at the same time.

#![allow(clippy::expect_used)]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/page.rs"]
mod page;

use guest::{MANY, Run};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;
use virt_bmap::mapper::MapperOptions;
use virt_bmap::probe::Probe;
use virt_bmap::probe::baseline::Baseline;
use virt_bmap_map::{Kind, Map, jsonl};

/// The number of files that are replaced, removed or added.
const CHANGED: usize = 500;

/// The largest part of the time of a mapping with the same probe that an update may take. The boot
/// is not counted.
const BAR: f64 = 0.2;

/// The times of one probe.
struct Times {
    name: &'static str,
    scratch: [Duration; 2],
    update: [Duration; 2],
    taken_over: u64,
}

impl Times {
    fn ratio(&self) -> f64 {
        self.update[0].as_secs_f64() / self.scratch[0].as_secs_f64()
    }
}

fn main() -> ExitCode {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probes");
    let image = MANY.image(&directory);
    // What a map in JSON Lines has by default.
    let options = MapperOptions { metadata: true, ..MapperOptions::default() };
    let before = guest::map(&image, &options).mapped.map;
    let changed = directory.join("update.img");
    guest::copy(&image, &changed);
    change(&before, &changed, &directory);

    let before = Arc::new(before);
    let probes = [("agent", Probe::Agent), ("extents", Probe::default())];
    let all = probes.map(|(name, probe)| {
        let mut times =
            Times { name, scratch: [Duration::MAX; 2], update: [Duration::MAX; 2], taken_over: 0 };
        for _ in 0..MANY.runs {
            let scratch = guest::map(&changed, &MapperOptions { probe, ..options.clone() });
            let baseline = Baseline::new(before.clone(), BTreeMap::new()).map(Arc::new);
            assert!(baseline.is_some(), "something can be taken over");
            let update = guest::map(&changed, &MapperOptions { probe, baseline, ..options.clone() });
            assert!(written(&scratch.mapped.map) == written(&update.mapped.map), "the maps are the same");
            times.take(&scratch, &update);
        }
        times
    });
    fs::remove_file(&changed).expect("the image is removed");
    page::replace("update", &table(&all));
    let mut exit = ExitCode::SUCCESS;
    for times in &all {
        println!(
            "{}: an update takes {:.3} of a full mapping's time beside the boot, at most {BAR}",
            times.name,
            times.ratio()
        );
        if times.ratio() > BAR {
            exit = ExitCode::FAILURE;
        }
    }
    exit
}

impl Times {
    fn take(&mut self, scratch: &Run, update: &Run) {
        for (best, run) in [(&mut self.scratch, scratch), (&mut self.update, update)] {
            *best = [best[0].min(run.reading), best[1].min(run.mapped.elapsed)];
        }
        self.taken_over = update.mapped.reused;
        println!(
            "{}: {:.2} s of {:.1} s from scratch, {:.2} s of {:.1} s updated; {} of {} files were taken over",
            self.name,
            scratch.reading.as_secs_f64(),
            scratch.mapped.elapsed.as_secs_f64(),
            update.reading.as_secs_f64(),
            update.mapped.elapsed.as_secs_f64(),
            self.taken_over,
            update.mapped.counts.files,
        );
    }
}

fn table(all: &[Times]) -> String {
    let mut table = String::from(
        "| probe | from scratch | with boot | update | with boot | files reused | update / from scratch | with boot |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for times in all {
        let [scratch, scratch_in_all] = times.scratch.map(|time| time.as_secs_f64());
        let [update, update_in_all] = times.update.map(|time| time.as_secs_f64());
        let _ = writeln!(
            table,
            "| {} | {scratch:.2} s | {scratch_in_all:.1} s | {update:.2} s | {update_in_all:.1} s | {} | {:.2} | {:.2} |",
            times.name,
            times.taken_over,
            times.ratio(),
            update_in_all / scratch_in_all,
        );
    }
    table
}

/// A map as the bytes of its file.
fn written(map: &Map) -> Vec<u8> {
    let mut bytes = Vec::new();
    jsonl::write(map, &mut bytes).expect("a map is written");
    bytes
}

/// Changes a sample of the files, as an upgrade does. Of five files it replaces three, removes one,
/// and adds a file beside one.
fn change(map: &Map, image: &Path, directory: &Path) {
    let files: Vec<&[u8]> =
        map.objects().filter(|object| object.kind() == Kind::File).map(|object| object.name().path).collect();
    let content = directory.join("content");
    fs::write(&content, vec![b'+'; 9_000]).expect("a file is written");
    let content = content.display();
    let mut requests = String::new();
    for (number, path) in files.iter().step_by(files.len() / CHANGED).take(CHANGED).enumerate() {
        let path = std::str::from_utf8(path).expect("a plain name");
        let (folder, name) = path.rsplit_once('/').expect("a directory");
        let _ = match number % 5 {
            0 => writeln!(requests, "rm {path}"),
            1 => writeln!(requests, "cd {folder}\nwrite {content} {name}.new\ncd /"),
            _ => writeln!(requests, "rm {path}\ncd {folder}\nwrite {content} {name}\ncd /"),
        };
    }
    let list = directory.join("requests");
    fs::write(&list, requests).expect("the requests are written");
    let output = Command::new("debugfs").args(["-w", "-f"]).arg(&list).arg(image).output();
    assert!(output.expect("debugfs runs").status.success());
}
