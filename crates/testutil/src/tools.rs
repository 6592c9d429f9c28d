//! External programs that a test needs. If one is missing, the test is skipped visibly.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Directories that are searched after `PATH`. On Debian the `PATH` of ordinary users lacks them.
const MORE_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The path of `program`, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(MORE_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Prints that a test is skipped and why. Fails if everything must be installed, that is, with
/// `VIRT_BMAP_REQUIRE_TOOLS=1`, which the CI machine sets.
pub fn skip(why: &str) {
    assert!(
        env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none_or(|v| v != "1"),
        "must not be skipped here: {why}"
    );
    eprintln!("SKIPPED: {why}");
}

/// Whether all of `programs` are installed. Prints which are missing.
pub fn installed(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    if !missing.is_empty() {
        skip(&format!("not installed: {} (scripts/setup.sh --tests installs them)", missing.join(", ")));
    }
    missing.is_empty()
}

/// Whether the test runs as root. Prints a message if it does not.
pub fn is_root(purpose: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(&format!("only root may {purpose}"));
    }
    root
}

/// A compressed map of a Fedora 20 guest that the original program made. It lies beside the project
/// and does not belong to it.
///
/// If everything must be installed, the map must exist too, unless `VIRT_BMAP_WITHOUT_ORIGINAL=1`
/// says that it cannot.
pub fn original_map() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/fedora-20.bmap.gz");
    if path.exists() {
        return Some(path);
    }
    let why = format!("{} is not there: no map by the original to compare with", path.display());
    if env::var_os("VIRT_BMAP_WITHOUT_ORIGINAL").is_some_and(|value| value == "1") {
        eprintln!("SKIPPED: {why}");
    } else {
        skip(&why);
    }
    None
}

/// The command of an installed program, with the C locale.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| panic!("{program} is not installed")));
    command.env("LC_ALL", "C").env("TZ", "UTC");
    command
}

/// Runs a program that must succeed, and returns its standard output.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Vec<u8> {
    output(command(program).args(args)).stdout
}

/// Runs a command that must succeed.
pub fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Copies a program that will be run soon.
///
/// Another process copies it. If this process had the copy open for writing, a child that another
/// test starts at that moment would inherit the open file until it calls exec. Linux does not run a
/// program that is open for writing.
pub fn copy_program(program: &Path, to: &Path) {
    run("cp", [program, to]);
}

/// The SHA-256 of a file's content, in hex.
pub fn sha256(file: &Path) -> String {
    let out = String::from_utf8(run("sha256sum", [OsStr::new("-b"), file.as_os_str()])).unwrap();
    out.trim_start_matches('\\').split(' ').next().unwrap().to_owned()
}

/// Returns from the test with a visible `SKIPPED` unless the programs are installed.
#[macro_export]
macro_rules! needs {
    ($($program:literal),+ $(,)?) => {
        if !$crate::tools::installed(&[$($program),+]) {
            return;
        }
    };
}
#[doc(inline)]
pub use needs;
