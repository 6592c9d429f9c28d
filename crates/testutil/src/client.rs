//! Clients of a trace in Python, in place of a guest.

use super::sandbox::Sandbox;
use std::fs;

/// The module `differences`: writes the blocks in which one image differs from another to a disk.
const DIFFERENCES: &str = r#"
def write_differences(disk, old, new):
    with open(old, "rb") as old, open(new, "rb") as new:
        at = 0
        while block := new.read(4096):
            if old.read(4096) != block:
                disk.pwrite(block, at)
            at += 4096
"#;

/// Puts a client into the working directory of a run, with the module that it may import. Returns
/// the beginning of its command.
pub fn put(sandbox: &Sandbox, client: &str) -> &'static str {
    fs::write(sandbox.cwd().join("differences.py"), DIFFERENCES).unwrap();
    fs::write(sandbox.cwd().join("client.py"), client).unwrap();
    "/usr/bin/python3 client.py"
}
