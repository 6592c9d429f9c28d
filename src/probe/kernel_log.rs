//! What the appliance's kernel says of a device.

use super::context::Context;
use crate::appliance::{Content, quote};
use virt_bmap_map::Cause;

/// What a log of the kernel says of the device of a filesystem, with our name for it. Each message
/// is there once.
pub(super) fn said_of(context: &Context<'_>, filesystem: &Content, log: &str) -> Vec<String> {
    if !log.contains("): ") {
        return Vec::new();
    }
    // The kernel calls a logical volume `dm-0`.
    let node = context.appliance.shell(&format!("readlink -f {}", quote(&filesystem.node)));
    let node = node.ok().and_then(|node| Some(node.trim().strip_prefix("/dev/")?.to_owned()));
    node.map(|node| said(log, &node, &filesystem.device)).unwrap_or_default()
}

/// What a log says in the name of a driver alone, without a device: `ufs: bad magic number`.
pub(super) fn said_by_driver(log: &str, driver: &str) -> Vec<String> {
    let lines = log.lines().map(|line| line.split_once("] ").map_or(line, |(_, text)| text));
    let said = lines.filter_map(|line| line.strip_prefix(driver)?.strip_prefix(": "));
    said.map(|text| text.split_once("(): ").map_or(text, |(_, said)| said).to_owned()).collect()
}

/// What a log says of a device that the kernel calls `node`.
fn said(log: &str, node: &str, device: &str) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for line in log.lines() {
        // Priority and time: `<3>[   12.345678] `.
        let line = line.split_once("] ").map_or(line, |(_, text)| text);
        // `EXT4-fs (sda1): …`, `XFS (dm-0): …`, `BTRFS error (device sda1): …`
        let Some((head, text)) = line.split_once("): ") else { continue };
        let Some((_, name)) = head.rsplit_once('(') else { continue };
        // btrfs adds its state to the name.
        let name = name.strip_prefix("device ").unwrap_or(name).split(' ').next().unwrap_or_default();
        if name != node {
            continue;
        }
        let text = with_name(text, node, device.strip_prefix("/dev/").unwrap_or(device));
        if !said.contains(&text) {
            said.push(text);
        }
    }
    said
}

/// A text with another name in place of each word that is `node`.
fn with_name(text: &str, node: &str, name: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut renamed = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(node) {
        let (before, after) = (&rest[..at], &rest[at + node.len()..]);
        let is_word = !before.ends_with(is_part) && !after.starts_with(is_part);
        renamed.push_str(before);
        renamed.push_str(if is_word { name } else { node });
        rest = after;
    }
    renamed + rest
}

/// Warns of each directory that the kernel has called corrupt while the filesystem was walked. Of
/// those the kernel reads no entries behind the damage, and `readdir` does not say so.
pub(super) fn note_corrupt_directories(context: &Context<'_>, filesystem: &Content, log: &str) {
    // Asking for the kernel's name of the device takes a tenth of a second.
    if !log.lines().any(|line| corrupt_directory(line).is_some()) {
        return;
    }
    for error in said_of(context, filesystem, log) {
        let Some(inode) = corrupt_directory(&error) else { continue };
        let device = &filesystem.device;
        context.channel.with(|found, warnings| {
            let cause = Cause::DirectoryCorrupt { error: without_places(&error) };
            match inode.and_then(|inode| found.directory_of_inode(inode)) {
                Some(path) => warnings.on_path(device, path, cause),
                None => warnings.on_device(device, cause),
            }
        });
    }
}

/// Whether a message calls a directory corrupt, and the inode if it names one: `ext4_error_inode`
/// and `ext4_warning_inode` of `fs/ext4/super.c`, whose callers in `dir.c` and `namei.c` speak of
/// directories; `xfs_corruption_error` with `xfs_dir` in the place.
fn corrupt_directory(message: &str) -> Option<Option<u64>> {
    let lower = message.to_ascii_lowercase();
    let inode = ["inode #", "(ino: "].iter().find_map(|before| {
        let (_, rest) = lower.split_once(before)?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse::<u64>().ok()
    });
    let is_about_directory =
        ["directory", "htree", "dx_", "dx entry", "readdir"].iter().any(|word| lower.contains(word));
    (is_about_directory && inode.is_some() || lower.contains("xfs_dir")).then_some(inode)
}

/// A message without what only a developer of the kernel can use: the function and the program.
fn without_places(message: &str) -> String {
    let parts = message.split(": ").filter(|part| {
        let is_function = part.split_once(':').is_some_and(|(name, line)| {
            !name.contains(' ') && !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit())
        });
        !is_function
            && !part.starts_with("inode #")
            && !part.starts_with("comm ")
            && !part.starts_with("path ")
    });
    parts.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_about_a_device_are_quoted_with_our_name() {
        let log = "<6>[    1.0] sd 0:0:0:0: [sda] Attached SCSI disk\n\
                   <3>[    2.0] EXT4-fs (sdj1): bad geometry: block count 142336 exceeds size of device\n\
                   <3>[    2.1] EXT4-fs (sdj10): bad geometry\n\
                   <3>[    2.2] BTRFS error (device sdj1 state E): sdj1 and sdj10 differ\n\
                   <3>[    2.2] BTRFS error (device sdj1 state E): sdj1 and sdj10 differ\n";
        assert_eq!(
            said(log, "sdj1", "/dev/sdl1"),
            ["bad geometry: block count 142336 exceeds size of device", "sdl1 and sdj10 differ"]
        );
        assert_eq!(said(log, "sdj", "/dev/sdl"), [""; 0]);
        let log = "<3>[    1.0] ufs: ufs_fill_super(): bad magic number\n<3>[    1.1] ufsx: no\n";
        assert_eq!(said_by_driver(log, "ufs"), ["bad magic number"]);
    }

    #[test]
    fn corrupt_directories_are_recognised() {
        let message = "htree_dirblock_to_tree:1110: inode #12: block 5: comm virt-bmap-agent: bad entry in \
                       directory: rec_len is smaller than minimal";
        assert_eq!(corrupt_directory(message), Some(Some(12)));
        assert_eq!(
            without_places(message),
            "block 5: bad entry in directory: rec_len is smaller than minimal"
        );
        assert_eq!(corrupt_directory("Metadata corruption detected at xfs_dir3_block_verify"), Some(None));
        let message = "Directory (ino: 53377) htree depth 0x0002 exceedsupported value";
        assert_eq!(corrupt_directory(message), Some(Some(53377)));
        assert_eq!(corrupt_directory("Enable large directory feature to access it"), None);
        assert_eq!(corrupt_directory("ext4_iget: inode #12: bogus i_mode"), None);
    }
}
