//! Runs the programs in `examples/` that need no appliance, as a reader of the documentation would.

use std::process::Command;
use virt_bmap_testutil::places::built;
use virt_bmap_testutil::tools::needs;

fn example(name: &str) -> Command {
    Command::new(built(&format!("examples/{name}")))
}

#[test]
fn an_offset_is_looked_up_in_a_map() {
    let directory = tempfile::tempdir().unwrap();
    let map = directory.path().join("guest.bmap");
    std::fs::write(&map, "1 0 1000 v /dev/sda\n1 1000 2000 f /dev/sda /etc/passwd\n1 1000 2000 v /dev/sda\n")
        .unwrap();
    let output = example("lookup").arg(&map).arg("0x1800").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("/etc/passwd"), "{text}");
}

#[test]
fn mapping_without_an_image_is_explained() {
    let output = example("map_image").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("usage"));
}

#[test]
fn the_lookup_example_answers() {
    let directory = tempfile::tempdir().unwrap();
    let map = directory.path().join("guest.bmap");
    std::fs::write(&map, b"1 0 200 v /dev/sda\n2 0 200 f /dev/sdb /a\x1b\n2 0 200 v /dev/sdb\n").unwrap();
    let output = example("lookup").arg(&map).args(["0x1ff", "2:3", "512"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "0x1ff:\n  v /dev/sda\n2:3:\n  f /dev/sdb /a\\033\n  v /dev/sdb\n512:\n"
    );
}

#[test]
fn two_maps_are_compared() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = ["old.bmap", "new.bmap"].map(|name| directory.path().join(name));
    std::fs::write(&old, b"1 0 1000 f /dev/sda /log\n1 1000 1200 f /dev/sda /gone\n").unwrap();
    std::fs::write(&new, b"1 0 1800 f /dev/sda /log\n").unwrap();
    let output = example("diff_maps").args([&old, &new]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "removed 512 0 f /dev/sda /gone\ngrown 4096 6144 f /dev/sda /log\n"
    );
}

#[test]
fn a_guest_is_traced() {
    needs!("nbdcopy");
    let directory = tempfile::tempdir().unwrap();
    let [image, map] = ["disk.raw", "disk.bmap"].map(|name| directory.path().join(name));
    std::fs::write(&image, vec![7; 0x2000]).unwrap();
    std::fs::write(&map, b"1 0 1000 f /dev/sda /read\n1 0 1000 v /dev/sda\n1 1000 2000 v /dev/sda\n")
        .unwrap();
    let output = example("trace_guest").args([&image, &map]).arg("nbdcopy \"$uri\" null:").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "4096 of 4096 bytes: f /dev/sda /read\n");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains(" Read id=") && log.contains("/read"), "{log}");
}
