//! Maps of disks with `--metadata`.

use std::ffi::OsStr;
use std::path::PathBuf;
use virt_bmap_map::{self as bmap, Cause, Map, ObjectName, Subject};
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

/// The name of a disk in the appliance.
pub(crate) fn device(disk: u16) -> String {
    format!("/dev/sd{}", char::from(b'a' + disk as u8 - 1))
}

/// The causes of the warnings about a disk and what is on it.
pub(crate) fn causes(map: &Map, disk: u16) -> Vec<&Cause> {
    let device = device(disk).into_bytes();
    let is_here = |subject: &Subject| match subject {
        Subject::Device(name) | Subject::Path { device: name, .. } => *name == device,
        Subject::Image(_) | Subject::Guest => false,
    };
    let warnings = map.header().warnings.iter().filter(|warning| is_here(&warning.subject));
    warnings.map(|warning| &warning.cause).collect()
}
