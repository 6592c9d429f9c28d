//! All files of a volume, in the order of their records.

use crate::record::{Problem, Record};
use crate::volume::Volume;
use crate::{File, ReadAt};
use std::collections::VecDeque;

/// Bytes of `$MFT` that are read at a time.
const PIECE: u64 = 1 << 20;

/// The files of a volume, each with the number of its record: those that are in use, and the
/// problems of records that cannot be read at all.
#[derive(Debug)]
pub struct Files<'a, R> {
    volume: &'a Volume<R>,
    next: u64,
    /// Records that have been read, from number `next` on.
    piece: VecDeque<Option<Vec<u8>>>,
}

impl<R: ReadAt> Volume<R> {
    /// All files, in the order of their records.
    pub fn files(&self) -> Files<'_, R> {
        Files { volume: self, next: 0, piece: VecDeque::new() }
    }
}

impl<R: ReadAt> Iterator for Files<'_, R> {
    type Item = (u64, Result<File, Problem>);

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.volume.records() {
            if self.piece.is_empty() {
                self.fill();
            }
            let number = self.next;
            self.next += 1;
            let record = match self.piece.pop_front()? {
                Some(bytes) => Record::of(bytes),
                None => Err(Problem::Unreadable),
            };
            match record {
                Ok(Some(base)) if base.base.is_none() => {
                    return Some((number, Ok(self.volume.assemble(number, &base))));
                }
                Ok(_) => {}
                Err(problem) => return Some((number, Err(problem))),
            }
        }
        None
    }
}

impl<R: ReadAt> Files<'_, R> {
    fn fill(&mut self) {
        let size = self.volume.geometry().record;
        let count = (PIECE / size).min(self.volume.records() - self.next);
        match self.volume.read_records(self.next, count) {
            Some(bytes) => {
                let records = bytes.chunks_exact(usize::try_from(size).unwrap_or(usize::MAX));
                self.piece.extend(records.map(|record| Some(record.to_vec())));
            }
            // One of them cannot be read; the others may.
            None => self.piece.extend((0..count).map(|index| self.volume.read_records(self.next + index, 1))),
        }
    }
}
