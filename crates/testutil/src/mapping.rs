//! Maps that many tests use. They are made once for each build of the program, and kept.

use super::fixture::Fixture;
use super::places::program;
use super::sandbox;
use super::textmap::TextMap;
use super::{cache, tools};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// The results of a run of the program.
pub struct Mapping {
    /// The map, byte for byte.
    pub text: Vec<u8>,
    /// The map, parsed.
    pub map: TextMap,
    /// Standard error.
    pub stderr: String,
    /// Exit status.
    pub code: i32,
    /// The peak memory of the program's own process, in KiB.
    pub peak_kib: u64,
    /// How long the run took.
    pub elapsed: Duration,
}

/// The map of `images`, in this order, with `options`.
///
/// The program runs in a sandbox, so all checks of [`sandbox::Running::finish`] apply. The images
/// must not change.
pub fn of(images: &[&Fixture], options: &[&str]) -> Mapping {
    let built = fs::metadata(program()).unwrap();
    let names: Vec<_> = images.iter().map(|f| &f.image).collect();
    let key = cache::key((&names, options, built.mtime(), built.mtime_nsec(), built.len(), program()));
    let dir = cache::directory(&format!("map-{}", cache::key((&names, options))), &key, |dir| {
        let args = names.iter().map(|n| n.as_os_str()).chain(options.iter().map(std::ffi::OsStr::new));
        let run = sandbox::run(args.chain(["-o".as_ref(), "out.bmap".as_ref()]));
        for fixture in images {
            assert_eq!(
                tools::sha256(&fixture.image),
                fixture.sha256,
                "{} was changed",
                fixture.image.display()
            );
        }
        assert!(run.code() == 0 || run.code() == 3, "{}:\n{}", run.code(), run.stderr);
        fs::write(dir.join("out.bmap"), run.read("out.bmap")).unwrap();
        fs::write(dir.join("stderr"), &run.stderr).unwrap();
        let numbers = (run.code(), run.peak_kib, run.elapsed.as_millis() as u64);
        fs::write(dir.join("numbers"), serde_json::to_string(&numbers).unwrap()).unwrap();
    });
    let (code, peak_kib, millis) = serde_json::from_slice(&fs::read(dir.join("numbers")).unwrap()).unwrap();
    let text = fs::read(dir.join("out.bmap")).unwrap();
    Mapping {
        map: TextMap::parse(&text),
        text,
        stderr: fs::read_to_string(dir.join("stderr")).unwrap(),
        code,
        peak_kib,
        elapsed: Duration::from_millis(millis),
    }
}
