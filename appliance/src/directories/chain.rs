//! Chains of clusters in a table of FAT or exFAT.

use super::device::Device;

/// Most clusters of a directory: 256 MiB, the most that exFAT allows, in clusters of 512 bytes.
const MOST: usize = 1 << 19;

/// Bytes of a table that are read at a time.
const WINDOW: u64 = 64 << 10;

/// What follows a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    To(u64),
    End,
}

/// The clusters of a chain; `None` if it leads to no cluster, or goes round.
pub(super) fn chain(first: u64, mut next: impl FnMut(u64) -> Option<Step>) -> Option<Vec<u64>> {
    let mut clusters = vec![first];
    let mut last = first;
    while clusters.len() <= MOST {
        match next(last)? {
            Step::End => return Some(clusters),
            Step::To(cluster) => {
                clusters.push(cluster);
                last = cluster;
            }
        }
    }
    None
}

/// A table of clusters on the device, of which a part is in memory.
pub(super) struct Table {
    start: u64,
    end: u64,
    /// Offset of the part in the table.
    at: u64,
    part: Vec<u8>,
}

impl Table {
    /// The table between these offsets on the device.
    pub(super) fn new(start: u64, end: u64) -> Self {
        Self { start, end, at: 0, part: Vec::new() }
    }

    /// `length` bytes at an offset in the table.
    pub(super) fn bytes(&mut self, device: &Device, at: u64, length: u64) -> Option<&[u8]> {
        let end = at.checked_add(length).filter(|end| *end <= self.end - self.start)?;
        if at < self.at || end > self.at + self.part.len() as u64 {
            self.at = at / 512 * 512;
            let rest = self.end - self.start - self.at;
            self.part = device.read(self.start + self.at, rest.min(WINDOW))?;
        }
        self.part.get(usize::try_from(at - self.at).ok()?..usize::try_from(end - self.at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_ends_or_is_none() {
        let table = [None, None, Some(Step::To(4)), Some(Step::End), Some(Step::To(3)), Some(Step::To(5))];
        let of = |first: u64| chain(first, |cluster| *table.get(cluster as usize)?);
        assert_eq!(of(2), Some(vec![2, 4, 3]));
        assert_eq!(of(3), Some(vec![3]));
        // Nothing there, past the end, and round.
        assert_eq!((of(0), of(9), of(5)), (None, None, None));
    }
}
