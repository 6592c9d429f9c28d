//! Attribution of the reads of a series.

use crate::probe::expected::Expectation;
use crate::probe::layout::Layout;
use crate::recorder::Recording;
use virt_bmap_ranges::{DiskNumber, DiskRange};

/// Attributes the reads of a series to its files, which were read one after the other. A file's
/// reads end before the first read that lies outside of its blocks, or that comes after it has been
/// read completely.
///
/// A read that fits neither the current file nor the next one may belong to either, so both get it,
/// and neither matches its expected blocks.
pub(super) fn assign(
    reads: &[(DiskNumber, DiskRange)],
    files: &[Expectation],
    layout: &Layout,
) -> Vec<Recording> {
    let mut recordings = vec![Recording::default(); files.len()];
    let fits = |file: usize, read: &(DiskNumber, DiskRange)| {
        let Some(Expectation::Blocks(blocks)) = files.get(file) else { return false };
        let device = layout.to_device(&Recording::from_iter([*read]));
        device.is_some_and(|device| device.iter().all(|range| blocks.contains(range)))
    };
    let is_whole = |file: usize, recording: &Recording| match files.get(file) {
        Some(Expectation::Blocks(blocks)) => recording.bytes() >= blocks.bytes(),
        _ => false,
    };
    let mut file = 0;
    for read in reads {
        let stays = recordings.get(file).is_some_and(|recording| !is_whole(file, recording));
        if stays && fits(file, read) {
            recordings[file].extend([*read]);
        } else if fits(file + 1, read) {
            file += 1;
            recordings[file].extend([*read]);
        } else {
            for recording in recordings.iter_mut().skip(file).take(2) {
                recording.extend([*read]);
            }
        }
    }
    recordings
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_ranges::Range;

    fn blocks(ranges: &[(u64, u64)]) -> Expectation {
        Expectation::Blocks(ranges.iter().map(|&(start, end)| Range::new(start, end)).collect())
    }

    /// The reads that each file gets, on one disk.
    fn shares(reads: &[(u64, u64)], files: &[Expectation]) -> Vec<Vec<(u64, u64)>> {
        let reads: Vec<_> = reads.iter().map(|&(start, end)| (1, DiskRange::new(start, end))).collect();
        assign(&reads, files, &Layout::of_disk(1, 1 << 20))
            .iter()
            .map(|recording| recording.iter().map(|(_, range)| (range.start.0, range.end.0)).collect())
            .collect()
    }

    #[test]
    fn each_file_gets_what_was_read_in_its_turn() {
        let files = [blocks(&[(0, 1024), (4096, 5120)]), blocks(&[(1024, 2048)]), blocks(&[(8192, 8704)])];
        let reads = [(4096, 5120), (0, 512), (512, 1024), (1024, 2048), (8192, 8704)];
        assert_eq!(
            shares(&reads, &files),
            [vec![(0, 1024), (4096, 5120)], vec![(1024, 2048)], vec![(8192, 8704)]]
        );
    }

    #[test]
    fn files_that_share_blocks_are_each_given_theirs() {
        let files = [blocks(&[(0, 1024)]), blocks(&[(0, 1024)]), blocks(&[(512, 1024)])];
        let reads = [(0, 512), (512, 1024), (0, 1024), (512, 1024)];
        assert_eq!(shares(&reads, &files), [vec![(0, 1024)], vec![(0, 1024)], vec![(512, 1024)]]);
    }

    #[test]
    fn a_read_that_nobody_should_have_made_spoils_both_that_may_have_made_it() {
        let files = [blocks(&[(0, 512)]), blocks(&[(1024, 1536)]), blocks(&[(2048, 2560)])];
        let reads = [(0, 512), (4096, 4608), (1024, 1536), (2048, 2560)];
        assert_eq!(
            shares(&reads, &files),
            [vec![(0, 512), (4096, 4608)], vec![(1024, 1536), (4096, 4608)], vec![(2048, 2560)]]
        );
    }

    #[test]
    fn a_file_that_was_not_read_spoils_those_after_it_and_no_read_is_lost() {
        let files = [blocks(&[(0, 512)]), blocks(&[(1024, 1536)]), blocks(&[(2048, 2560)])];
        assert_eq!(shares(&[(0, 512), (2048, 2560)], &files)[2], []);
        assert_eq!(shares(&[(9216, 9728)], &[]), Vec::<Vec<(u64, u64)>>::new());
        assert_eq!(shares(&[(0, 512)], &[Expectation::None]), [[(0, 512)]]);
    }
}
