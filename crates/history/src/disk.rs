//! A disk whose history is kept, as the guest sees it.

use super::format::{Kind, RecordHeader};
use super::history::{Bases, History};
use super::pieces::{Place, on_disk};
use super::state::{allocation, read_pieces};
use std::io;
use std::sync::Arc;
use virt_bmap_image::{Allocation, Change, Source, Writable};
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// A disk that a guest reads and writes.
pub struct Disk {
    history: Arc<History>,
    /// From 0.
    disk: usize,
}

impl Disk {
    pub(crate) fn new(history: Arc<History>, disk: usize) -> Self {
        Self { history, disk }
    }

    /// The number of the disk in records.
    fn number(&self) -> u16 {
        self.disk as u16 + 1
    }

    /// The range that a change changes, and the kind of its record.
    fn checked(&self, change: &Change<'_>) -> io::Result<(DiskRange, Kind)> {
        let (start, length, kind) = match change {
            Change::Write(data, offset) => (*offset, data.len() as u64, Kind::Write),
            Change::Zero { range, .. } => (range.start, range.len(), Kind::Zero),
            Change::Trim(range) => (range.start, range.len(), Kind::Trim),
        };
        let range = on_disk(start, length, self.size()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "write past the end of the guest disk")
        })?;
        Ok((range, kind))
    }

    /// Fills `buf` from what was written and by `read_base`, which is as in
    /// [`Source::try_read_at`].
    fn read(
        &self,
        buf: &mut [u8],
        offset: DiskOffset,
        read_base: impl Fn(&mut [u8], DiskOffset) -> io::Result<bool>,
    ) -> io::Result<bool> {
        // A read whose end does not fit in 64 bits is the base's to refuse.
        let Some(range) = DiskRange::at(offset, buf.len() as u64) else {
            return read_base(buf, offset);
        };
        let history = &*self.history;
        loop {
            let freed = history.freed();
            let Some(found) = history.find(self.disk, range) else { return read_base(buf, offset) };
            let outcome = read_pieces(buf, &found, &history.store, &read_base);
            // The places are read without a lock.
            if history.freed() == freed {
                return outcome;
            }
        }
    }

    /// A change of a disk whose changes go to the history alone.
    fn change_privately(
        &self,
        change: &Change<'_>,
        range: DiskRange,
        kind: Kind,
        is_fua: bool,
    ) -> io::Result<()> {
        let history = &*self.history;
        let mut turn = history.turn();
        let now = history.now();
        turn.settle(now);
        let header = RecordHeader::change(kind, self.number(), now, range, is_fua);
        history.make_room(&mut turn, self.disk, range, kind == Kind::Write)?;
        let place = match change {
            Change::Write(data, _) => turn.appender.write(&header, data)?,
            Change::Zero { .. } | Change::Trim(_) => {
                turn.appender.record(&header, &[]);
                Place::ZERO
            }
        };
        history.publish(&mut turn, self.disk, range, place, now);
        if is_fua {
            turn.queue.flush(now);
        }
        Ok(())
    }

    /// A change of `image`, which is kept as well. A flush makes it durable. That something cannot
    /// be kept does not trouble the guest.
    fn change_through(
        &self,
        image: &dyn Writable,
        change: &Change<'_>,
        range: DiskRange,
        kind: Kind,
    ) -> io::Result<bool> {
        let history = &*self.history;
        let mut turn = history.turn();
        turn.settle(history.now());
        // Until a state has ended, none needs anything but the image.
        let kept = if turn.has_states() {
            let originals = turn.originals.clone();
            let room = history.make_room_beside(&mut turn, self.disk, range, kind == Kind::Write);
            room.and_then(|()| originals.keep(self.disk, image, range, &mut turn.appender)).map(Some)
        } else {
            Ok(None)
        };
        match kept {
            Ok(bytes) => turn.add_kept(bytes.unwrap_or(0)),
            // Before the bytes are replaced: a state that has them must not be read afterwards.
            Err(_) => turn.originals.lose(),
        }
        let outcome = image.change(*change, false);
        let is_done = matches!(outcome, Ok(true));
        let now = history.now();
        let header = RecordHeader::change(kind, self.number(), now, range, false);
        let place = match (kept, change) {
            (Ok(_), _) if !is_done => return outcome,
            (Ok(None), Change::Write(data, _)) => {
                Ok(turn.appender.record(&header, data).map_or(Place::BASE, Place::in_log))
            }
            (Ok(Some(_)), Change::Write(data, _)) => turn.appender.write(&header, data),
            (Ok(_), Change::Zero { .. } | Change::Trim(_)) => {
                turn.appender.record(&header, &[]);
                Ok(Place::ZERO)
            }
            (Err(error), _) => {
                if is_done {
                    let data = if let Change::Write(data, _) = change { data } else { &[][..] };
                    turn.appender.record(&header, data);
                }
                Err(error)
            }
        };
        match place {
            Ok(place) => history.publish(&mut turn, self.disk, range, place, now),
            Err(error) => {
                tracing::warn!(%error, "what the guest has written over cannot be kept: states are lost");
                history.rebase(&mut turn, self.disk, range, now);
            }
        }
        outcome
    }
}

