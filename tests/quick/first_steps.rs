//! What somebody meets who has never used the program: no arguments, words in the wrong order, a
//! map in place of an image, a page of the documentation after an error.

use std::fs;
use std::path::Path;
use virt_bmap_testutil::sandbox::{Finished, Sandbox};
use virt_bmap_testutil::traced::MAP;

/// The page that a run names, which must be there.
#[track_caller]
fn page(run: &Finished) -> String {
    let url = format!("{}/blob/main/", env!("CARGO_PKG_REPOSITORY"));
    let (_, page) = run.stderr.split_once(&url).unwrap_or_else(|| panic!("no page: {}", run.stderr));
    let page = page.split_whitespace().next().unwrap();
    let file = page.split('#').next().unwrap();
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{page}");
    page.to_owned()
}

fn in_sandbox(files: &[(&str, &[u8])], args: &[&str]) -> Finished {
    let sandbox = Sandbox::new();
    for (name, content) in files {
        fs::write(sandbox.cwd().join(name), content).unwrap();
    }
    sandbox.run(args)
}

#[test]
fn without_arguments_the_first_commands_are_named() {
    let run = in_sandbox(&[], &[]);
    run.assert_code(2).assert_says(&["virt-bmap-rs lookup", "virt-bmap-rs report", "--help"]);
    assert!(run.stdout.is_empty() && run.stderr.lines().count() < 12, "{}", run.stderr);
    assert_eq!(page(&run), "docs/getting-started.md");
}

#[test]
fn a_command_that_there_is_not_is_no_image() {
    // The answer names the commands.
    in_sandbox(&[], &["lokup", "guest.bmap"]).assert_fails(&["lokup", "lookup", "report"]);
    // A file of this name is one.
    in_sandbox(&[("lokup", b"")], &["lokup"]).assert_fails(&["empty"]);
    // A command behind its map.
    let run = in_sandbox(&[("guest.bmap", MAP.as_bytes())], &["guest.bmap", "lookup", "0x100000"]);
    run.assert_fails(&["virt-bmap-rs lookup"]);
}

#[test]
fn a_map_is_no_image() {
    let header = format!("# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=8388608 format=raw name=a.raw\n{MAP}");
    for (name, out) in [("guest.bmap", "guest.bmap"), ("guest.jsonl", "guest.jsonl")] {
        let sandbox = Sandbox::new();
        fs::write(sandbox.cwd().join("map"), &header).unwrap();
        let run = sandbox.run(["convert", "map", out]);
        run.assert_code(0);
        run.sandbox.run([name, "-o", "other.bmap"]).assert_fails(&[name, "lookup", "--format raw"]);
    }
    // And an image is no map.
    let mut disk = vec![0xfa; 512];
    disk[510..].copy_from_slice(&[0x55, 0xaa]);
    let run = in_sandbox(&[("guest.raw", &disk)], &["lookup", "guest.raw", "0"]);
    run.assert_fails(&["guest.raw", "virt-bmap-rs IMAGE"]);
}

/// bmap-tools call their files as the maps of this program are called.
#[test]
fn a_file_that_is_no_map_is_not_replaced_unasked() {
    let foreign = b"<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\"/>\n";
    let run = in_sandbox(&[("guest.raw", &[1; 512]), ("guest.bmap", foreign)], &["guest.raw"]);
    run.assert_fails(&["guest.bmap", "-o"]);
    assert_eq!(run.read("guest.bmap"), foreign);
}

#[test]
fn an_error_names_its_page() {
    for (name, content, section) in [
        ("guest.qcow2", &[1u8; 4096][..], "docs/sources.md#what-is-refused"),
        ("guest.raw.002", &[1; 512], "docs/sources.md#a-raw-disk-in-segments"),
        ("guest.E01", b"EVF\x09\x0d\x0a\xff\x00\x01\x01\x00\x00\x00", "docs/sources.md#encase-images-e01"),
        ("guest.raw.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03cut", "docs/sources.md#compressed-images"),
    ] {
        let run = in_sandbox(&[(name, content)], &[name]);
        run.assert_fails(&[name]);
        assert_eq!(page(&run), section, "{}", run.stderr);
    }
    let files = [("guest.bmap", MAP.as_bytes()), ("list", &b"what\n"[..])];
    let run = in_sandbox(&files, &["lookup", "guest.bmap", "--ranges", "list"]);
    assert_eq!(page(run.assert_fails(&["list"])), "docs/questions.md#lists");
}

/// A pattern is that of a whole path, which nobody expects.
#[test]
fn a_name_and_a_directory_lead_to_the_pattern_that_finds_them() {
    let map = include_bytes!("../questions/guest.bmap");
    for (asked, found) in [("passwd", "**/passwd"), ("/var/log", "/var/log/**")] {
        let run = in_sandbox(&[("guest.bmap", map)], &["list", "guest.bmap", asked]);
        run.assert_code(0).assert_says(&[&format!(" {found} ")]);
        let again = run.sandbox.run(["list", "guest.bmap", found, "--csv"]);
        assert!(again.stdout.split(|byte| *byte == b'\n').count() > 2 && again.stderr.is_empty());
    }
    // What finds nothing in any form is no reason for a hint.
    let run = in_sandbox(&[("guest.bmap", map)], &["list", "guest.bmap", "nowhere"]);
    assert!(run.assert_code(0).stderr.is_empty(), "{}", run.stderr);
}
