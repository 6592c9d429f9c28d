//! Whether SIGHUP is ignored, as under nohup(1).

/// Whether this process ignores SIGHUP, because it began that way or by now, according to the
/// `SigIgn` of proc(5); false if that cannot be read.
///
/// Child processes need other protection: qemu and qemu-nbd catch SIGHUP even if they inherit it as
/// ignored.
pub fn is_ignored() -> bool {
    const NUMBER: u32 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (NUMBER - 1) & 1 == 1)
}
