//! Run lists: the clusters of an attribute, as pairs of a length and a signed difference from the
//! place of the run before ("mapping pairs" in ntfs-3g).

use crate::record::Problem;

/// A run: clusters of an attribute that lie one after the other, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of its first cluster in the attribute.
    pub vcn: u64,
    /// Number of its first cluster on the volume; `None`: a hole.
    pub lcn: Option<u64>,
    /// Number of clusters; never 0.
    pub length: u64,
}

impl Run {
    /// Number of the cluster after it in the attribute.
    pub fn end(&self) -> u64 {
        self.vcn + self.length
    }
}

/// Decodes the mapping pairs of an attribute whose first cluster has the number `vcn`. All runs lie
/// within the `clusters` of the volume. What follows a bad pair depends on it, so that the list
/// ends there.
pub fn runs(pairs: &[u8], vcn: u64, clusters: u64) -> (Vec<Run>, Option<Problem>) {
    let mut runs = Vec::new();
    let mut state = State { rest: pairs, vcn, lcn: 0, clusters };
    loop {
        match state.next() {
            Ok(Some(run)) => runs.push(run),
            Ok(None) => return (runs, None),
            Err(problem) => return (runs, Some(problem)),
        }
    }
}

struct State<'a> {
    rest: &'a [u8],
    vcn: u64,
    lcn: i64,
    clusters: u64,
}

impl State<'_> {
    fn next(&mut self) -> Result<Option<Run>, Problem> {
        // The list ends with a zero byte, or with its attribute.
        let Some((&header, rest)) = self.rest.split_first().filter(|(header, _)| **header != 0) else {
            return Ok(None);
        };
        let (of_length, of_place) = (usize::from(header & 15), usize::from(header >> 4));
        let length = signed(rest, 0, of_length).filter(|length| *length > 0).ok_or(Problem::RunList)?;
        let length = length.unsigned_abs();
        let place = if of_place == 0 {
            None
        } else {
            let difference = signed(rest, of_length, of_place).ok_or(Problem::RunList)?;
            self.lcn = self.lcn.checked_add(difference).ok_or(Problem::RunOutside)?;
            Some(self.lcn)
        };
        let end = self.vcn.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or(Problem::RunList)?;
        let lcn = match place {
            // Before version 3 of NTFS, a hole is a run at -1.
            None | Some(-1) => None,
            Some(place) => {
                let place = u64::try_from(place).map_err(|_| Problem::RunOutside)?;
                let is_inside = place.checked_add(length).is_some_and(|end| end <= self.clusters);
                Some(place).filter(|_| is_inside).ok_or(Problem::RunOutside).map(Some)?
            }
        };
        let run = Run { vcn: self.vcn, lcn, length };
        self.vcn = end;
        self.rest = rest.get(of_length + of_place..).unwrap_or_default();
        Ok(Some(run))
    }
}

/// A signed little-endian number of up to eight bytes; `None` if it is longer, empty or cut off.
fn signed(bytes: &[u8], at: usize, length: usize) -> Option<i64> {
    let bytes = bytes.get(at..)?.get(..length)?;
    let sign = bytes.last()?.cast_signed() >> 7;
    let mut whole = [sign.cast_unsigned(); 8];
    whole.get_mut(..length)?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Encodes runs as NTFS does, with the fewest bytes.
    fn encode(runs: &[Run]) -> Vec<u8> {
        let fewest = |number: i64| {
            let bytes = number.to_le_bytes();
            let length =
                (1..8).find(|length| signed(&bytes[..*length], 0, *length) == Some(number)).unwrap_or(8);
            bytes[..length].to_vec()
        };
        let (mut pairs, mut before) = (Vec::new(), 0);
        for run in runs {
            let length = fewest(run.length as i64);
            let place = run.lcn.map(|lcn| fewest(lcn as i64 - before)).unwrap_or_default();
            before = run.lcn.map_or(before, |lcn| lcn as i64);
            pairs.push((place.len() << 4 | length.len()) as u8);
            pairs.extend(length);
            pairs.extend(place);
        }
        pairs.push(0);
        pairs
    }

    proptest! {
        #[test]
        fn encoded_runs_are_decoded(
            start in 0u64..1 << 40,
            parts in prop::collection::vec((1u64..1 << 34, prop::option::of(0u64..1 << 44)), 0..40),
        ) {
            let mut vcn = start;
            let list: Vec<Run> = parts
                .into_iter()
                .map(|(length, lcn)| {
                    let run = Run { vcn, lcn, length };
                    vcn += length;
                    run
                })
                .collect();
            prop_assert_eq!(runs(&encode(&list), start, 1 << 45), (list.clone(), None));
            // Each prefix gives the runs before the cut, and nothing else.
            let pairs = encode(&list);
            for cut in 0..pairs.len() {
                let (some, _) = runs(&pairs[..cut], start, 1 << 45);
                prop_assert_eq!(&some[..], &list[..some.len()]);
            }
        }

        #[test]
        fn any_bytes_give_runs_inside_of_the_volume(
            pairs in prop::collection::vec(any::<u8>(), 0..200),
            vcn in any::<u64>(),
            clusters in 0u64..1 << 48,
        ) {
            let (list, _) = runs(&pairs, vcn, clusters);
            let mut next = vcn;
            for run in list {
                prop_assert!(run.vcn == next && run.length > 0);
                prop_assert!(run.lcn.is_none_or(|lcn| lcn + run.length <= clusters));
                next = run.end();
            }
        }
    }

    #[test]
    fn differences_are_signed_and_holes_have_no_place() {
        let list = |pairs: &[u8]| runs(pairs, 0, 1000);
        let run = |vcn, lcn, length| Run { vcn, lcn, length };
        assert_eq!(
            list(&[0x11, 4, 100, 0x01, 6, 0x11, 2, 0xf6, 0]),
            (vec![run(0, Some(100), 4), run(4, None, 6), run(10, Some(90), 2)], None)
        );
        // `$Boot` begins with cluster 0.
        assert_eq!(list(&[0x11, 2, 0, 0]), (vec![run(0, Some(0), 2)], None));
        assert_eq!(list(&[0x11, 2, 0xff, 0]), (vec![run(0, None, 2)], None));
        assert_eq!(list(&[]), (vec![], None));
        for (pairs, problem) in [
            (&[0x11, 2, 0xfe][..], Problem::RunOutside),
            (&[0x21, 2, 0xe7, 3], Problem::RunOutside),
            (&[0x11, 0, 1], Problem::RunList),
            (&[0x11, 0x80, 1], Problem::RunList),
            (&[0x10, 1], Problem::RunList),
            (&[0x21, 1, 1], Problem::RunList),
            (&[0x09, 1, 1, 1, 1, 1, 1, 1, 1, 1], Problem::RunList),
            (&[0x08, 255, 255, 255, 255, 255, 255, 255, 127, 0x01, 1], Problem::RunList),
        ] {
            assert_eq!(list(pairs).1, Some(problem), "{pairs:?}");
        }
    }
}
