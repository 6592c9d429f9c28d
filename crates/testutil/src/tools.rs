//! External programs that a test needs, and the visible skip where one is missing.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Directories that are searched after `PATH`: an ordinary user's `PATH` lacks them on Debian.
const MORE_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where `program` is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(MORE_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Says that a test is skipped and why; where everything must be there
/// (`VIRT_BMAP_REQUIRE_TOOLS=1`, set on the CI machine), fails instead.
pub fn skip(why: &str) {
    assert!(
        env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none_or(|v| v != "1"),
        "must not be skipped here: {why}"
    );
    eprintln!("SKIPPED: {why}");
}

/// Whether all of `programs` are installed; says which are missing.
pub fn installed(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    if !missing.is_empty() {
        skip(&format!(
            "not installed: {} (scripts/setup-debian.sh --tests installs them)",
            missing.join(", ")
        ));
    }
    missing.is_empty()
}

/// Whether the test runs as root; says so where it does not.
pub fn is_root(purpose: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(&format!("only root may {purpose}"));
    }
    root
}

/// A map of a Fedora 20 guest by the original program, compressed, which lies beside the project
/// and not in it.
///
/// Must be there where everything must be, unless `VIRT_BMAP_WITHOUT_ORIGINAL=1` says that it
/// cannot.
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

/// A command of an installed program, in the C locale.
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

/// Copies a program that is to be run at once.
///
/// A process of its own does it: were the copy open for writing in this one, a child that another
/// test starts at that moment would have it open until it executes something, and Linux runs no
/// program that somebody can write to.
pub fn copy_program(program: &Path, to: &Path) {
    run("cp", [program, to]);
}

/// SHA-256 of a file's content, in hex.
pub fn sha256(file: &Path) -> String {
    let out = String::from_utf8(run("sha256sum", [OsStr::new("-b"), file.as_os_str()])).unwrap();
    out.trim_start_matches('\\').split(' ').next().unwrap().to_owned()
}

/// Returns from the test, with a visible `SKIPPED`, unless the programs are installed.
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
