//! `virt-bmap-rs update` of a guest in which files were changed: the new map is the one that is made from
//! scratch, byte for byte, and what has changed is said.

#![allow(clippy::unwrap_used)]

mod common;

use common::sandbox::Sandbox;
use common::tools::{self, needs};
use common::{fixture, formats, mapping, textmap};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::time::SystemTime;

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

    // Changed by another program, in the partition where it lies in the image.
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
    // What is written to the image while it is mapped must be newer than the map.
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
    run.assert_code(0).assert_says(&["0 added, 0 removed, 0 changed since the earlier map"]);
    // The fleet names images by their absolute paths.
    let [again, fleet] = ["again.bmap", "maps/guest.bmap"].map(|name| run.read(name));
    assert!(textmap::body(&again) == textmap::body(&fleet));
    let taken_over = |line: &str| {
        line.strip_suffix(" files were taken over from the earlier map, and not read")?.parse::<u64>().ok()
    };
    assert!(run.stderr.lines().find_map(taken_over) > Some(50), "{}", run.stderr);
}
