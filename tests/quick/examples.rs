//! The programs in `examples/` that need no appliance, run as a reader of the documentation would.

use std::process::Command;

fn example(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--example", name, "--manifest-path"]);
    command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "--"]);
    command
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
