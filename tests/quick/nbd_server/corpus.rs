//! Inputs that the fuzzer found worth keeping.

#[path = "../../../fuzz/entry.rs"]
mod entry;

use std::fs;
use std::path::Path;

fn replay(target: &str, entry: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        eprintln!("{}", path.display());
        entry(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 10, "{count} inputs only");
}

#[test]
fn negotiation() {
    replay("negotiation", entry::negotiation);
}

#[test]
fn transmission() {
    replay("transmission", entry::transmission);
}
