//! Keeps stacked devices from moving data about, which would be read and written behind our back.
//!
//! dm-cache copies what is read often to its fast device, and later reads come from there: from a place that
//! holds something else in the image. No message stops it (`migration_threshold` bounds only what is written
//! back), but its *passthrough* mode does: all reads are then the origin's
//! (`Documentation/admin-guide/device-mapper/cache.rst`). That is right only of a cache without dirty blocks;
//! of one that has some, at least nothing is written back.
//!
//! The members of a `raid` target are not synchronised (`dm-raid.rst`).

use std::process::Command;

/// Must come before anything is read of these devices. What cannot be calmed stays as it is.
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

/// The same table in passthrough mode. Its words: start, length, `cache`, three devices, the size of a block, the
/// number of features, and the features.
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

/// What `dmsetup` says of each device that has one target: its name, and the target.
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
    // udev has been ended, and would be waited for.
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
