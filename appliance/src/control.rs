//! The agent's end of the control disk.

mod writer;

use self::writer::Writer;
use crate::Fatal;
use crate::buffer::AlignedBuffer;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread};
use std::sync::atomic::{AtomicU32, Ordering};
use virt_bmap_agent_protocol::codec::{area_length, decode_area};
use virt_bmap_agent_protocol::record::{Operation, ReadFailure};
use virt_bmap_agent_protocol::{REPLY_OFFSET, REPLY_SIZE, Record, Reply, TASK_OFFSET, Task, frame};

/// Number of the next frame. A task that fails leaves it here for whoever reports that.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Sends records, gathered into frames.
pub(crate) struct Control {
    disk: OwnedFd,
    sequence: u32,
    /// Encoded records that have not been sent.
    pending: Vec<u8>,
    writer: Writer,
    /// Why a frame could not be written that [`put`](Self::put) has begun.
    failure: Option<Fatal>,
    reply: AlignedBuffer,
    disks: Vec<OwnedFd>,
}

impl Control {
    /// Opens the control disk; `sequence` is the number of the first frame.
    pub(crate) fn open(path: &str, sequence: u32) -> Result<Self, Fatal> {
        NEXT.store(sequence, Ordering::Relaxed);
        let disk = open_disk(path)?;
        Ok(Self {
            writer: Writer::new(disk.try_clone()?),
            disk,
            sequence,
            pending: Vec::new(),
            failure: None,
            reply: AlignedBuffer::new(REPLY_SIZE),
            disks: crate::disable_readahead::inflight_counters()?,
        })
    }

    /// Goes on after the frames that another one has sent.
    pub(crate) fn continue_at(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    /// Adds a record to the next frame. A frame that is full is written while the agent goes on.
    pub(crate) fn put(&mut self, record: &Record) {
        record.encode(&mut self.pending);
        while self.pending.len() >= frame::ROOM && self.failure.is_none() {
            self.failure = self.begin_frame().err();
        }
    }

    /// Begins to write a full frame, once the frame before it has been written: the host must get
    /// them in order.
    fn begin_frame(&mut self) -> Result<(), Fatal> {
        self.end_frame()?;
        self.writer.begin(self.sequence, &self.pending[..frame::ROOM])?;
        self.pending.drain(..frame::ROOM);
        Ok(())
    }

    /// Waits until the host has processed the frame that is being written, if one is.
    fn end_frame(&mut self) -> Result<(), Fatal> {
        if self.writer.end()? {
            self.count_frame();
        }
        Ok(())
    }

    fn count_frame(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        NEXT.store(self.sequence, Ordering::Relaxed);
    }

    /// Sets the tag of the reads that follow, and returns when the host has processed it.
    ///
    /// Reads that were started before, such as the asynchronous readahead of a filesystem, must
    /// have ended before the tag changes.
    pub(crate) fn tag(&mut self, id: u32, reset: bool) -> Result<(), Fatal> {
        self.put(&Record::Tag { id, reset });
        self.flush()
    }

    /// Reports a failed system call; see [`ReadFailure`] for `parent` and `name`.
    pub(crate) fn read_failure(
        &mut self,
        operation: Operation,
        errno: Errno,
        parent: u32,
        name: &[u8],
        offset: u64,
    ) {
        let (errno, name) = (errno.raw_os_error(), name.to_vec());
        self.put(&Record::ReadFailure(ReadFailure { operation, errno, parent, name, offset }));
    }

    /// Waits until no disk has a request in flight.
    pub(crate) fn settle(&self) -> Result<(), Fatal> {
        for disk in &self.disks {
            let mut text = [0; 64];
            loop {
                let length = pread(disk, &mut text, 0)?;
                if text[..length].iter().all(|b| !(b'1'..=b'9').contains(b)) {
                    break;
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Sends all pending records, and returns when the host has processed them.
    pub(crate) fn flush(&mut self) -> Result<(), Fatal> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.end_frame()?;
        // What waits is less than a frame: see `put`.
        if !self.pending.is_empty() {
            self.writer.write(self.sequence, &self.pending)?;
            self.pending.clear();
            self.count_frame();
        }
        Ok(())
    }

    /// Sends all pending records and reads the host's reply to the last of them, which is a
    /// selection of files or the end of a batch.
    pub(crate) fn reply(&mut self) -> Result<Reply, Fatal> {
        self.flush()?;
        let length = pread(&self.disk, &mut self.reply[..], REPLY_OFFSET).map_err(cannot_read)?;
        Ok(decode_area(&self.reply[..length])?)
    }
}

impl Drop for Control {
    /// Whoever reports a failure must know the number of the next frame.
    fn drop(&mut self) {
        let _ = self.end_frame();
    }
}

/// Number of the frame after the last one that was sent.
pub(crate) fn next_sequence() -> u32 {
    NEXT.load(Ordering::Relaxed)
}

fn cannot_read(error: Errno) -> String {
    format!("cannot read the control disk: {error}")
}

fn open_disk(path: &str) -> Result<OwnedFd, Fatal> {
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty()).map_err(|error| format!("{path}: {error}"))?)
}

/// Reads the task.
pub(crate) fn task(path: &str) -> Result<Task, Fatal> {
    /// Bytes in one read. Most tasks are shorter.
    const FIRST: usize = 4096;
    const CHUNK: usize = 256 << 10;
    let disk = open_disk(path)?;
    let mut buffer = AlignedBuffer::new(CHUNK);
    let mut area = Vec::new();
    let mut length = FIRST;
    while area.len() < length {
        let want = if area.is_empty() { FIRST } else { CHUNK };
        let at = TASK_OFFSET + area.len() as u64;
        match pread(&disk, &mut buffer[..want], at) {
            Ok(0) => return Err("the control disk ends within the task".into()),
            Ok(got) => area.extend_from_slice(&buffer[..got]),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(cannot_read(error).into()),
        }
        length = area_length::<Task>(&area)?;
    }
    Ok(decode_area(&area)?)
}
