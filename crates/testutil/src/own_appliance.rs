//! Runs of the program with its own appliance, in a cache of their own.

use crate::sandbox::{Finished, Sandbox};
use crate::textmap::body;
use crate::tools;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A filesystem with ten files, and its map by libguestfs's appliance.
pub struct Guest {
    /// Its image.
    pub image: PathBuf,
    /// Its map, without the header.
    pub map: Vec<u8>,
    _directory: tempfile::TempDir,
}

/// The guest of these tests.
pub fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for number in 0..10_u8 {
            fs::write(tree.join(format!("file{number}")), vec![b'a' + number; 5000]).unwrap();
        }
        let image = directory.path().join("guest.raw");
        tools::output(tools::command("mkfs.ext4").args(["-q", "-F", "-d"]).args([&tree, &image]).arg("16M"));
        let run = Sandbox::new().run([image.to_str().unwrap(), "--appliance", "stock", "-o", "guest.bmap"]);
        run.assert_code(0);
        assert!(!run.stderr.contains("libguestfs's appliance"), "{}", run.stderr);
        Guest { map: body(&run.read("guest.bmap")).to_vec(), image, _directory: directory }
    })
}

/// Begins the message that libguestfs's appliance is used instead of our own.
pub const STOCK: &str = "using libguestfs's appliance";

/// A sandbox with a cache of its own, which is empty, and the path of that cache.
pub fn private() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    let cache = sandbox.cwd().join("cache");
    (sandbox.env("XDG_CACHE_HOME", &cache), cache.join("virt-bmap-rs"))
}

/// A sandbox with a cache of its own, which holds an appliance that is whole; the path of that
/// cache, and of the appliance.
pub fn with_appliance() -> (Sandbox, PathBuf, PathBuf) {
    // Most tests share a cache. Copying from there takes less time than building.
    let run = Sandbox::new().run(["appliance", "build"]);
    run.assert_code(0);
    let run = run.sandbox.run(["appliance", "status"]);
    let status = text(&run);
    let shared = status.lines().find_map(|line| line.strip_prefix("appliance: ")).map(Path::new).unwrap();
    let (sandbox, cache) = private();
    let appliance = cache.join(shared.file_name().unwrap());
    for directory in [cache.parent().unwrap(), &cache] {
        fs::DirBuilder::new().mode(0o700).create(directory).unwrap();
    }
    tools::output(tools::command("cp").args(["-a", "--sparse=always"]).args([shared, &appliance]));
    let run = sandbox.run(["appliance", "status"]);
    run.assert_code(0);
    (run.sandbox, cache, appliance)
}

/// The arguments that map the guest.
pub fn arguments() -> [&'static str; 3] {
    [guest().image.to_str().unwrap(), "-o", "guest.bmap"]
}

/// Fails unless the guest was mapped. `by_own`: by our own appliance, not by libguestfs's.
///
/// # Panics
/// If it was not.
#[track_caller]
pub fn assert_mapped(run: &Finished, by_own: bool) {
    run.assert_code(0);
    assert!(body(&run.read("guest.bmap")) == guest().map, "another map:\n{}", run.stderr);
    assert_eq!(!run.stderr.contains(STOCK), by_own, "{}", run.stderr);
}

/// What the run has printed on standard output.
pub fn text(run: &Finished) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}
