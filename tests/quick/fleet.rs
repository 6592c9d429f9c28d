//! Runs of a fleet without appliances. A script replaces the mapper of each guest.

use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use virt_bmap::fleet::{Mapper, Store, manifest, plan, run};
use virt_bmap::mapper::Cancel;
use virt_bmap_testutil::python::python;
use virt_bmap_testutil::sandbox::{Finished, Running, Sandbox};
use virt_bmap_testutil::tools::needs;

/// A script in place of the mapper. It writes down that it was started, does what the image's name
/// says, and succeeds unless the name says otherwise.
const MAPPER: &str = r#"#!/bin/sh
for word; do
    case $word in
        */map.*) maps="$maps $word" ;;
        --earlier=*)
            echo "${word##*/}" >> "$LOG"
            echo '{"event":"changed","added":1,"removed":2,"changed":3}' >&2 ;;
    esac
    image=$word
done
echo "$(basename "$image")" >> "$LOG"
case $image in
    *fails*) echo 'virt-bmap-rs: no good' >&2; exit 1 ;;
    *wrong*) echo 'unknown option' >&2; exit 2 ;;
    *second*) [ -e "$image.tried" ] || { : > "$image.tried"; exit 1; } ;;
    *crashes*) kill -SEGV $$ ;;
    *silent*) exec sleep 1000 ;;
    *stubborn*) trap '' TERM; while :; do sleep 0.05; done ;;
    *slow*) while :; do echo '{"event":"progress","doing":"working","share":0.5}' >&2; sleep 0.05; done ;;
    *floods*) yes | head -c 300000 >&2; printf '\033[31mred' >&2 ;;
    *leaves*) sleep 1000 & ;;
    *empty*) exit 0 ;;
    *partly*) echo '{"event":"unexamined","device":"/dev/sda1","cause":{"kind":"unknown-content"}}' >&2; code=3 ;;
    *torn*) echo changed >> "$image" ;;
esac
sleep "${PACE:-0.01}"
for map in $maps; do echo "map of $image" > "$map"; done
echo '{"event":"memory","peak":12345678}' >&2
echo '{"event":"balance","used":9000,"files":8000,"directories":100,"metadata":890,"superseded":0,"unexplained":10,"claimed_twice":0,"claimed_free":0}' >&2
echo '{"event":"done","partitions":1,"volumes":0,"filesystems":1,"directories":2,"files":3}' >&2
exit ${code:-0}
"#;

/// A directory with images, the script, and the log of the guests for which it was started.
struct Fleet {
    dir: tempfile::TempDir,
}

impl Fleet {
    fn new(images: &[&str]) -> Self {
        let fleet = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(fleet.at("images")).unwrap();
        for image in images {
            fs::write(fleet.at("images").join(image), b"image").unwrap();
        }
        fs::write(fleet.at("mapper"), MAPPER).unwrap();
        fs::set_permissions(fleet.at("mapper"), fs::Permissions::from_mode(0o755)).unwrap();
        fleet
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn maps(&self, name: &str) -> PathBuf {
        self.at("maps").join(name)
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new().env("LOG", self.at("log"))
    }

    /// The arguments of a run that maps all images.
    fn args(&self, more: &[&str]) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["fleet".into(), self.at("images").into()];
        args.extend([
            "--out-dir".into(),
            self.at("maps").into(),
            "--mapper".into(),
            self.at("mapper").into(),
        ]);
        args.extend(more.iter().map(OsString::from));
        args
    }

    fn start(&self, more: &[&str]) -> Running {
        self.sandbox().start(self.args(more))
    }

    fn run(&self, more: &[&str]) -> Finished {
        self.sandbox().run(self.args(more))
    }

    /// The guests for which the mapper was started since the last call, as names of images.
    fn begun(&self) -> Vec<String> {
        let log = fs::read_to_string(self.at("log")).unwrap_or_default();
        fs::remove_file(self.at("log")).ok();
        let mut begun: Vec<_> = log.lines().map(str::to_owned).collect();
        begun.sort();
        begun
    }

    /// The records in `fleet.jsonl`, by id. No id may occur twice.
    fn records(&self) -> BTreeMap<String, Value> {
        virt_bmap_testutil::fleet::records(&self.maps("fleet.jsonl"))
    }
}

