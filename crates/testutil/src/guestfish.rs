//! Runs `guestfish`, which makes the fixtures.

use super::tools;
use std::env;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// Seconds after which a script is taken to hang; the longest takes three minutes under emulation.
const LONGEST: &str = "900";

/// Runs a guestfish script in `dir` and returns what it printed. The first command that fails is a
/// panic with guestfish's own words.
///
/// Disks are `/dev/sda` and so on in the order in which they are added, in `debug sh` too: the
/// kernel of the appliance names them as it finds them, and libguestfs translates the names of its
/// own calls only.
///
/// Under emulation unless `LIBGUESTFS_BACKEND_SETTINGS` says otherwise: libguestfs takes a
/// `/dev/kvm` for granted that may not work, and a fixture is made once only. An appliance that
/// hangs is ended, so that it fails a test instead of all that would come after it.
pub fn run(dir: &Path, script: &str) -> String {
    let mut command = tools::command("timeout");
    command.args([LONGEST, "guestfish"]);
    for (name, value) in [("LIBGUESTFS_BACKEND", "direct"), ("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")] {
        if env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(with_labels(script).as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let output = tools::output(command.current_dir(dir).stdin(Stdio::from(file)));
    String::from_utf8(output.stdout).unwrap()
}

/// The script with labels for its disks, and these in place of names that libguestfs does not
/// translate.
fn with_labels(script: &str) -> String {
    let mut letters = 'a'..='z';
    let line = |line: &str| match line.split_once(' ') {
        Some(("add" | "add-drive", options)) => {
            let letter = letters.next().unwrap();
            let label = if options.contains("label:") { String::new() } else { format!(" label:sd{letter}") };
            format!("{line}{label}\n")
        }
        Some(("debug", _)) => format!("{}\n", by_label(line)),
        _ => format!("{line}\n"),
    };
    script.lines().map(line).collect()
}

/// Commands for the appliance's shell, with the disks' labels in place of their names.
pub fn by_label(commands: &str) -> String {
    commands.replace("/dev/sd", "/dev/disk/guestfs/sd")
}

/// Packs `files`, named relative to `base`, into the tar archive `archive`.
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
