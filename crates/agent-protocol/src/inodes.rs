//! Unchanged inodes. For a file with such a number the agent sends only its name.

use crate::bounds::INODE_RUNS;
use serde::{Deserialize, Serialize};

/// A set of inode numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeSet {
    /// First number of each run and the number after its last; ascending, and no two runs touch.
    pub(crate) runs: Vec<(u64, u64)>,
}

impl InodeSet {
    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether it has no room, so that it may lack numbers that it should have.
    pub fn is_full(&self) -> bool {
        self.runs.len() == INODE_RUNS
    }

    /// Whether the set has this number.
    pub fn contains(&self, inode: u64) -> bool {
        let after = self.runs.partition_point(|&(first, _)| first <= inode);
        after.checked_sub(1).is_some_and(|run| inode < self.runs[run].1)
    }
}

impl FromIterator<u64> for InodeSet {
    /// Takes the numbers in any order. Those that would make more than [`INODE_RUNS`] runs are
    /// omitted: the agent then looks at these files, which costs time and changes nothing else.
    fn from_iter<I: IntoIterator<Item = u64>>(inodes: I) -> Self {
        let mut inodes: Vec<u64> = inodes.into_iter().filter(|inode| *inode < u64::MAX).collect();
        inodes.sort_unstable();
        inodes.dedup();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for inode in inodes {
            let is_full = runs.len() == INODE_RUNS;
            match runs.last_mut() {
                Some((_, end)) if *end == inode => *end += 1,
                _ if is_full => break,
                _ => runs.push((inode, inode + 1)),
            }
        }
        Self { runs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_its_numbers_and_no_others() {
        let inodes = [12, 13, 14, 2, 40, 13, u64::MAX - 1, u64::MAX];
        let set = InodeSet::from_iter(inodes);
        assert_eq!(set.runs, [(2, 3), (12, 15), (40, 41), (u64::MAX - 1, u64::MAX)]);
        let found: Vec<u64> = (0..50).filter(|inode| set.contains(*inode)).collect();
        assert_eq!(found, [2, 12, 13, 14, 40]);
        assert!(set.contains(u64::MAX - 1) && !set.contains(u64::MAX));
        assert!(!InodeSet::default().contains(0) && InodeSet::default().is_empty());
    }
}