/// The statuses in an answer in JSON, by guest.
fn statuses(run: &Finished) -> BTreeMap<String, String> {
    let answer: Value = serde_json::from_slice(&run.stdout).unwrap();
    let word = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    answer["rows"].as_array().unwrap().iter().map(|row| (word(row, "id"), word(row, "status"))).collect()
}

#[test]
fn each_guest_ends_in_its_own_way() {
    let names = [
        "crashes.raw",
        "empty.raw",
        "fails.raw",
        "floods.raw",
        "good.raw",
        "leaves.raw",
        "partly.raw",
        "second.raw",
        "silent.raw",
        "slow.raw",
        "torn.raw",
        "wrong.raw",
    ];
    let fleet = Fleet::new(&names);
    let run = fleet.run(&["-j8", "--time-limit=2", "--json"]);
    run.assert_code(3);
    let expected = [
        ("crashes", "crashed"),
        ("empty", "failed"),
        ("fails", "failed"),
        ("floods", "complete"),
        ("good", "complete"),
        ("leaves", "complete"),
        ("partly", "incomplete"),
        ("second", "complete"),
        ("silent", "hung"),
        ("slow", "hung"),
        ("torn", "complete"),
        ("wrong", "failed"),
    ];
    let owned = |(id, status): &(&str, &str)| ((*id).to_owned(), (*status).to_owned());
    assert_eq!(statuses(&run), expected.iter().map(owned).collect());

    let records = fleet.records();
    assert_eq!(records.len(), names.len());
    for (id, status) in expected {
        assert_eq!(records[id]["status"], status, "{id}");
        for suffix in ["bmap", "jsonl.zst"] {
            let has_map = ["complete", "incomplete"].contains(&status);
            assert_eq!(fleet.maps(&format!("{id}.{suffix}")).exists(), has_map, "{id}.{suffix}");
        }
    }
    for (id, error) in [
        ("crashes", "signal 11"),
        ("empty", "no map.bmap"),
        ("fails", "no good"),
        ("silent", "longer than 2 seconds"),
        ("wrong", "unknown option"),
    ] {
        assert!(records[id]["error"].as_str().unwrap().contains(error), "{}", records[id]);
    }
    let tries = |id: &str| records[id]["tries"].as_u64().unwrap();
    assert_eq!((tries("good"), tries("second"), tries("fails"), tries("wrong")), (1, 2, 2, 1));
    assert_eq!(records["partly"]["unexamined"][0]["cause"]["kind"], "unknown-content");
    assert_eq!(records["good"]["counts"]["files"], 3);
    assert_eq!(records["good"]["balance"]["unexplained"], 10);
    assert_eq!(
        (&records["good"]["peak_memory"], &records["fails"]["peak_memory"]),
        (&12_345_678.into(), &Value::Null)
    );
    assert!(records["torn"]["warnings"][0]["cause"]["kind"] == "image-changed");
    assert_eq!(
        fs::read_dir(fleet.maps(".fleet/work")).unwrap().count(),
        0,
        "something is left in the making"
    );
}

