//! The agent's end of the control disk.

use crate::Fatal;
use crate::buffer::AlignedBuffer;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread, pwrite};
use virt_bmap_agent::record::{Operation, Record, Trouble};
use virt_bmap_agent::{VERDICT_OFFSET, VERDICT_SIZE, Verdict, frame};

/// Sends records, gathered into frames.
pub(crate) struct Control {
    disk: OwnedFd,
    sequence: u32,
    /// Bytes of records that have not been sent.
    pending: Vec<u8>,
    /// The frame being sent, in memory that `O_DIRECT` accepts.
    out: AlignedBuffer,
    verdict: AlignedBuffer,
    disks: Vec<OwnedFd>,
}

impl Control {
    /// Opens the control disk; `sequence` is the number of the first frame.
    pub(crate) fn open(path: &str, sequence: u32) -> Result<Self, Fatal> {
        let disk = open(path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("{path}: {error}"))?;
        Ok(Self {
            disk,
            sequence,
            pending: Vec::new(),
            out: AlignedBuffer::new(frame::MAX),
            verdict: AlignedBuffer::new(VERDICT_SIZE),
            disks: crate::quiet::inflight_counters()?,
        })
    }

    /// Puts a record into the next frame.
    pub(crate) fn put(&mut self, record: &Record) {
        record.encode(&mut self.pending);
    }

    /// Says whose the reads are from now on, and returns when the host knows.
    ///
    /// Before a tag is set, all reads that others started (a file system's readahead is asynchronous)
    /// must have come to their end.
    pub(crate) fn tag(&mut self, id: u32, afresh: bool) -> Result<(), Fatal> {
        self.put(&Record::Tag { id, afresh });
        self.flush()
    }

    /// Says that something could not be examined; see [`Trouble`] for `parent` and `name`.
    pub(crate) fn trouble(
        &mut self,
        operation: Operation,
        errno: Errno,
        parent: u32,
        name: &[u8],
        offset: u64,
    ) {
        let (errno, name) = (errno.raw_os_error(), name.to_vec());
        self.put(&Record::Trouble(Trouble { operation, errno, parent, name, offset }));
    }

    /// Waits until no disk has a request under way.
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

    /// Sends all that is pending.
    pub(crate) fn flush(&mut self) -> Result<(), Fatal> {
        const ROOM: usize = frame::MAX - frame::HEADER;
        let pending = std::mem::take(&mut self.pending);
        for payload in pending.chunks(ROOM) {
            let mut bytes = vec![0; frame::HEADER];
            bytes.extend(payload);
            frame::seal(&mut bytes, self.sequence);
            self.out[..bytes.len()].copy_from_slice(&bytes);
            let written = pwrite(&self.disk, &self.out[..bytes.len()], 0)
                .map_err(|error| format!("cannot write to the control disk: {error}"))?;
            if written != bytes.len() {
                return Err("short write to the control disk".into());
            }
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    /// Sends all that is pending, and asks what the host says to the last of it: a choice, or a batch's end.
    pub(crate) fn verdict(&mut self) -> Result<Verdict, Fatal> {
        self.flush()?;
        let length = pread(&self.disk, &mut self.verdict[..], VERDICT_OFFSET)
            .map_err(|error| format!("cannot read the control disk: {error}"))?;
        Ok(Verdict::decode(&self.verdict[..length]))
    }
}
