//! The paths of the program under test and of the files of the tests.
//!
//! Only the compiler of an integration test knows these paths (`CARGO_BIN_EXE_…`,
//! `CARGO_TARGET_TMPDIR`), and this crate is not compiled as one. They are derived from the path of
//! the test's own executable, `<target directory>/<profile>/deps/<test>-<hash>`. Before cargo runs
//! a test of a package, it builds the package's program into the directory above. So the program
//! there is never older than the sources. Each test program uses [`program!`](crate::program),
//! which checks the paths.

use super::tools;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The directory of the build with this profile, such as `target/debug`.
fn profile() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own executable");
    test.ancestors().nth(2).expect("a test is two levels below the build directory").to_owned()
}

/// The program under test.
pub fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = profile().join("virt-bmap-rs");
        program.into_os_string().into_string().expect("the build directory has a name in UTF-8")
    })
}

/// The directory for files that tests write and keep, `target/tmp`. Cargo makes it.
pub fn target_tmpdir() -> PathBuf {
    let profile = profile();
    // A build for another target has one level more. Cargo writes the file `.rustc_info.json`.
    let target = profile.ancestors().skip(1).take(2).find(|dir| dir.join(".rustc_info.json").exists());
    target.or(profile.parent()).expect("the build directory is in another").join("tmp")
}

/// A file that cargo builds for this workspace but not for a test: `examples/NAME`, or the library
/// of the plugin. The first call runs cargo, since the sources may have changed.
///
/// The command is the same as in `make check-quick`, so cargo has nothing to do after that. With
/// another choice of packages, cargo would unify features differently and compile the library
/// again.
pub fn built(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
        let mut command = Command::new(cargo);
        command.args([
            "build",
            "--quiet",
            "--offline",
            "--workspace",
            "--lib",
            "--examples",
            "--manifest-path",
            manifest,
        ]);
        if profile().ends_with("release") {
            command.arg("--release");
        }
        tools::output(&mut command);
    });
    profile().join(name)
}

/// Fails unless this crate uses the same paths as the compiler.
///
/// # Panics If a path differs.
pub fn check(built: &str, tmpdir: &str) {
    assert_eq!(
        Path::new(program()),
        Path::new(built),
        "this is not the program that cargo built for this test"
    );
    assert_eq!(target_tmpdir(), Path::new(tmpdir), "this is not the directory that cargo keeps for tests");
}

/// Defines two items in the root of a test program: `PROGRAM`, the path of the program under test,
/// and `check_places()`, which fails if this crate would run another program.
///
/// With `harness`, a test calls `check_places()`. A program without the test harness must call it
/// at its start.
#[macro_export]
macro_rules! program {
    () => {
        /// The program under test, as cargo built it for this test.
        #[allow(dead_code, reason = "not every test program runs it by its path")]
        pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_virt-bmap-rs");

        /// Fails unless the sandbox runs the program that cargo built for this test.
        fn check_places() {
            $crate::places::check(env!("CARGO_BIN_EXE_virt-bmap-rs"), env!("CARGO_TARGET_TMPDIR"));
        }
    };
    (harness) => {
        $crate::program!();

        #[test]
        fn the_sandbox_runs_the_program_that_was_built() {
            check_places();
        }
    };
}