#[test]
fn an_update_gives_the_mapper_the_map_before_where_there_is_one() {
    let fleet = Fleet::new(&["a.raw", "b.raw", "fails.raw"]);
    fleet.run(&["--retries=0", "--update"]).assert_code(3);
    assert_eq!(fleet.begun(), ["a.raw", "b.raw", "fails.raw"]);
    assert_eq!(fleet.records()["a"]["changes"], Value::Null);
    fs::write(fleet.at("images/a.raw"), b"IMAGE").unwrap();
    let run = fleet.run(&["--retries=0", "--update", "--json"]);
    run.assert_code(3).assert_says(&[
        "a complete in",
        "3 files, 99.88 % of the bytes in use accounted for, 1 added, 2 removed, 3 changed",
    ]);
    assert_eq!(fleet.begun(), ["a.jsonl.zst", "a.raw", "fails.raw"]);
    let changes = serde_json::json!({"added": 1, "removed": 2, "changed": 3});
    assert_eq!(fleet.records()["a"]["changes"], changes);
    let answer: Value = serde_json::from_slice(&run.stdout).unwrap();
    let row = answer["rows"].as_array().unwrap().iter().find(|row| row["id"] == "a").unwrap();
    assert_eq!((&row["added"], &row["removed"], &row["changed"]), (&1.into(), &2.into(), &3.into()));

    // If the mapper fails with a baseline, the next attempt does without it.
    fs::rename(fleet.at("images/b.raw"), fleet.at("images/second.raw")).unwrap();
    fs::write(fleet.at("images/second.raw.tried"), b"").unwrap();
    fs::remove_file(fleet.at("images/fails.raw")).unwrap();
    fleet.run(&["--update"]).assert_code(0);
    fs::remove_file(fleet.at("images/second.raw.tried")).unwrap();
    fs::write(fleet.at("images/second.raw"), b"IMAGE").unwrap();
    fleet.begun();
    fleet.run(&["--update"]).assert_code(0);
    assert_eq!(fleet.begun(), ["second.jsonl.zst", "second.raw", "second.raw"]);
    // Without `--update` the mapper gets no baseline.
    fs::write(fleet.at("images/a.raw"), b"image, again").unwrap();
    fleet.run(&[]).assert_code(0);
    assert_eq!(fleet.begun(), ["a.raw"]);
    assert_eq!(fleet.records()["a"]["changes"], Value::Null);
}

#[test]
fn only_what_is_missing_failed_or_changed_is_done_again() {
    let fleet = Fleet::new(&["a.raw", "b.raw", "c.raw", "fails.raw"]);
    let again = |more: &[&str], code: i32| {
        fleet.run(more).assert_code(code);
        fleet.begun()
    };
    assert_eq!(again(&["--retries=0"], 3), ["a.raw", "b.raw", "c.raw", "fails.raw"]);
    assert_eq!(again(&["--retries=0"], 3), ["fails.raw"]);
    fs::remove_file(fleet.at("images/fails.raw")).unwrap();
    assert!(again(&[], 0).is_empty());
    fs::remove_file(fleet.maps("a.bmap")).unwrap();
    fs::write(fleet.at("images/b.raw"), b"IMAGE").unwrap();
    fs::write(fleet.at("images/d.raw"), b"new").unwrap();
    assert_eq!(again(&[], 0), ["a.raw", "b.raw", "d.raw"]);
    // Options that change the content of a map make all maps stale. Other options do not.
    assert!(again(&["--smp=2", "--accel=tcg"], 0).is_empty());
    assert_eq!(again(&["--metadata"], 0).len(), 4);
    assert!(again(&["--metadata"], 0).is_empty());

    let status = |json: bool| {
        let form = if json { "--json" } else { "--bytes" };
        fleet.sandbox().run([
            "fleet".into(),
            "status".into(),
            form.into(),
            "--out-dir".into(),
            fleet.at("maps"),
        ])
    };
    status(true).assert_code(0);
    fs::write(fleet.at("images/b.raw"), b"image").unwrap();
    let said = status(true);
    said.assert_code(3);
    assert_eq!(statuses(&said)["b"], "stale");
    assert!(String::from_utf8(status(false).stdout).unwrap().contains("b.raw has changed"));
    assert_eq!(fleet.begun(), Vec::<String>::new());
}

