//! Whose a job, a node or a file is: each name that a run gives begins with its process.

use std::fmt;
use std::fs;

/// The beginning of all names.
const PREFIX: &str = "virt-bmap-";

/// A run of this program: its process, and when it started, since numbers of processes are used
/// again.
///
/// With three digits after it, a name has at most 31 characters, which is what qemu takes for a
/// node (`node_name` in qemu's `include/block/block_int-common.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    process: u32,
    /// In ticks since the machine started: field 22 of proc_pid_stat(5).
    started: u64,
}

impl Owner {
    /// This process.
    pub(super) fn ours() -> Self {
        let process = std::process::id();
        Self { process, started: started(process).unwrap_or_default() }
    }

    /// The owner of something with this name, if it is one of ours.
    pub(super) fn of(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.split(['-', '.']);
        let process = u32::from_str_radix(parts.next()?, 16).ok()?;
        let started = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { process, started })
    }

    /// Whether its process still runs.
    pub(super) fn is_alive(self) -> bool {
        started(self.process) == Some(self.started)
    }

    /// The number of its process.
    pub(super) fn process(self) -> u32 {
        self.process
    }

    /// The name of its `number`-th thing.
    pub(super) fn name(self, number: usize) -> String {
        format!("{self}-{number}")
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:x}-{:x}", self.process, self.started)
    }
}

/// When a process started. `None` if it does not exist.
fn started(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program, in parentheses, may have spaces and parentheses.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_its_owner() {
        let ours = Owner::ours();
        assert!(ours.is_alive());
        for name in [ours.to_string(), ours.name(249), format!("{ours}.sock"), format!("{ours}-1.scratch")] {
            assert_eq!(Owner::of(&name), Some(ours), "{name}");
        }
        let before = Owner { started: ours.started ^ 1, ..ours };
        assert!(!before.is_alive());
        for other in ["libvirt-1-format", "virt-bmap-", "virt-bmap-zz-1", "virt-bmap-1"] {
            assert_eq!(Owner::of(other), None, "{other}");
        }
    }

    #[test]
    fn names_are_short_enough_for_qemu() {
        // The largest process number is 2^22; 2^36 ticks are 21 years.
        let owner = Owner { process: 1 << 22, started: (1 << 36) - 1 };
        assert!(owner.name(249).len() <= 31, "{}", owner.name(249));
    }
}
