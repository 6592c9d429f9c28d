//! With spot checks at the ends of extents, the map is the same, byte for byte, as after a full
//! read.

use std::ffi::OsStr;
use std::sync::OnceLock;
use virt_bmap_testutil::fixture;
use virt_bmap_testutil::mapping;
use virt_bmap_testutil::sandbox;
use virt_bmap_testutil::tools::{self, needs};

/// The maps that a run writes: a text map without metadata, and JSON Lines with it and with the
/// place of each piece in its file.
struct Maps {
    text: Vec<u8>,
    json: Vec<u8>,
}

/// Maps the shared guest with `options`.
fn map(options: &[&str]) -> Maps {
    let image = fixture::guest().image.as_os_str();
    let options = options.iter().chain(&["-o", "out.bmap", "-o", "out.jsonl"]).map(OsStr::new);
    let run = sandbox::run(std::iter::once(image).chain(options));
    assert_eq!(run.code(), 0, "{}", run.stderr);
    Maps { text: run.read("out.bmap"), json: run.read("out.jsonl") }
}

/// The maps from accepted extents, as they are made by default.
fn told() -> &'static Maps {
    static TOLD: OnceLock<Maps> = OnceLock::new();
    TOLD.get_or_init(|| map(&[]))
}

/// Fails if `told`, a map from accepted extents, differs from `read`, the map of a full read.
#[track_caller]
fn assert_same(read: &[u8], told: &[u8]) {
    if read != told {
        let lines = |text: &[u8]| -> Vec<String> {
            text.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned()).collect()
        };
        let (read, told) = (lines(read), lines(told));
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|line| !those.contains(line)).take(8).cloned().collect()
        };
        panic!("only read: {:#?}\nonly told: {:#?}", only(&read, &told), only(&told, &read));
    }
}

#[test]
fn ends_and_a_sample_of_them_give_the_map_that_a_full_read_gives() {
    needs!("guestfish", "sfdisk");
    let read = map(&["--probe", "agent"]);
    assert_same(&read.text, &told().text);
    assert_same(&read.json, &told().json);
    // One processor looks up one file after the other.
    let sample = map(&["--spot-check", "10", "--smp", "1"]);
    assert_same(&read.text, &sample.text);
    assert_same(&read.json, &sample.json);
    let proved = map(&["--proof", "every"]);
    assert_same(&read.text, &proved.text);
    assert_same(&read.json, &proved.json);
}

/// Whether metadata is mapped, too, makes no difference for the rest.
#[test]
fn a_second_run_writes_the_same_bytes() {
    needs!("guestfish", "sfdisk");
    let guest = fixture::guest();
    let mapping = mapping::of(&[guest], &[]);
    assert_eq!(mapping.code, 0, "{}", mapping.stderr);
    assert!(told().text == mapping.text, "two runs, two maps");
    assert_eq!(tools::sha256(&guest.image), guest.sha256);
}

#[test]
fn a_sample_of_what_is_read_in_full_is_refused() {
    let run = sandbox::run(["nothing.raw", "--probe", "agent", "--spot-check", "10"]);
    assert_eq!(run.code(), 2);
    assert!(run.stderr.contains("--spot-check needs --probe extents"), "{}", run.stderr);
    let run = sandbox::run(["nothing.raw", "--proof", "every", "--proof-seed", "10"]);
    assert_eq!(run.code(), 2);
}