impl Source for Disk {
    fn size(&self) -> u64 {
        match &self.history.bases {
            Bases::Private(bases) => bases[self.disk].size(),
            Bases::Through(images) => images[self.disk].size(),
        }
    }

    /// What was written is most likely in the page cache, so it is read without asking.
    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        match &self.history.bases {
            Bases::Through(images) => images[self.disk].try_read_at(buf, offset),
            Bases::Private(bases) => {
                let base = &bases[self.disk];
                self.read(buf, offset, |part, at| base.try_read_at(part, at))
            }
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        match &self.history.bases {
            Bases::Through(images) => images[self.disk].read_at(buf, offset),
            Bases::Private(bases) => {
                let base = &bases[self.disk];
                self.read(buf, offset, |part, at| base.read_at(part, at).map(|()| true)).map(|_| ())
            }
        }
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        match &self.history.bases {
            Bases::Through(images) => images[self.disk].allocation(range),
            Bases::Private(bases) => match self.history.find(self.disk, range) {
                None => bases[self.disk].allocation(range),
                Some(found) => allocation(&found, |part| bases[self.disk].allocation(part)),
            },
        }
    }
}

impl Writable for Disk {
    fn write_at(&self, buf: &[u8], offset: DiskOffset) -> io::Result<()> {
        self.change(Change::Write(buf, offset), false).map(|_| ())
    }

    fn try_write_zeroes(&self, range: DiskRange, allocate: bool) -> io::Result<bool> {
        self.change(Change::Zero { range, allocate }, false)
    }

    fn trim(&self, range: DiskRange) -> io::Result<()> {
        self.change(Change::Trim(range), false).map(|_| ())
    }

    /// Ends the present state of all disks, if anything was written.
    fn flush(&self) -> io::Result<()> {
        if let Bases::Through(images) = &self.history.bases {
            images[self.disk].flush()?;
        }
        let mut turn = self.history.turn();
        let now = self.history.now();
        turn.appender.record(&RecordHeader::mark(Kind::Flush, self.number(), now), &[]);
        turn.queue.flush(now);
        Ok(())
    }

    fn change(&self, change: Change<'_>, fua: bool) -> io::Result<bool> {
        let (range, kind) = self.checked(&change)?;
        if range.is_empty() {
            return Ok(true);
        }
        match &self.history.bases {
            Bases::Private(_) => self.change_privately(&change, range, kind, fua).map(|()| true),
            Bases::Through(images) => {
                let is_done = self.change_through(&*images[self.disk], &change, range, kind)?;
                if fua && is_done {
                    self.flush()?;
                }
                Ok(is_done)
            }
        }
    }
}