#[test]
fn a_run_that_is_killed_loses_nothing_and_does_nothing_twice() {
    let names: Vec<String> = (0..40).map(|number| format!("g{number:02}.raw")).collect();
    let fleet = Fleet::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let guests = || fs::read_dir(fleet.maps(".fleet/guests")).map_or(0, Iterator::count);
    let mut done = 0;
    for round in 0..10 {
        let before: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(fleet.maps(".fleet/guests"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        let mut run = fleet.sandbox().env("PACE", "0.03").start(fleet.args(&["-j3", "-q"]));
        // A different moment in each round, up to some tenths of a second.
        run.wait(Duration::from_millis(60 + 37 * (round * 7 % 10)));
        run.signal(Signal::KILL);
        // This also checks that no process is left.
        let run = run.finish();
        assert!(run.code() == 128 + 9 || run.code() == 0, "{}", run.stderr);
        for (path, content) in before {
            assert_eq!(fs::read(&path).unwrap(), content, "a finished guest was done again");
        }
        for entry in fs::read_dir(fleet.maps(".fleet/guests")).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|suffix| suffix == "json") {
                let record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                assert_eq!(record["status"], "complete");
                let id = record["id"].as_str().unwrap();
                let map = fs::read_to_string(fleet.maps(&format!("{id}.bmap"))).unwrap();
                assert!(map.starts_with("map of ") && map.ends_with(&format!("{id}.raw\n")), "{map:?}");
            }
        }
        assert!(guests() >= done);
        done = guests();
    }
    fleet.begun();
    let run = fleet.run(&["-j3", "--json"]);
    run.assert_code(0);
    assert_eq!(statuses(&run).len(), names.len());
    assert_eq!(fleet.records().len(), names.len());
    assert_eq!(fs::read_dir(fleet.maps(".fleet/work")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(fleet.at("maps")).unwrap().count(), 2 * names.len() + 2);
}

#[test]
fn what_is_told_to_end_and_does_not_is_killed() {
    let fleet = Fleet::new(&["stubborn.raw", "silent.raw", "good.raw"]);
    let script = format!("LOG={}; {MAPPER}", fleet.at("log").display());
    let mapper = Mapper {
        program: "/bin/sh".into(),
        wrapper: vec!["-c".into(), script.into(), "sh".into()],
        options: Vec::new(),
        noted: Vec::new(),
    };
    let options = run::FleetOptions {
        jobs: 3,
        retries: 0,
        silence: Duration::from_millis(1500),
        grace: Duration::from_millis(300),
        ..Default::default()
    };
    let store = Store::create(&fleet.at("maps")).unwrap();
    let guests = plan::plan(&[fleet.at("images")]).unwrap();
    let said = Mutex::new(0);
    let observe = |notice: run::Notice<'_>| {
        if let run::Notice::Finished(_) = notice {
            *said.lock().unwrap() += 1;
        }
    };
    let begun = Instant::now();
    let summary = run::run(&store, &guests, &mapper, &options, &Cancel::default(), &observe).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!((summary.guests, summary.finished, *said.lock().unwrap()), (3, 3, 3));
    let records = fleet.records();
    assert_eq!(records["stubborn"]["status"], "hung");
    assert_eq!(records["stubborn"]["signal"], 9);
    assert_eq!(records["silent"]["signal"], 15);
    assert!(records["silent"]["error"].as_str().unwrap().contains("printed nothing for 1.5 seconds"));
    assert_eq!(records["good"]["status"], "complete");
}

#[test]
fn a_signal_ends_a_run_in_good_order() {
    let fleet = Fleet::new(&["a-slow.raw", "b-slow.raw", "c-silent.raw", "good.raw"]);
    for signal in [Signal::INT, Signal::TERM] {
        let mut run = fleet.start(&["-j3"]);
        let begun = Instant::now();
        while fs::read_to_string(fleet.at("log")).unwrap_or_default().lines().count() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60));
            run.wait(Duration::from_millis(20));
        }
        run.signal(signal);
        let run = run.finish();
        run.assert_code(128 + signal.as_raw()).assert_says(&["interrupted after 0 guests"]);
        assert_eq!(fs::read_dir(fleet.maps(".fleet/work")).unwrap().count(), 0);
        fleet.begun();
    }
}

