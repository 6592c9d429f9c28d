//! Why a filesystem cannot be mounted, in the words of the kernel.

use super::context::Context;
use super::kernel_log::{said_by_driver, said_of};
use crate::appliance::{CallError, Content};
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
    let log = context.appliance.kernel_log().unwrap_or_default();
    let mut said = said_of(context, filesystem, &log);
    if said.is_empty() {
        said = said_by_driver(&log, kind.name());
    }
    // What follows says only that it was in vain.
    said.truncate(LINES);
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
