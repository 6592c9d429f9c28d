//! `rbd export-diff` (Ceph's `doc/dev/rbd-diff.rst`, versions 1 and 2): the changed ranges of an
//! image, with their content.
//!
//! After the header come records: a letter, in version 2 the length of the rest, and the rest. `s`
//! is the size of the image, `w` a range with its bytes, `z` a range of zeroes, `e` the end.
//! Numbers are little-endian.

use std::io::{self, BufRead, Read};

use super::lines::LineProblem;
use super::{Entries, Kind, ListError, RangeListOptions};

const V1: &[u8; 12] = b"rbd diff v1\n";
const V2: &[u8; 12] = b"rbd diff v2\n";

/// Whether a file begins like one.
pub(super) fn is(head: &[u8]) -> bool {
    head.starts_with(V1) || head.starts_with(V2)
}

/// What is wrong with a record.
enum Problem {
    Io(io::Error),
    Of(LineProblem),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Of(LineProblem::CutOff),
            _ => Self::Io(error),
        }
    }
}

impl From<LineProblem> for Problem {
    fn from(problem: LineProblem) -> Self {
        Self::Of(problem)
    }
}

fn bytes<const N: usize>(input: &mut dyn Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn le64(input: &mut dyn Read) -> io::Result<u64> {
    bytes(input).map(u64::from_le_bytes)
}

/// Reads over bytes that do not matter.
fn skip(input: &mut dyn Read, length: u64) -> io::Result<()> {
    match io::copy(&mut input.take(length), &mut io::sink())? {
        skipped if skipped == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads a record. Returns whether more follow.
fn record(input: &mut dyn BufRead, is_v2: bool, entries: &mut Entries) -> Result<bool, Problem> {
    let [tag] = bytes(input)?;
    if tag == b'e' {
        return Ok(false);
    }
    let length = if is_v2 { le64(input)? } else { u64::MAX };
    let mut rest = input.take(length);
    match tag {
        b'f' | b't' => {
            let length = bytes(&mut rest).map(u32::from_le_bytes)?;
            skip(&mut rest, length.into())?;
        }
        b's' => entries.ends_at(le64(&mut rest)?),
        b'w' | b'z' => {
            let (offset, length) = (le64(&mut rest)?, le64(&mut rest)?);
            entries.push(offset, length, true)?;
            if tag == b'w' {
                skip(&mut rest, length)?;
            }
        }
        _ if is_v2 => {}
        _ => return Err(LineProblem::unexpected(&[tag], "the letter of a record").into()),
    }
    if is_v2 {
        let left = rest.limit();
        skip(&mut rest, left)?;
    }
    Ok(true)
}

pub(super) fn read(
    input: &mut dyn BufRead,
    _options: &RangeListOptions,
    entries: &mut Entries,
) -> Result<String, ListError> {
    let kind = Kind::RbdExport;
    let header = bytes::<12>(input)?;
    if !is(&header) {
        return Err(ListError::Broken { kind, problem: "its first line is another" });
    }
    for entry in 1.. {
        match record(input, header == *V2, entries) {
            Ok(true) => {}
            Ok(false) => break,
            Err(Problem::Io(error)) => return Err(error.into()),
            Err(Problem::Of(problem)) => return Err(ListError::Entry { entry, kind, problem }),
        }
    }
    Ok("data and zeroes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, ListError, RangeListOptions, read};
    use virt_bmap_ranges::DiskRange;

    /// Two diffs, as the specification has them, with the names of both snapshots, the size, data
    /// and zeroes; in version 2 also a record that no version knows.
    fn diff(version: u8) -> Vec<u8> {
        let mut out = format!("rbd diff v{version}\n").into_bytes();
        let mut record = |tag: u8, rest: &[u8]| {
            out.push(tag);
            if version == 2 && tag != b'e' {
                out.extend((rest.len() as u64).to_le_bytes());
            }
            out.extend(rest);
        };
        let range = |offset: u64, length: u64| [offset.to_le_bytes(), length.to_le_bytes()].concat();
        record(b'f', b"\x02\0\0\0s1");
        record(b't', b"\x02\0\0\0s2");
        record(b's', &(8_u64 << 20).to_le_bytes());
        if version == 2 {
            record(b'?', b"anything");
        }
        record(b'w', &[&range(4096, 512)[..], &[b'e'; 512]].concat());
        record(b'z', &range(1 << 20, 65536));
        record(b'e', b"");
        out
    }

    #[test]
    fn both_versions_are_read() {
        for version in [1, 2] {
            let list = read(&diff(version)[..], &RangeListOptions::default()).unwrap();
            assert_eq!((list.kind, list.entries, list.end), (Kind::RbdExport, 2, 8 << 20));
            assert_eq!(
                list.spans.iter().collect::<Vec<_>>(),
                [DiskRange::new(4096, 4608), DiskRange::new(1 << 20, (1 << 20) + 65536)]
            );
        }
    }

    #[test]
    fn a_diff_that_is_cut_off_is_refused() {
        for version in [1, 2] {
            let whole = diff(version);
            for length in 12..whole.len() {
                let error = read(&whole[..length], &RangeListOptions::default()).unwrap_err();
                assert!(matches!(error, ListError::Entry { .. }), "{version} {length}: {error}");
            }
        }
        let strange = [&b"rbd diff v1\n"[..], b"?"].concat();
        assert!(matches!(read(&strange[..], &RangeListOptions::default()), Err(ListError::Entry { .. })));
    }
}
