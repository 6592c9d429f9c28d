//! The summary of a whole trace: amounts, distinct bytes, order of first reads, and files.

use super::event::{Op, TraceEvent};
use super::reads::DiskReads;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use virt_bmap_map::hardlinks::{File, disk_ranges, files};
use virt_bmap_map::{Hit, Kind, Map, ObjectId};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// Number and bytes of the requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many there were.
    pub requests: u64,
    /// Number of bytes; bytes that were requested twice count twice.
    pub bytes: u64,
}

/// The summary of a trace. Of failed requests, only the number is kept.
///
/// It takes up to 50 MiB for each disk and 50 bytes for each object of the map, however long the
/// trace is.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// By [`Op`].
    amounts: [Amount; Op::ALL.len()],
    failed: u64,
    sequential: u64,
    last: Duration,
    disks: BTreeMap<DiskNumber, DiskReads>,
    /// The objects that were read, with the times of their first reads.
    objects: Vec<(ObjectId, Duration)>,
    /// A bit for each object: whether it was read.
    known: Vec<u64>,
}

/// A file, directory or metadata object that was read.
#[derive(Clone, Debug)]
pub struct ReadObject<'a> {
    /// The object, by the first of its names, and the number of names.
    pub file: File<'a>,
    /// When it was read for the first time, since the beginning of the trace.
    pub first: Duration,
    /// Number of its bytes that were read, each counted once. Includes [gaps](Summary::gap).
    pub bytes: u64,
    /// Number of its bytes on the disks.
    pub on_disk: u64,
}

impl Summary {
    /// Adds a request with the objects that it touches.
    pub fn add(&mut self, event: &TraceEvent, hits: &[Hit<'_>]) {
        self.last = self.last.max(event.time + event.latency);
        if event.failed {
            self.failed += 1;
            return;
        }
        let amount = &mut self.amounts[event.op as usize];
        amount.requests += 1;
        amount.bytes += event.range.len();
        if event.op != Op::Read {
            return;
        }
        let disk = self.disks.entry(event.disk).or_default();
        let read = disk.read(event.range);
        self.sequential += u64::from(read.is_sequential);
        // The objects of bytes that were read before are known.
        if read.is_new || disk.gap() > 0 {
            for hit in hits.iter().take_while(|hit| has_content(hit.object.kind())) {
                let object = hit.object.id();
                if self.is_new(object) {
                    self.objects.push((object, event.time));
                }
            }
        }
    }

    /// Marks an object as read, and returns whether it is the first time.
    fn is_new(&mut self, object: ObjectId) -> bool {
        let (word, bit) = (object.index() / 64, 1 << (object.index() % 64));
        if self.known.len() <= word {
            self.known.resize(word + 1, 0);
        }
        let is_new = self.known[word] & bit == 0;
        self.known[word] |= bit;
        is_new
    }

    /// Requests of this kind that did not fail.
    pub fn amount(&self, op: Op) -> Amount {
        self.amounts[op as usize]
    }

    /// Number of requests that failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Number of reads that begin where one of the last reads ended.
    pub fn sequential(&self) -> u64 {
        self.sequential
    }

    /// From the beginning of the trace to the end of the last request.
    pub fn duration(&self) -> Duration {
        self.last
    }

    /// Number of bytes that were read, each counted once. Includes [gaps](Self::gap).
    pub fn distinct(&self) -> u64 {
        self.disks.values().map(DiskReads::distinct).sum()
    }

    /// Largest gap between two ranges that counts as read because there were too many ranges; 0 if
    /// there were not.
    pub fn gap(&self) -> u64 {
        self.disks.values().map(DiskReads::gap).max().unwrap_or(0)
    }

    /// The ranges of each disk that were read, ascending. Includes [gaps](Self::gap).
    pub fn ranges(&self) -> impl Iterator<Item = (DiskNumber, Vec<DiskRange>)> + '_ {
        self.disks.iter().map(|(&number, disk)| (number, disk.ranges().collect()))
    }

