//! Runs `guestfish`, which makes the fixtures.

use super::{cache, places, tools};
use std::env;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

/// The time limit of a script in seconds. The longest script takes three minutes under emulation.
const LONGEST: &str = "900";

/// Options of an emulated kernel, for which docs/decisions/0010-appliance-kernel.md has the
/// reasons.
const KERNEL_OPTIONS: &str = "clearcpuid=erms,fsrm mitigations=off init_on_alloc=0 lsm=";

/// Runs a guestfish script in `dir` and returns what it printed. If a command fails, the function
/// panics with the message of guestfish.
///
/// The disks are `/dev/sda` and so on, in the order in which they are added, in `debug sh` too. The
/// appliance's kernel may name them in another order, and libguestfs translates names only in its
/// own calls.
///
/// The appliance is emulated unless `LIBGUESTFS_BACKEND_SETTINGS` says otherwise. libguestfs
/// assumes that an existing `/dev/kvm` works, which may be wrong, and a fixture is made only once.
/// It is the program's own unless `LIBGUESTFS_PATH` names another, because that one starts in a
/// third of the time, and its kernel has the options that the program gives it. One that hangs is
/// killed, so that one test fails and the others run.
pub fn run(dir: &Path, script: &str) -> String {
    let mut command = tools::command("timeout");
    command.args([LONGEST, "guestfish"]);
    for (name, value) in [
        ("LIBGUESTFS_BACKEND", "direct"),
        ("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg"),
        ("LIBGUESTFS_APPEND", KERNEL_OPTIONS),
    ] {
        if env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    if env::var_os("LIBGUESTFS_PATH").is_none() {
        command.env("LIBGUESTFS_PATH", appliance());
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(with_labels(script).as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let output = tools::output(command.current_dir(dir).stdin(Stdio::from(file)));
    String::from_utf8(output.stdout).unwrap()
}

/// The directory of the program's own appliance, which is built if it is missing. It is in the
/// cache of the tests' runs, so that no other build on this machine replaces it.
pub fn appliance() -> &'static str {
    static DIRECTORY: OnceLock<String> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let mut build = tools::command(places::program());
        let output = tools::output(build.args(["appliance", "build"]).env("XDG_CACHE_HOME", cache::kept()));
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().find_map(|line| line.strip_prefix("appliance: ")).expect("a directory").to_owned()
    })
}

/// Adds a label for each disk to the script. The labels replace the names that libguestfs does not
/// translate. Disks that a script makes need not survive a power cut, so nothing waits until they
/// are on the host's own disk.
fn with_labels(script: &str) -> String {
    let mut letters = 'a'..='z';
    let line = |line: &str| match line.split_once(' ') {
        Some(("add" | "add-drive", options)) => {
            let letter = letters.next().unwrap();
            let label = if options.contains("label:") { String::new() } else { format!(" label:sd{letter}") };
            let is_kept = options.contains("cachemode:") || options.contains("readonly:");
            format!("{line}{label}{}\n", if is_kept { "" } else { " cachemode:unsafe" })
        }
        Some(("debug", _)) => format!("{LINKS}\n{}\n", by_label(line)),
        _ => format!("{line}\n"),
    };
    script.lines().map(line).collect()
}

/// Makes links for the partitions of labelled disks. The program's own appliance has no udev, which
/// would make them.
const LINKS: &str = "debug sh 'for l in /dev/disk/guestfs/*; do d=$(readlink -f $l); \
                     for p in $d[0-9]*; do if [ -e $p ]; then ln -sf $p $l${p#$d}; fi; done; done'";

/// Commands for the appliance's shell, with the labels of the disks in place of their names.
pub fn by_label(commands: &str) -> String {
    commands.replace("/dev/sd", "/dev/disk/guestfs/sd")
}

/// Packs `files`, whose names are relative to `base`, into the tar archive `archive`.
pub fn tar(archive: &Path, base: &Path, files: &[std::path::PathBuf]) {
    use std::os::unix::ffi::OsStrExt;
    let mut list = tempfile::NamedTempFile::new().unwrap();
    for file in files {
        list.write_all(file.as_os_str().as_bytes()).unwrap();
        list.write_all(b"\0").unwrap();
    }
    tools::output(
        tools::command("tar")
            .args(["--create", "--no-recursion", "--null", "--owner=0", "--group=0"])
            .arg("--directory")
            .arg(base)
            .arg("--files-from")
            .arg(list.path())
            .stdout(File::create(archive).unwrap()),
    );
}
