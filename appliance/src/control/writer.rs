//! Writes frames to the control disk, some of them in a thread of its own.
//!
//! A write ends when the host has processed the frame. If the agent need not wait for that, it can
//! look up the next files meanwhile: on a host with a second processor, both work at the same time.

use crate::Fatal;
use crate::buffer::AlignedBuffer;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, pwrite};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, sync_channel};
use std::thread;
use virt_bmap_agent_protocol::frame;

/// A frame, in memory that `O_DIRECT` accepts.
struct Frame {
    buffer: AlignedBuffer,
    length: usize,
}

/// What has become of a frame: its memory, and how many bytes were written.
type Written = (AlignedBuffer, Result<usize, Errno>);

/// Writes one frame at a time.
pub(super) struct Writer {
    disk: OwnedFd,
    /// From the first frame on that nobody waited for.
    thread: Option<(SyncSender<Frame>, Receiver<Written>)>,
    /// Memory for the next frame, unless it is being written.
    buffer: Option<AlignedBuffer>,
    /// The length of the frame that is being written.
    under_way: Option<usize>,
}

impl Writer {
    pub(super) fn new(disk: OwnedFd) -> Self {
        let buffer = Some(AlignedBuffer::new(frame::MAX));
        Self { disk, thread: None, buffer, under_way: None }
    }

    /// Writes a frame. No other may be under way.
    pub(super) fn write(&mut self, sequence: u32, payload: &[u8]) -> Result<(), Fatal> {
        let buffer = self.buffer.as_mut().ok_or(BUSY)?;
        let length = frame::fill(buffer, sequence, payload);
        check(pwrite(&self.disk, &buffer[..length], 0), length)
    }

    /// Begins to write a frame. No other may be under way.
    pub(super) fn begin(&mut self, sequence: u32, payload: &[u8]) -> Result<(), Fatal> {
        let mut buffer = self.buffer.take().ok_or(BUSY)?;
        let length = frame::fill(&mut buffer, sequence, payload);
        let (frames, _) = match &self.thread {
            Some(thread) => thread,
            None => self.thread.insert(start(self.disk.try_clone()?)?),
        };
        frames.send(Frame { buffer, length }).map_err(|_| ENDED)?;
        self.under_way = Some(length);
        Ok(())
    }

    /// Waits for the end of a write. Returns whether one was under way.
    pub(super) fn end(&mut self) -> Result<bool, Fatal> {
        let Some(length) = self.under_way.take() else { return Ok(false) };
        let (_, written) = self.thread.as_ref().ok_or(ENDED)?;
        let (buffer, result) = written.recv().map_err(|RecvError| ENDED)?;
        self.buffer = Some(buffer);
        check(result, length).map(|()| true)
    }
}

/// The outcome of writing a frame of this length.
fn check(result: Result<usize, Errno>, length: usize) -> Result<(), Fatal> {
    match result {
        Ok(written) if written == length => Ok(()),
        Ok(_) => Err("short write to the control disk".into()),
        Err(error) => Err(format!("cannot write to the control disk: {error}").into()),
    }
}

const BUSY: &str = "a frame is being written";
const ENDED: &str = "the thread that writes to the control disk has ended";

fn start(disk: OwnedFd) -> Result<(SyncSender<Frame>, Receiver<Written>), Fatal> {
    let (frames, to_write) = sync_channel::<Frame>(1);
    let (ended, written) = sync_channel::<Written>(1);
    thread::Builder::new().name("control".to_owned()).spawn(move || {
        for Frame { buffer, length } in to_write {
            let result = pwrite(&disk, &buffer[..length], 0);
            if ended.send((buffer, result)).is_err() {
                break;
            }
        }
    })?;
    Ok((frames, written))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::{File, read, remove_file};
    use std::path::PathBuf;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("virt-bmap-writer-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_frame_has_been_written_when_its_end_is_told() {
        let path = path("frames");
        let mut writer = Writer::new(File::create_new(&path).unwrap().into());
        assert!(!writer.end().unwrap());
        for (sequence, payload) in [(7, &b"first"[..]), (8, b"second"), (9, &[3; frame::ROOM])] {
            writer.begin(sequence, payload).unwrap();
            assert!(writer.begin(sequence + 1, b"too early").is_err());
            assert!(writer.end().unwrap());
            assert!(!writer.end().unwrap());
            assert_eq!(frame::open(&read(&path).unwrap(), sequence).unwrap(), payload);
            File::options().write(true).truncate(true).open(&path).unwrap();
            writer.write(sequence + 1, payload).unwrap();
            assert_eq!(frame::open(&read(&path).unwrap(), sequence + 1).unwrap(), payload);
            File::options().write(true).truncate(true).open(&path).unwrap();
        }
        remove_file(path).unwrap();
    }

    #[test]
    fn a_write_that_fails_is_told_at_its_end() {
        let path = path("read-only");
        drop(File::create_new(&path).unwrap());
        let mut writer = Writer::new(File::open(&path).unwrap().into());
        assert!(writer.write(0, b"frame").is_err());
        writer.begin(0, b"frame").unwrap();
        assert!(writer.write(1, b"too early").is_err());
        assert!(writer.end().is_err());
        remove_file(path).unwrap();
    }
}
