//! Free clusters: `$Bitmap` has a bit for each cluster, which is set if the cluster is in use.

use crate::ReadAt;
use crate::file::Content;
use crate::record::Problem;
use crate::volume::Volume;

/// Number of the record of `$Bitmap`.
const BITMAP: u64 = 6;

/// Bytes of `$Bitmap` that are read at a time.
const PIECE: u64 = 1 << 20;

impl<R: ReadAt> Volume<R> {
    /// Calls `free` with the first cluster and the number of clusters of each free run, in ascending
    /// order. Runs are as long as possible.
    ///
    /// # Errors
    /// If `$Bitmap` cannot be read, or does not have all clusters. Some runs may have been given.
    pub fn free_clusters(&self, mut free: impl FnMut(u64, u64)) -> Result<(), Problem> {
        let file = self.file(BITMAP)?.ok_or(Problem::Record)?;
        let data = file.data().ok_or(Problem::Attribute)?;
        let clusters = self.geometry().clusters();
        let length = clusters.div_ceil(8);
        if data.initialized < length {
            return Err(Problem::Parts);
        }
        let mut start = None;
        let mut at = 0;
        while at < length {
            let mut piece = vec![0; PIECE.min(length - at) as usize];
            match &data.content {
                Content::Resident(value) => {
                    // It is smaller than a piece.
                    piece = value.get(..piece.len()).ok_or(Problem::Parts)?.to_vec();
                }
                Content::Runs(runs) => {
                    self.read_runs(runs, at, &mut piece).ok_or(Problem::Unreadable)?;
                }
            }
            for (index, byte) in (at..).zip(&piece) {
                let first = index * 8;
                match (byte, start) {
                    // Most bytes are like the one before.
                    (0, Some(_)) | (0xff, None) => continue,
                    _ => {}
                }
                for number in (first..clusters).take(8) {
                    let is_free = byte >> (number - first) & 1 == 0;
                    match start {
                        None if is_free => start = Some(number),
                        Some(from) if !is_free => {
                            free(from, number - from);
                            start = None;
                        }
                        _ => {}
                    }
                }
            }
            at += piece.len() as u64;
        }
        if let Some(from) = start {
            free(from, clusters - from);
        }
        Ok(())
    }
}
