//! Clients of a trace in Python, in place of a guest.

use super::sandbox::Sandbox;
use std::fs;

/// The module `differences`: writes the blocks in which one image differs from another to a disk.
/// It compares first, and then sends all blocks at once: a pause between writes would end a state.
const DIFFERENCES: &str = r#"
import nbd

def write_differences(disk, old, new):
    blocks = []
    with open(old, "rb") as old, open(new, "rb") as new:
        at = 0
        while block := new.read(4096):
            if old.read(4096) != block:
                blocks.append((at, nbd.Buffer.from_bytearray(bytearray(block))))
            at += 4096
    writes = [disk.aio_pwrite(block, at) for at, block in blocks]
    while disk.aio_in_flight():
        disk.poll(-1)
    assert all(disk.aio_command_completed(write) for write in writes)
"#;

/// Puts a client into the working directory of a run, with the module that it may import. Returns
/// the beginning of its command.
pub fn put(sandbox: &Sandbox, client: &str) -> &'static str {
    fs::write(sandbox.cwd().join("differences.py"), DIFFERENCES).unwrap();
    fs::write(sandbox.cwd().join("client.py"), client).unwrap();
    "/usr/bin/python3 client.py"
}
