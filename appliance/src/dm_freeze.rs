//! Keeps targets of the device mapper from moving data, which would cause reads and writes of their
//! own.
//!
//! dm-cache copies blocks that are read often to its fast device, and later reads go there, to a
//! place that holds other data in the image. No message stops it (`migration_threshold` only limits
//! writing back), but its *passthrough* mode does: all reads then go to the origin
//! (`Documentation/admin-guide/device-mapper/cache.rst`). That is correct only for a cache without
//! dirty blocks. A cache that has some is at least kept from writing them back.
//!
//! The members of a `raid` target are not synchronised (`dm-raid.rst`).

use std::process::Command;

/// Must come before the first read of these devices. A device that cannot be frozen stays as it is.
pub(crate) fn run() {
    for (name, table) in lines("table") {
        match table.split(' ').nth(2) {
            Some("cache") => calm_cache(&name, &table),
            Some("raid") => drop(dmsetup(&["message", &name, "0", "frozen"])),
            _ => {}
        }
    }
}

fn calm_cache(name: &str, table: &str) {
    if table.split(' ').any(|word| word == "passthrough") {
        return;
    }
    dmsetup(&["message", name, "0", "migration_threshold", "0"]);
    let status = lines("status").into_iter().find(|(device, _)| device == name);
    let is_clean = status.is_some_and(|(_, status)| dirty_blocks(&status) == Some(0));
    let Some(table) = as_passthrough(table).filter(|_| is_clean) else { return };
    if dmsetup(&["reload", name, "--table", &table]).is_some() {
        dmsetup(&["resume", "--noudevsync", name]);
    }
}

/// The same table in passthrough mode. Its words: start, length, `cache`, three devices, the size
/// of a block, the number of features, and the features.
fn as_passthrough(table: &str) -> Option<String> {
    let mut words: Vec<&str> = table.split(' ').collect();
    let count: usize = words.get(7)?.parse().ok()?;
    let features = words.get_mut(8..8_usize.checked_add(count)?)?;
    let mode = features.iter_mut().find(|word| matches!(**word, "writethrough" | "writeback"))?;
    *mode = "passthrough";
    Some(words.join(" "))
}

/// Number of dirty blocks in the status of a cache.
fn dirty_blocks(status: &str) -> Option<u64> {
    status.split(' ').nth(13)?.parse().ok()
}

/// The name and the target of each device that has a single target, from `dmsetup`.
fn lines(what: &str) -> Vec<(String, String)> {
    let text = dmsetup(&[what]).unwrap_or_default();
    let mut lines: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(a, b)| (a.into(), b.trim().into()))
        .collect();
    let names: Vec<String> = lines.iter().map(|(name, _)| name.clone()).collect();
    lines.retain(|(name, _)| names.iter().filter(|other| *other == name).count() == 1);
    lines
}

/// Runs `dmsetup`; `None` if it fails.
fn dmsetup(arguments: &[&str]) -> Option<String> {
    // udev no longer runs, and dmsetup would wait for it.
    let output = Command::new("dmsetup").args(arguments).env("DM_DISABLE_UDEV", "1").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "0 65536 cache 253:10 253:9 253:11 128 2 metadata2 writethrough smq 0";

    #[test]
    fn the_mode_alone_changes() {
        let changed = TABLE.replace("writethrough", "passthrough");
        assert_eq!(as_passthrough(TABLE), Some(changed.clone()));
        assert_eq!(as_passthrough(&changed), None);
        assert_eq!(as_passthrough("0 65536 cache 253:10 253:9 253:11 128 9 writeback smq 0"), None);
    }

    #[test]
    fn dirty_blocks_are_found() {
        let status = "0 65536 cache 8 22/2048 128 12/256 10 20 30 40 0 0 7 2 metadata2 writethrough 2 migration_threshold 2048 smq 0 rw -";
        assert_eq!(dirty_blocks(status), Some(7));
        assert_eq!(dirty_blocks("0 65536 cache Fail"), None);
    }
}
