//! The inputs in `fuzz/corpus` that the fuzzers found worth keeping.

use std::fs;
use std::path::Path;

/// Gives each input of a fuzz target to the function that the target calls.
pub fn replay(target: &str, entry: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        eprintln!("{}", path.display());
        entry(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 10, "{count} inputs only");
}
