//! SIGHUP, and that nohup(1) has it ignored.

/// Whether SIGHUP was ignored when this process began, as proc(5) says, or is by now. Where that cannot be read, it is not.
///
/// What we start has to be kept from it by other means: qemu and qemu-nbd catch it whatever they find.
pub fn is_ignored() -> bool {
    const NUMBER: u32 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (NUMBER - 1) & 1 == 1)
}
