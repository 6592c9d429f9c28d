//! Whether a device holds nothing.

use super::context::Context;
use super::layout::Layout;
use virt_bmap_image::Source;
use virt_bmap_ranges::{DiskOffset, DiskRange, Range};

/// Bytes that are read at a time.
const PIECE: u64 = 4 << 20;

/// Bytes of one question for holes to the image.
const ASKED: u64 = 1 << 30;

/// Whether all of a device reads as zeroes, but for the first and the last `except` bytes. What the
/// image knows to be a hole is not read.
pub(super) fn is_blank(context: &Context<'_>, layout: Option<&Layout>, except: u64) -> bool {
    // What a missing member holds is not known.
    let is_known = |layout: &&Layout| layout.segments().next().is_some() && !layout.is_partial();
    let Some(layout) = layout.filter(is_known) else { return false };
    let go_on = || {
        context.channel.note_busy();
        !context.appliance.is_ending()
    };
    let inside = Range::new(except, layout.size().saturating_sub(except).max(except));
    let parts = layout.part(inside).unwrap_or_default();
    parts.iter().filter(|segment| segment.copy == 0).all(|segment| {
        let disk = context.disks.get(usize::from(segment.disk) - 1);
        disk.is_some_and(|disk| is_zero(&**disk, segment.disk_range(), &go_on))
    })
}

/// Whether these bytes of a disk are zeroes. What cannot be read is not known to be zeroes, nor is
/// what remains when `go_on`, which is asked before each read, says no.
fn is_zero(disk: &dyn Source, range: DiskRange, go_on: &dyn Fn() -> bool) -> bool {
    pieces(range, ASKED).all(|asked| {
        let parts = disk.allocation(asked).unwrap_or_default();
        let is_covered = parts.iter().map(|part| part.range.len()).sum::<u64>() == asked.len();
        let data = parts.into_iter().filter(|part| !part.is_hole).map(|part| part.range);
        is_covered
            && data.flat_map(|data| pieces(data, PIECE)).all(|piece| {
                let mut bytes = vec![0; piece.len() as usize];
                let is_read = go_on() && disk.read_at(&mut bytes, piece.start).is_ok();
                is_read && bytes.iter().all(|byte| *byte == 0)
            })
    })
}

/// A range in pieces of at most `length` bytes.
fn pieces(range: DiskRange, length: u64) -> impl Iterator<Item = DiskRange> {
    let ends = move |start: u64| range.end.0.min(start.saturating_add(length));
    let starts = std::iter::successors(Some(range.start.0), move |start| start.checked_add(length));
    let starts = starts.take_while(move |start| DiskOffset(*start) < range.end);
    starts.map(move |start| DiskRange::new(start, ends(start)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io;
    use virt_bmap_image::Allocation;

    /// A disk of `size` bytes with one byte that is not zero. It reports the range `hole` as a
    /// hole.
    struct Disk {
        size: u64,
        written: Option<u64>,
        hole: Option<DiskRange>,
    }

    impl Source for Disk {
        fn size(&self) -> u64 {
            self.size
        }

        fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
            buf.fill(0);
            if let Some(at) = self.written.and_then(|at| at.checked_sub(offset.0))
                && let Some(byte) = buf.get_mut(at as usize)
            {
                *byte = 1;
            }
            Ok(())
        }

        fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
            let hole = self.hole.and_then(|hole| hole.intersection(range));
            let Some(hole) = hole else { return Ok(vec![Allocation { range, is_hole: false }]) };
            let parts = [
                (range.start, hole.start, false),
                (hole.start, hole.end, true),
                (hole.end, range.end, false),
            ];
            let parts =
                parts.map(|(start, end, is_hole)| Allocation { range: DiskRange { start, end }, is_hole });
            Ok(parts.into_iter().filter(|part| !part.range.is_empty()).collect())
        }
    }

    #[test]
    fn one_byte_anywhere_is_not_blank_and_holes_are_not_read() {
        let size = (9 << 20) + 512;
        let whole = DiskRange::new(0, size);
        let reads = Cell::new(0);
        let is_zero = |disk: Disk| {
            reads.set(0);
            super::is_zero(&disk, whole, &|| reads.replace(reads.get() + 1) < 1000)
        };
        let hole = Some(DiskRange::new(4096, size - 4096));
        assert!(is_zero(Disk { size, written: None, hole }) && reads.get() == 2, "{}", reads.get());
        for at in [0, 1 << 20, (5 << 20) + 5, size - 1] {
            assert!(!is_zero(Disk { size, written: Some(at), hole: None }), "{at}");
        }
        assert!(!is_zero(Disk { size, written: Some(size - 1), hole }));
    }

    #[test]
    fn pieces_cover_a_range() {
        let of = |start, end, length| pieces(DiskRange::new(start, end), length).collect::<Vec<_>>();
        assert_eq!(of(5, 25, 10), [DiskRange::new(5, 15), DiskRange::new(15, 25)]);
        assert_eq!(of(5, 6, 10), [DiskRange::new(5, 6)]);
        assert_eq!(of(u64::MAX - 5, u64::MAX, 10), [DiskRange::new(u64::MAX - 5, u64::MAX)]);
        assert_eq!(of(5, 5, 10), []);
    }
}
