//! The NBD export of a guest's disk.

use super::event::{Op, TraceEvent};
use super::queue::Queue;
use std::io;
use std::sync::Arc;
use virt_bmap_image::{Change, Source, Writable};
use virt_bmap_nbd::{Answered, CommandFlags, Export, Extent, Zeroing, write_zeroes_slowly};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange};

/// The storage of a disk.
pub enum Storage {
    /// It can only be read.
    ReadOnly(Arc<dyn Source>),
    /// It can also be written to.
    Writable(Arc<dyn Writable>),
}

impl Storage {
    fn source(&self) -> &dyn Source {
        match self {
            Self::ReadOnly(source) => &**source,
            Self::Writable(disk) => &**disk,
        }
    }

    fn writable(&self) -> io::Result<&dyn Writable> {
        match self {
            Self::ReadOnly(_) => Err(io::ErrorKind::PermissionDenied.into()),
            Self::Writable(disk) => Ok(&**disk),
        }
    }
}

/// A guest's disk as an NBD export: it carries out requests and pushes an event for each to the
/// queue.
pub struct TracedDisk {
    number: DiskNumber,
    storage: Storage,
    queue: Arc<Queue>,
}

impl TracedDisk {
    /// Disk number `number` of a guest.
    pub fn new(number: DiskNumber, storage: Storage, queue: Arc<Queue>) -> Self {
        Self { number, storage, queue }
    }

    fn change(&self, change: Change<'_>, fua: bool) -> io::Result<bool> {
        self.storage.writable()?.change(change, fua)
    }
}

impl Export for TracedDisk {
    fn size(&self) -> u64 {
        self.storage.source().size()
    }

    fn is_read_only(&self) -> bool {
        matches!(self.storage, Storage::ReadOnly(_))
    }

    fn can_multi_conn(&self) -> bool {
        true
    }

    fn answered(&self, answered: &Answered<'_>) {
        let request = answered.request;
        let Some(op) = Op::of(request.command) else { return };
        self.queue.push(TraceEvent {
            time: answered.received.saturating_duration_since(self.queue.began()),
            latency: answered.received.elapsed(),
            connection: answered.connection,
            disk: self.number,
            op,
            fua: request.flags.contains(CommandFlags::FUA),
            failed: answered.error.is_some(),
            range: DiskRange::saturating(request.offset, request.length.into()),
        });
    }

    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.storage.source().try_read_at(buf, DiskOffset(offset))
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.storage.source().read_at(buf, DiskOffset(offset))
    }

    fn write(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.change(Change::Write(data, DiskOffset(offset)), fua).map(|_| ())
    }

    fn write_zeroes(&self, length: u32, offset: u64, how: Zeroing) -> io::Result<()> {
        let range = DiskRange::saturating(offset, length.into());
        let is_done = self.change(Change::Zero { range, allocate: how.no_hole }, how.fua)?;
        if is_done { Ok(()) } else { write_zeroes_slowly(self, length, offset, how) }
    }

    fn trim(&self, length: u32, offset: u64, fua: bool) -> io::Result<()> {
        self.change(Change::Trim(DiskRange::saturating(offset, length.into())), fua).map(|_| ())
    }

    fn flush(&self) -> io::Result<()> {
        match &self.storage {
            Storage::ReadOnly(_) => Ok(()),
            Storage::Writable(disk) => disk.flush(),
        }
    }

    fn block_status(&self, length: u32, offset: u64, _one: bool) -> io::Result<Vec<Extent>> {
        let allocation = self.storage.source().allocation(DiskRange::saturating(offset, length.into()))?;
        Ok(allocation.into_iter().map(|part| Extent::new(part.range.len(), part.is_hole)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Overflow;
    use virt_bmap_history::{Bases, History, HistoryOptions};

    struct Zeroes;

    impl Source for Zeroes {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn read_at(&self, buf: &mut [u8], _offset: DiskOffset) -> io::Result<()> {
            buf.fill(0);
            Ok(())
        }
    }

    #[test]
    fn flushes_and_fua_end_states() {
        let history = History::start(Bases::Private(vec![Arc::new(Zeroes)]), HistoryOptions::default());
        let history = history.unwrap();
        let storage = Storage::Writable(history.disks().remove(0));
        let disk = TracedDisk::new(1, storage, Arc::new(Queue::new(Overflow::Drop)));
        let zeroing = |fua| Zeroing { fua, ..Zeroing::default() };
        disk.write(&[1; 4096], 0, true).unwrap();
        disk.write(&[2; 4096], 4096, false).unwrap();
        disk.write_zeroes(512, 0, zeroing(false)).unwrap();
        disk.write_zeroes(512, 8192, zeroing(true)).unwrap();
        disk.trim(512, 4096, true).unwrap();
        disk.write(&[3; 512], 0, false).unwrap();
        disk.flush().unwrap();
        disk.flush().unwrap();
        let states: Vec<_> = std::iter::from_fn(|| history.next()).collect();
        let written = |state: &virt_bmap_history::State| state.written[0].bytes();
        assert_eq!(states.iter().map(written).collect::<Vec<_>>(), [4096, 4096 + 1024, 512, 512]);
        assert!(states.iter().all(|state| state.is_flushed && state.together == 1));
    }
}
