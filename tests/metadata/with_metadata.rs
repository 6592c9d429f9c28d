//! Maps of disks with `--metadata`.

use std::ffi::OsStr;
use std::path::PathBuf;
use virt_bmap_map::{self as bmap, Map, ObjectName};
use virt_bmap_testutil::ranges::{Range, normalise};
use virt_bmap_testutil::sandbox::{Finished, Sandbox};

/// Maps `disks` with `--metadata` and `options`. Returns the run, and the map as our library loads
/// it.
pub(crate) fn map(disks: &[PathBuf], options: &[&str]) -> (Finished, Map) {
    let words = ["--metadata", "--quiet", "-o", "guest.jsonl"].iter().chain(options).map(OsStr::new);
    let run = Sandbox::new().run(words.chain(disks.iter().map(|disk| disk.as_os_str())));
    let map = bmap::load(&run.sandbox.cwd().join("guest.jsonl"));
    let map = map.unwrap_or_else(|error| panic!("{error}; standard error:\n{}", run.stderr));
    (run, map)
}

/// The ranges of an object on a disk. There are none if the object does not exist.
pub(crate) fn pieces(map: &Map, disk: u16, name: &ObjectName<'_>) -> Vec<Range> {
    let pieces = map.find(*name).into_iter().flat_map(bmap::Object::pieces);
    normalise(pieces.filter(|piece| piece.disk == disk).map(|piece| piece.range.start.0..piece.range.end.0))
}
