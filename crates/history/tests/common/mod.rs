//! Disks in memory, for the tests of the history.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use virt_bmap_history::{Bases, Disk, History, HistoryOptions, Recording};
use virt_bmap_image::{Allocation, Change, Source, Writable};
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// States do not end by themselves.
pub(crate) const NEVER: Duration = Duration::from_secs(1 << 30);

/// A disk that is only read.
pub(crate) struct Memory(pub(crate) Vec<u8>);

impl Source for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let at = offset.0 as usize;
        let bytes = self.0.get(at..at + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// A disk that is written to.
#[derive(Default)]
pub(crate) struct Image {
    pub(crate) bytes: RwLock<Vec<u8>>,
    /// Done before the next read.
    pub(crate) interruption: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Image {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes), ..Self::default() }
    }

    fn fill(&self, range: DiskRange, bytes: impl FnOnce(&mut [u8])) {
        bytes(&mut self.bytes.write().unwrap()[range.start.0 as usize..range.end.0 as usize]);
    }
}

impl Source for Image {
    fn size(&self) -> u64 {
        self.bytes.read().unwrap().len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let interruption = self.interruption.lock().unwrap().take();
        interruption.into_iter().for_each(|interruption| interruption());
        let at = offset.0 as usize;
        buf.copy_from_slice(&self.bytes.read().unwrap()[at..at + buf.len()]);
        Ok(())
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        let bytes = self.bytes.read().unwrap();
        let bytes = &bytes[range.start.0 as usize..range.end.0 as usize];
        Ok(vec![Allocation { range, is_hole: bytes.iter().all(|byte| *byte == 0) }])
    }
}

impl Writable for Image {
    fn write_at(&self, buf: &[u8], offset: DiskOffset) -> io::Result<()> {
        self.fill(DiskRange::saturating(offset.0, buf.len() as u64), |bytes| bytes.copy_from_slice(buf));
        Ok(())
    }

    fn try_write_zeroes(&self, range: DiskRange, allocate: bool) -> io::Result<bool> {
        if !allocate {
            self.fill(range, |bytes| bytes.fill(0));
        }
        Ok(!allocate)
    }

    fn trim(&self, range: DiskRange) -> io::Result<()> {
        self.fill(range, |bytes| bytes.fill(0));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What disk `disk` holds first.
pub(crate) fn pattern(disk: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 512 + disk * 7) as u8 | 1).collect()
}

/// All bytes of a disk.
pub(crate) fn content(disk: &dyn Source) -> Vec<u8> {
    try_content(disk).unwrap()
}

pub(crate) fn try_content(disk: &dyn Source) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; disk.size() as usize];
    disk.read_at(&mut bytes, DiskOffset(0))?;
    Ok(bytes)
}

/// Records a history with this many states on disks of these sizes. Returns the contents of all
/// disks in each.
pub(crate) fn record(path: &Path, sizes: &[usize], states: usize) -> Vec<Vec<u8>> {
    let base = |(disk, size): (usize, &usize)| -> Arc<dyn Source> { Arc::new(Memory(pattern(disk, *size))) };
    let identities = (0..sizes.len()).map(|disk| vec![disk as u8; 3]).collect();
    let options = HistoryOptions {
        quiet: NEVER,
        record: Some(Recording { path: path.to_owned(), identities }),
        ..HistoryOptions::default()
    };
    let bases = Bases::Private(sizes.iter().enumerate().map(base).collect());
    let history = History::start(bases, options).unwrap();
    let disks = history.disks();
    let mut contents = Vec::new();
    for number in 0..states {
        for step in 0..5 {
            let disk: &Disk = &disks[(number + step) % disks.len()];
            let at = (number * 7919 + step * 4093) % (disk.size() as usize - 3000);
            let range = DiskRange::saturating(at as u64, 1000 + 7 * step as u64);
            let change = match step {
                0 => Change::Zero { range, allocate: false },
                1 => Change::Trim(range),
                _ => Change::Write(&[number as u8; 2000][..500 * step], range.start),
            };
            disk.change(change, number % 2 == 0 && step == 4).unwrap();
        }
        match number % 4 {
            1 => disks[0].flush().unwrap(),
            3 => history.end_state(),
            _ => {}
        }
        contents.push(disks.iter().flat_map(|disk| content(&**disk)).collect());
    }
    contents
}
