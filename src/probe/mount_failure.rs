//! Why a filesystem cannot be mounted, in the words of the kernel.

use super::context::Context;
use crate::appliance::{CallError, Content, quote};
use virt_bmap_agent_protocol::{Driver, FsKind};
use virt_bmap_map::Cause;

/// Most lines of the kernel that are quoted.
const LINES: usize = 3;

/// The cause for a mount that has failed just now.
pub(super) fn cause(context: &Context<'_>, filesystem: &Content, error: &CallError) -> Cause {
    let kind = filesystem.kind.clone().unwrap_or_default();
    if !has_driver(context, &kind) {
        return Cause::SignatureUnused { signature: kind.name().to_owned(), label: None };
    }
    let node = context.appliance.shell(&format!("readlink -f {}", quote(&filesystem.node)));
    let node = node.ok().and_then(|node| Some(node.trim().strip_prefix("/dev/")?.to_owned()));
    let log = context.appliance.kernel_log().unwrap_or_default();
    let said = node.map(|node| said(&log, &node, &filesystem.device)).unwrap_or_default();
    let filesystem = kind.to_string();
    if said.iter().any(|line| is_about_features(line)) {
        let release = context.appliance.shell("uname -r").unwrap_or_default();
        return Cause::FilesystemTooNew { filesystem, kernel: version(&release), error: said.join("; ") };
    }
    let error = if said.is_empty() { without_advice(&error.message) } else { said.join("; ") };
    Cause::MountFailed { filesystem, error }
}

/// Whether the appliance can mount filesystems of this kind. The kernel has loaded the driver by
/// now if it has one.
fn has_driver(context: &Context<'_>, kind: &FsKind) -> bool {
    let is_known = |listed: &str| {
        let mut names = listed.lines().filter_map(|line| line.split_whitespace().next_back());
        names.any(|name| name == kind.name())
    };
    kind.name().is_empty()
        || kind.facts().driver == Driver::Fuse
        || context.appliance.shell("cat /proc/filesystems").map_or(true, |listed| is_known(&listed))
}

/// What the kernel has said of a device that it calls `node`, with our name for it.
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
    // What follows says only that it was in vain.
    said.truncate(LINES);
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

/// Whether a message of the kernel names features that it does not know: `ext4_feature_set_ok` and
/// `ext4_check_feature_compatibility`, `xfs_sb_validate_mount`, `btrfs_check_features`, f2fs's
/// `sanity_check_raw_super` of Linux.
fn is_about_features(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.contains("features")
        && ["unsupported optional", "unknown", "unsupported compat", "unsupported incompat"]
            .iter()
            .any(|words| line.contains(words))
}

/// The first two numbers of a release of the kernel.
fn version(release: &str) -> String {
    release.trim().split(['.', '-']).take(2).collect::<Vec<_>>().join(".")
}

/// The message of mount(8) without its advice to look into a log that has nothing, nor its names of
/// devices.
fn without_advice(message: &str) -> String {
    let lines =
        message.split("\\n").map(str::trim).filter(|line| !line.is_empty() && !line.contains("dmesg(1)"));
    let text = lines.collect::<Vec<_>>().join(" ");
    let text = text.rsplit_once("mount: /sysroot: ").map_or(text.as_str(), |(_, said)| said);
    text.split(", bad superblock on ").next().unwrap_or_default().trim_end_matches('.').to_owned()
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
    }

    #[test]
    fn unknown_features_are_recognised() {
        for line in [
            "couldn't mount because of unsupported optional features (200000)",
            "Superblock has unknown incompatible features (0x80) enabled.",
            "cannot mount because of unknown incompat features (0x20000)",
        ] {
            assert!(is_about_features(line), "{line}");
        }
        assert!(!is_about_features("bad geometry: block count 5 exceeds size of device"));
        assert_eq!(version("6.1.0-41-amd64\n"), "6.1");
    }

    #[test]
    fn advice_is_left_out() {
        let message = "mount exited with status 32: mount: /sysroot: wrong fs type, bad option, bad superblock on \
                       /dev/sdj1, missing codepage or helper program, or other error.\\n       dmesg(1) may have \
                       more information after failed mount system call.";
        assert_eq!(without_advice(message), "wrong fs type, bad option");
        assert_eq!(
            without_advice("NTFS signature is missing.\\nFailed"),
            "NTFS signature is missing. Failed"
        );
    }
}
