//! With spot checks at the ends of extents, the map is the same, byte for byte, as after a full
//! read.

use virt_bmap_testutil::fixture;
use virt_bmap_testutil::mapping;
use virt_bmap_testutil::sandbox;
use virt_bmap_testutil::tools::needs;

/// Maps the shared guest with `options`.
fn map(options: &[&str]) -> Vec<u8> {
    let image = fixture::guest().image.as_os_str();
    let options = options.iter().chain(&["-o", "out.bmap"]).map(std::ffi::OsStr::new);
    let run = sandbox::run(std::iter::once(image).chain(options));
    assert_eq!(run.code(), 0, "{}", run.stderr);
    run.read("out.bmap")
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
    let told = &mapping::of(&[fixture::guest()], &[]).text;
    let read = map(&["--probe", "agent"]);
    assert_same(&read, told);
    // One processor looks up one file after the other.
    assert_same(&read, &map(&["--spot-check", "10", "--smp", "1"]));
    assert_same(&read, &map(&["--proof", "every"]));
}

#[test]
fn they_do_so_with_metadata_too() {
    needs!("guestfish", "sfdisk");
    assert_same(&map(&["--metadata", "--probe", "agent"]), &map(&["--metadata"]));
}

#[test]
fn a_sample_of_what_is_read_in_full_is_refused() {
    let run = sandbox::run(["nothing.raw", "--probe", "agent", "--spot-check", "10"]);
    assert_eq!(run.code(), 2);
    assert!(run.stderr.contains("--spot-check needs --probe extents"), "{}", run.stderr);
    let run = sandbox::run(["nothing.raw", "--proof", "every", "--proof-seed", "10"]);
    assert_eq!(run.code(), 2);
}
