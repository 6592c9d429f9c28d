//! What `scripts/setup.sh` says on systems that are no Debian, by the names of their `os-release`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use virt_bmap_testutil::tools;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs the script on a system with this `os-release` on which nothing is installed.
fn setup(os_release: &str) -> (Option<i32>, String) {
    let place = tempfile::tempdir().unwrap();
    for program in ["bash", "dirname", "sed", "uname"] {
        std::os::unix::fs::symlink(tools::find(program).unwrap(), place.path().join(program)).unwrap();
    }
    let release = place.path().join("os-release");
    fs::write(&release, os_release).unwrap();
    let mut command = Command::new(Path::new(ROOT).join("scripts/setup.sh"));
    command.env_clear().env("PATH", place.path()).env("HOME", place.path()).env("OS_RELEASE", release);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn words(command: &str) -> BTreeSet<&str> {
    command.split_whitespace().collect()
}

#[test]
fn it_prints_the_command_of_the_documentation() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/compatibility.md")).unwrap();
    for (system, os_release) in [
        ("Fedora", "ID=fedora\n"),
        ("RHEL 9, 10", "ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\n"),
        ("openSUSE", "ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n"),
        ("Arch", "ID=arch\n"),
    ] {
        let row = page.lines().find(|line| line.starts_with(&format!("| {system} | `"))).unwrap();
        let documented = row.split('`').nth(1).unwrap();
        let (code, said) = setup(os_release);
        assert_eq!(code, Some(1), "{system}: {said}");
        let printed = said.lines().find_map(|line| line.split_once("as root:  ")).unwrap().1;
        assert_eq!(words(printed), words(documented), "{system}");
        assert!(said.contains("missing: supermin"), "{system}: {said}");
    }
}

#[test]
fn an_unknown_system_is_told_what_is_missing() {
    let (code, said) = setup("ID=alpine\n");
    assert_eq!(code, Some(1));
    assert!(said.contains("missing: qemu") && said.contains("docs/compatibility.md"), "{said}");
}

#[test]
fn relatives_of_debian_have_its_script() {
    let (code, said) = setup("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n");
    assert_eq!(code, Some(1));
    assert!(said.contains("setup-debian: "), "{said}");
}