#[test]
fn runs_exclude_each_other_and_shares_do_not() {
    let names: Vec<String> = (0..12).map(|number| format!("g{number:02}.raw")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.push("slow.raw");
    let fleet = Fleet::new(&all);
    let slow_share = (1..=3).find(|share| {
        let ids = fleet.sandbox().env("LOG", "/dev/null").run(fleet.args(&[
            &format!("--shard={share}/3"),
            "--json",
            "--time-limit=1",
            "--retries=0",
        ]));
        statuses(&ids).contains_key("slow")
    });
    let slow = format!("--shard={}/3", slow_share.unwrap());
    fs::remove_dir_all(fleet.at("maps")).unwrap();

    let mut first = fleet.start(&[&slow]);
    while !fs::read_to_string(fleet.at("log")).unwrap_or_default().contains("slow") {
        first.wait(Duration::from_millis(20));
    }
    for other in [&slow[..], "--shard=1/1", "--shard=2/2"] {
        fleet.run(&[other]).assert_fails(&["another run is using", &slow["--shard=".len()..]]);
    }
    for share in 1..=3 {
        if Some(share) != slow_share {
            fleet.run(&[&format!("--shard={share}/3")]).assert_code(0);
        }
    }
    first.signal(Signal::INT);
    first.finish().assert_code(130);
    fs::remove_file(fleet.at("images/slow.raw")).unwrap();
    fleet.run(&[&slow]).assert_code(0);
    let mut begun = fleet.begun();
    begun.retain(|name| name != "slow.raw");
    assert_eq!(begun, names, "each guest is in one share, and done once");

    assert!(!fleet.maps("fleet.jsonl").exists(), "shares leave that to `merge`");
    let merge: [OsString; 4] = ["fleet".into(), "merge".into(), "--out-dir".into(), fleet.at("maps").into()];
    let merged = fleet.sandbox().run(merge);
    merged.assert_code(0);
    assert!(String::from_utf8(merged.stdout).unwrap().ends_with("12 guests: 12 complete\n"));
    assert_eq!(fleet.records().len(), 12);
}

#[test]
fn hostile_names_stay_in_the_directory() {
    let fleet = Fleet::new(&["..\x1b[31m.raw", "-o.raw", "=cmd().raw", "a b\n.raw"]);
    let odd = OsString::from_vec(b"\xff.raw".to_vec());
    fs::write(fleet.at("images").join(&odd), b"image").unwrap();
    // Images whose names begin with a dot are skipped in a directory, but can be given by name.
    fs::remove_file(fleet.at("images/..\x1b[31m.raw")).unwrap();
    let hidden = fleet.at("..\x1b[31m.raw");
    fs::write(&hidden, b"image").unwrap();
    let mut args = fleet.args(&["--csv"]);
    args.insert(2, hidden.into());
    let run = fleet.sandbox().run(args);
    run.assert_code(0);
    let csv = String::from_utf8(run.stdout).unwrap();
    let ids: Vec<&str> = csv.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(ids, ["%2Do", "%2E.%1B%5B31m", "%FF", "'=cmd%28%29", "a%20b%0A"]);
    assert!(fleet.maps("%2E.%1B%5B31m.bmap").exists());
    assert_eq!(fs::read_dir(fleet.dir.path()).unwrap().count(), 5, "images, hidden, mapper, log, maps");

    let manifest = fleet.at("bad.jsonl");
    for id in ["../up", "/etc/x", "", "a\\u0000b"] {
        fs::write(&manifest, format!("{{\"id\":\"{id}\",\"disks\":[{{\"path\":\"x\"}}]}}\n")).unwrap();
        let args: [OsString; 4] =
            ["fleet".into(), "run".into(), "--manifest".into(), manifest.clone().into_os_string()];
        fleet.sandbox().run(args).assert_fails(&["bad.jsonl, line 1", "not a valid guest ID"]);
    }
}

#[test]
fn a_manifest_says_disks_and_formats() {
    let fleet = Fleet::new(&["a.raw", "b.img"]);
    let manifest = fleet.at("guests.jsonl");
    let planned = fleet.sandbox().run::<OsString>([
        "fleet".into(),
        "plan".into(),
        fleet.at("images").into(),
        "-o".into(),
        manifest.clone().into(),
    ]);
    planned.assert_code(0);
    let written = fs::read_to_string(&manifest).unwrap();
    let images = fleet.at("images").display().to_string();
    assert_eq!(
        written,
        format!(
            "{{\"id\":\"a\",\"disks\":[{{\"path\":\"{images}/a.raw\"}}]}}\n\
             {{\"id\":\"b\",\"disks\":[{{\"path\":\"{images}/b.img\"}}]}}\n"
        )
    );
    // Paths are relative to the manifest. Another script writes down the mapper's arguments.
    let two = "{\"id\":\"two\",\"disks\":[{\"path\":\"images/a.raw\",\"format\":\"raw\"},{\"path\":\"images/b.img\"}]}\n";
    fs::write(&manifest, two).unwrap();
    fs::write(fleet.at("mapper"), "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$LOG\"\n").unwrap();
    let run = |more: &[&str]| {
        let mut args: Vec<OsString> = vec!["fleet".into(), "run".into()];
        args.extend([
            "--out-dir".into(),
            fleet.at("maps").into(),
            "--mapper".into(),
            fleet.at("mapper").into(),
        ]);
        args.extend(more.iter().map(OsString::from));
        fleet.sandbox().run(args)
    };
    let name = manifest.display().to_string();
    run(&["--manifest", &name, "--mapper", "map", "--smp=3", "--key", "all:key:secret", "--legs=one"])
        .assert_code(3);
    let called = fs::read_to_string(fleet.at("log")).unwrap();
    let work = fleet.maps(".fleet/work/two").display().to_string();
    assert_eq!(
        called.lines().collect::<Vec<_>>(),
        [
            "map",
            "--key=all:key:secret",
            "--legs=one",
            "--smp=3",
            "--progress=json",
            "-o",
            &format!("{work}/map.bmap"),
            "-o",
            &format!("{work}/map.jsonl.zst"),
            "--format=raw",
            "-a",
            &format!("{images}/a.raw"),
            "--format=",
            "-a",
            &format!("{images}/b.img"),
        ]
    );
    let record = fs::read_to_string(fleet.maps("fleet.jsonl")).unwrap();
    assert!(record.contains("--key=all:key") && !record.contains("secret"), "{record}");
    // Without a manifest the run uses the one that the earlier run has kept.
    // An appliance has one processor where more guests are mapped at a time than processors go
    // round.
    run(&["--jobs=1000000"]).assert_code(3);
    assert!(Path::new(&fleet.maps(".fleet/manifest.jsonl")).exists());
    let called = fs::read_to_string(fleet.at("log")).unwrap();
    assert_eq!(called.lines().filter(|word| word.starts_with("--smp")).collect::<Vec<_>>(), ["--smp=1"]);
}

/// The maps of two guests, as CSV. In one of them `/bin/sh` shares half of its bytes with another
/// file.
const MAPS: [(&str, &str); 2] = [
    (
        "a",
        "1,4096,12288,8192,f,/dev/sda1,/bin/sh,0,0,,,,,,,,,,\n1,8192,16384,8192,f,/dev/sda1,/copy,0,0,,,,,,,,,,\n",
    ),
    ("b", "1,20480,24576,4096,f,/dev/sda,/bin/sh,0,0,,,,,,,,,,\n"),
];

#[test]
fn one_table_answers_for_all_guests() {
    let Some(mut python) = python("duckdb", "duckdb") else { return };
    let fleet = Fleet::new(&["a.raw", "b.raw", "fails.raw"]);
    for (id, rows) in MAPS {
        let map = format!("{}\n{rows}", virt_bmap_map::csv::COLUMNS.join(","));
        fs::write(fleet.at("images").join(format!("{id}.raw.csv")), map).unwrap();
    }
    let convert = r#""$PROGRAM" convert "$image.csv" "$map""#;
    fs::write(fleet.at("mapper"), MAPPER.replace(r#"echo "map of $image" > "$map""#, convert)).unwrap();
    let run = fleet.sandbox().env("PROGRAM", crate::PROGRAM);
    run.run(fleet.args(&["--retries=0"])).assert_code(3);
    assert_eq!(fleet.records()["a"]["status"], "complete");
    let merge =
        ["fleet".into(), "merge".into(), "--parquet".into(), "--out-dir".into(), fleet.at("maps").into()];
    fleet.sandbox().run::<OsString>(merge).assert_code(3);

    // The query that docs/fleet.md shows.
    let document = include_str!("../../docs/fleet.md");
    let query = document.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    let query = query.replace("/usr/bin/bash", "/bin/sh");
    let script = "import duckdb, json, sys\nprint(json.dumps(duckdb.sql(sys.argv[1]).fetchall()))";
    let output =
        virt_bmap_testutil::tools::output(python.args(["-c", script, &query]).current_dir(fleet.dir.path()));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!([
        ["a", "/dev/sda1", [[1, 0x1000, 0x3000]], 0x2000, 0x1000],
        ["b", "/dev/sda", [[1, 0x5000, 0x6000]], 0x1000, 0],
    ]);
    assert_eq!(rows, expected);
}

#[test]
fn the_schema_says_what_a_manifest_is() {
    let Some(mut python) = python("jsonschema", "jsonschema") else { return };
    let fleet = Fleet::new(&["a.raw"]);
    let odd = OsString::from_vec(b"\xff.raw".to_vec());
    fs::write(fleet.at("images").join(&odd), b"image").unwrap();
    let planned = fleet.sandbox().run::<OsString>(["fleet".into(), "plan".into(), fleet.at("images").into()]);
    planned.assert_code(0);
    let ours = String::from_utf8(planned.stdout).unwrap();
    let lines = [
        ours.trim(),
        r#"{"id":"b","disks":[{"path":"x","format":"qcow2"},{"path":"y"}]}"#,
        r#"{"id":"../a","disks":[{"path":"x"}]}"#,
        r#"{"id":"a","disks":[]}"#,
        r#"{"id":"a"}"#,
        r#"{"id":"a","disks":[{"path":""}]}"#,
        r#"{"id":"a","disks":[{"path":"x","format":"nbd"}]}"#,
        r#"{"id":"a","disks":[{"path":"x","formt":"raw"}]}"#,
    ]
    .join("\n");
    let script = "import json, sys, jsonschema\n\
                  schema = json.load(open(sys.argv[1]))\n\
                  jsonschema.Draft202012Validator.check_schema(schema)\n\
                  validator = jsonschema.Draft202012Validator(schema)\n\
                  print(json.dumps([validator.is_valid(json.loads(line)) for line in sys.argv[2].splitlines()]))";
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fleet-manifest.schema.json");
    let output = virt_bmap_testutil::tools::output(python.args(["-c", script, schema, &lines]));
    let valid: Vec<bool> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(valid, [[true; 3].as_slice(), [false; 6].as_slice()].concat());
    // The program accepts the same lines as the schema.
    for (line, is_good) in lines.lines().zip(valid) {
        let read = manifest::read(line.as_bytes(), Path::new("m"), Path::new("/"));
        assert_eq!(read.is_ok(), is_good, "{line}");
    }
}

/// The URI of a libvirt host with the test driver. It needs only `virsh` and no daemon.
fn libvirt_host(fleet: &Fleet) -> String {
    let images = fleet.at("images").display().to_string();
    // Each id ends in the length of the name, so that it is the same in each call.
    let domain = |name: &str, state: u32, disks: &str| {
        format!(
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
             <name>{name}</name><uuid>00000000-0000-4000-8000-{:012x}</uuid><memory>65536</memory><os><type>hvm</type></os>\
             <test:runstate>{state}</test:runstate><devices>{disks}</devices></domain>",
            name.len()
        )
    };
    let disk = |image: &str, format: &str, target: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{images}/{image}'/>\
             <target dev='{target}' bus='virtio'/></disk>"
        )
    };
    let (running, shut_off) = (1, 5);
    let cdrom = "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>";
    let network = |protocol: &str, port: u16| {
        format!(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
             <source protocol='{protocol}' name='pool/x'><host name='example.org' port='{port}'/></source>\
             <target dev='vda' bus='virtio'/></disk>"
        )
    };
    let both = [disk("db-system", "qcow2", "vda"), cdrom.into(), disk("db-data", "raw", "vdb")].concat();
    let node = [
        domain("web &amp; co", shut_off, &disk("web", "raw", "vda")),
        domain("db", shut_off, &both),
        domain("busy", running, &disk("busy", "raw", "vda")),
        domain("remote", shut_off, &network("rbd", 6789)),
        domain("nbd", shut_off, &network("nbd", 10810)),
        domain("diskless", shut_off, ""),
    ];
    fs::write(fleet.at("host.xml"), format!("<node>{}</node>", node.concat())).unwrap();
    format!("test://{}", fleet.at("host.xml").display())
}

#[test]
fn the_domains_of_a_libvirt_host_are_guests() {
    needs!("virsh");
    let fleet = Fleet::new(&["web", "db-system", "db-data", "busy"]);
    let uri = libvirt_host(&fleet);
    let plan = |more: &[&str]| {
        fleet.sandbox().run(["fleet", "plan", "-c", &uri].iter().chain(more).map(OsString::from))
    };
    let images = fleet.at("images").display().to_string();
    let db = format!(
        "{{\"id\":\"db\",\"disks\":[{{\"path\":\"{images}/db-system\",\"format\":\"qcow2\"}},\
         {{\"path\":\"{images}/db-data\",\"format\":\"raw\"}}]}}\n"
    );
    let one = |id: &str, image: &str| {
        format!("{{\"id\":\"{id}\",\"disks\":[{{\"path\":\"{images}/{image}\",\"format\":\"raw\"}}]}}\n")
    };
    let planned = plan(&[]);
    planned.assert_code(3).assert_says(&[
        "left out: busy: the domain is running",
        "remote: cannot map disk vda: it is on a server that speaks rbd",
        "diskless: the domain has no disks",
    ]);
    let web = one("web%20%26%20co", "web");
    let nbd =
        "{\"id\":\"nbd\",\"disks\":[{\"path\":\"nbd://example.org:10810/pool/x\",\"format\":\"raw\"}]}\n";
    assert_eq!(String::from_utf8(planned.stdout).unwrap(), format!("{db}{nbd}{web}"));
    let shared = plan(&["--force-share"]);
    assert_eq!(String::from_utf8(shared.stdout).unwrap(), format!("{}{db}{nbd}{web}", one("busy", "busy")));

    let mut args = fleet.args(&["-c", &uri, "--json"]);
    args.remove(1);
    let run = fleet.sandbox().run(args);
    run.assert_code(3);
    assert_eq!(statuses(&run).into_values().collect::<Vec<_>>(), ["complete"; 3]);

    let domain = |name: &str| fleet.sandbox().run(["-d", name, "-c", &uri]);
    domain("busy").assert_fails(&["busy: the domain is running", "--force-share"]);
    domain("missing").assert_fails(&["virsh dumpxml --domain=missing", "missing"]);
    // The mapper starts and fails at the first disk, which is not a qcow2.
    domain("db").assert_fails(&["db-system", "qcow2"]);
    let nowhere = fleet.sandbox().run(["fleet", "-c", "test:///no/such/host.xml"]);
    nowhere.assert_fails(&["virsh list"]);
}

#[test]
fn the_kubernetes_job_is_one() {
    let Some(mut python) = python("kubernetes_validate", "kubernetes-validate") else { return };
    let script = "import sys, yaml, kubernetes_validate as k\n\
                  job = yaml.safe_load(open(sys.argv[1]))\n\
                  k.validate(job, k.latest_version(), strict=True)\n\
                  job['spec']['completionMod'] = 'Indexed'\n\
                  try: k.validate(job, k.latest_version(), strict=True)\n\
                  except k.ValidationError: print(job['spec']['completions'])";
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kubernetes/fleet.yaml");
    let output = virt_bmap_testutil::tools::output(python.args(["-c", script, file]));
    let shares = String::from_utf8(output.stdout).unwrap();
    // The command must use as many shares as there are indices.
    let command = format!("--shard \"$((JOB_COMPLETION_INDEX + 1))/{}\"", shares.trim());
    assert!(fs::read_to_string(file).unwrap().contains(&command), "{command}");
}

#[test]
fn what_makes_no_sense_is_said() {
    let fleet = Fleet::new(&[]);
    fleet.run(&[]).assert_fails(&["no guest found in"]);
    fleet.run(&["--shard=3/2"]).assert_code(2).assert_says(&["3/2", "is not a shard"]);
    let at = |words: &[&str]| fleet.sandbox().run(words.iter().map(OsString::from));
    at(&["fleet"]).assert_code(2);
    at(&["fleet", "status"]).assert_fails(&["maps/.fleet/guests", "cannot find the records of a fleet"]);
    at(&["fleet", "run", "--manifest", "missing"]).assert_fails(&["missing: cannot open the manifest"]);
    let fleet = Fleet::new(&["a.raw"]);
    let args = |mapper: &str| {
        let mut args = fleet.args(&[]);
        args[5] = mapper.into();
        args
    };
    fleet.sandbox().run(args("/no/such/mapper")).assert_code(3);
    assert!(fleet.records()["a"]["error"].as_str().unwrap().contains("/no/such/mapper: cannot start"));
}
