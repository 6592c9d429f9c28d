//! Which clusters belong to some file, and which to more than one. No two attributes share clusters
//! on a sound volume.

use crate::runs::Run;
use std::collections::HashMap;

/// Clusters in one part of the bitmap.
const PART: u64 = 1 << 15;

/// Most parts: a bitmap of 128 MiB, for 4 TiB in clusters of 4 KiB that all belong to files.
const MOST_PARTS: usize = 1 << 15;

/// Clusters that belong to some file.
#[derive(Debug, Default)]
pub struct Claims {
    parts: HashMap<u64, Box<[u64]>>,
    twice: u64,
    uncounted: u64,
}

impl Claims {
    /// Adds the clusters of runs. Returns how many of them some file had claimed before.
    pub fn add(&mut self, runs: &[Run]) -> u64 {
        let before = self.twice;
        for (lcn, length) in runs.iter().filter_map(|run| Some((run.lcn?, run.length))) {
            let mut at = lcn;
            while at < lcn + length {
                let end = ((at / PART + 1) * PART).min(lcn + length);
                self.claim(at / PART, at % PART, end - at);
                at = end;
            }
        }
        self.twice - before
    }

    /// Clusters that more than one attribute has; each counts once for each attribute but the first.
    pub fn twice(&self) -> u64 {
        self.twice
    }

    /// Clusters that were not compared, because the volume has too many.
    pub fn uncounted(&self) -> u64 {
        self.uncounted
    }

    fn claim(&mut self, part: u64, first: u64, count: u64) {
        if self.parts.len() == MOST_PARTS && !self.parts.contains_key(&part) {
            self.uncounted += count;
            return;
        }
        let words = self.parts.entry(part).or_insert_with(|| vec![0; (PART / 64) as usize].into());
        let mut at = first;
        while at < first + count {
            let bits = (64 - at % 64).min(first + count - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            if let Some(word) = words.get_mut((at / 64) as usize) {
                self.twice += u64::from((*word & mask).count_ones());
                *word |= mask;
            }
            at += bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_second_claim_is_counted() {
        let run = |lcn, length| Run { vcn: 0, lcn, length };
        let mut claims = Claims::default();
        assert_eq!(claims.add(&[run(Some(10), 100), run(None, 1000), run(Some(PART - 1), 2)]), 0);
        assert_eq!(claims.add(&[run(Some(0), 10), run(Some(110), 5)]), 0);
        assert_eq!(claims.add(&[run(Some(60), 60)]), 55);
        assert_eq!((claims.twice(), claims.uncounted()), (55, 0));
    }

    proptest! {
        #[test]
        fn claims_are_counted_as_in_a_list(runs in prop::collection::vec((0u64..3 * PART, 1u64..PART), 0..20)) {
            let mut claims = Claims::default();
            let mut counts = vec![0u64; 5 * PART as usize];
            for (lcn, length) in runs {
                claims.add(&[Run { vcn: 0, lcn: Some(lcn), length }]);
                counts[lcn as usize..(lcn + length) as usize].iter_mut().for_each(|count| *count += 1);
            }
            let twice: u64 = counts.iter().map(|count| count.saturating_sub(1)).sum();
            prop_assert_eq!(claims.twice(), twice);
        }
    }
}