    /// The ranges of each disk in the order of their first reads, joined where at most `gap` bytes
    /// lie between them.
    pub fn prefetch(&self, gap: u64) -> impl Iterator<Item = (DiskNumber, Vec<DiskRange>)> + '_ {
        self.disks.iter().map(move |(&number, disk)| (number, disk.first(gap)))
    }

    /// Files, directories and metadata that were read, in the order of their first reads. `map` is
    /// the map of the trace.
    pub fn objects<'a>(&self, map: &'a Map) -> Vec<ReadObject<'a>> {
        let seen: BTreeMap<DiskNumber, IndexedRanges> =
            self.ranges().map(|(disk, ranges)| (disk, IndexedRanges::from_unsorted(ranges))).collect();
        let mut all: Vec<_> = self.objects.clone();
        // A file is represented by the first of its names in the map.
        all.sort_unstable_by_key(|(object, _)| *object);
        let times: HashMap<ObjectId, Duration> = all.iter().copied().collect();
        let mut read: Vec<_> = files(all.iter().map(|(object, _)| map.object(*object)))
            .into_iter()
            .map(|file| {
                let bytes = |(disk, range)| seen.get(&disk).map_or(0, |ranges| ranges.bytes_in(range));
                ReadObject {
                    first: times[&file.object.id()],
                    bytes: disk_ranges(file.object).map(bytes).sum(),
                    on_disk: virt_bmap_map::hardlinks::bytes_on_disk(file.object),
                    file,
                }
            })
            .collect();
        let order: HashMap<ObjectId, usize> =
            (0..).zip(&self.objects).map(|(place, (object, _))| (*object, place)).collect();
        read.sort_by_key(|object| order[&object.file.object.id()]);
        read
    }
}

/// Whether objects of this kind have bytes of their own, and do not only hold those of others.
fn has_content(kind: Kind) -> bool {
    kind.specificity() <= Kind::Metadata.specificity()
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_map::text;
    use virt_bmap_ranges::DiskRange;

    const MAP: &str = "1 0 1000 f /dev/sda1 /a\n1 0 1000 f /dev/sda1 /link\n1 1000 2000 d /dev/sda1 /\n\
                       1 2000 6000 f /dev/sda1 /b\n1 6000 8000 p /dev/sda1\n";

    fn event(op: Op, start: u64, end: u64) -> TraceEvent {
        TraceEvent {
            time: Duration::from_millis(start),
            latency: Duration::from_millis(1),
            connection: 1,
            disk: 1,
            op,
            fua: false,
            failed: false,
            range: DiskRange::new(start, end),
        }
    }

    fn summary(map: &Map, events: &[TraceEvent]) -> Summary {
        let mut summary = Summary::default();
        for event in events {
            summary.add(event, &map.over(event.disk, event.range).most_specific_first());
        }
        summary
    }

    #[test]
    fn files_come_in_the_order_of_their_first_reads() {
        let map = text::read(MAP.as_bytes()).unwrap();
        let events = [
            event(Op::Read, 0x5000, 0x5800),
            event(Op::Read, 0x400, 0x800),
            event(Op::Read, 0x5400, 0x5c00),
            event(Op::Write, 0x1000, 0x2000),
            event(Op::Read, 0x7000, 0x7200),
            TraceEvent { failed: true, ..event(Op::Read, 0x1000, 0x2000) },
        ];
        let summary = summary(&map, &events);
        let read: Vec<_> = summary
            .objects(&map)
            .iter()
            .map(|read| (read.file.object.name().to_string(), read.file.names, read.bytes, read.on_disk))
            .collect();
        assert_eq!(
            read,
            [("f /dev/sda1 /b".into(), 1, 0xc00, 0x4000), ("f /dev/sda1 /a".into(), 2, 0x400, 0x1000)]
        );
        assert_eq!(summary.amount(Op::Read), Amount { requests: 4, bytes: 0x1600 });
        assert_eq!((summary.distinct(), summary.failed()), (0x1200, 1));
    }

    #[test]
    fn streams_that_take_turns_are_sequential() {
        let map = text::read(MAP.as_bytes()).unwrap();
        let reads =
            (0..8).flat_map(|n| [n * 0x200, 0x4000 + n * 0x200]).map(|at| event(Op::Read, at, at + 0x200));
        assert_eq!(summary(&map, &reads.collect::<Vec<_>>()).sequential(), 14);
    }

    #[test]
    fn a_prefetcher_reads_in_the_same_order_over_small_gaps() {
        let map = text::read(MAP.as_bytes()).unwrap();
        let events = [(0x5000, 0x5200), (0x400, 0x600), (0x5400, 0x5600), (0x600, 0x800), (0x5000, 0x5600)];
        let summary = summary(&map, &events.map(|(start, end)| event(Op::Read, start, end)));
        let of = |gap| summary.prefetch(gap).next().unwrap().1;
        assert_eq!(of(0x200), [DiskRange::new(0x5000, 0x5600), DiskRange::new(0x400, 0x800)]);
        assert_eq!(of(0), of(0x200), "the last read has closed the gap");
    }
}
