//! A disk that a captive child serves over NBD, to us alone.

use super::captive::Captive;
use super::{SECTOR, Source};
use nbd::client::{NbdClient, handshake};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use virt_bmap_child as child;
use virt_bmap_ranges::DiskOffset;

/// Longest read in one request, by the NBD specification's default limit on payloads.
const MAX_READ: usize = 32 << 20;

/// Time for the child to start listening, and for each handshake.
pub(super) const START_TIME: Duration = Duration::from_secs(20);

/// Buffer for replies: one system call is enough for a small read.
const BUFFER: usize = 32 << 10;

/// A [`Source`] that reads through a captive child.
pub(super) struct Served {
    /// Closed before the child is killed.
    pool: Pool,
    captive: Captive,
    /// Size of the export. The disk may be up to a sector longer, and reads as zeroes there.
    export_size: u64,
}

/// The inner error of an [`io::Error`] of a read through a child.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The child answered with an error, for instance because the image is damaged there.
    #[error("{program} cannot read {length} bytes at {offset:#x} of {path:?}")]
    Refused {
        /// The child's program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// Where the read began.
        offset: DiskOffset,
        /// How long it was.
        length: usize,
        /// The error that it answered with.
        #[source]
        source: io::Error,
    },
    /// The child ended, or violated the protocol.
    #[error("{program}, which reads {path:?}, has failed: {said}")]
    Gone {
        /// The child's program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// Its last message.
        said: String,
    },
}

impl Served {
    /// The disk that `captive` serves on these connections. There is at least one.
    pub(super) fn new(captive: Captive, connections: Vec<Connection>, export_size: u64) -> Self {
        Self { pool: Pool::new(connections), captive, export_size }
    }

    /// Bytes of the export. Its last sector may be incomplete.
    pub(super) fn export_size(&self) -> u64 {
        self.export_size
    }

    /// Reads from the export.
    fn read_export(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buf.len();
        let gone = || {
            let said = child::message(&self.captive.said());
            io::Error::new(
                io::ErrorKind::BrokenPipe,
                ReadError::Gone { program: self.captive.program, path: self.captive.path.clone(), said },
            )
        };
        let mut connection = self.pool.take().ok_or_else(gone)?;
        let mut at = offset;
        for part in buf.chunks_mut(MAX_READ) {
            let result = connection.seek(SeekFrom::Start(at)).and_then(|_| connection.read_exact(part));
            match result {
                Ok(()) => at += part.len() as u64,
                Err(source) if is_reply(&source) => {
                    self.pool.put(connection);
                    let path = self.captive.path.clone();
                    let (program, offset) = (self.captive.program, DiskOffset(offset));
                    let error = ReadError::Refused { program, path, offset, length, source };
                    return Err(io::Error::other(error));
                }
                Err(source) => {
                    tracing::debug!(error = %source, "a connection to a captive child broke");
                    self.pool.lose();
                    return Err(gone());
                }
            }
        }
        self.pool.put(connection);
        Ok(())
    }
}

impl Source for Served {
    fn size(&self) -> u64 {
        self.export_size.next_multiple_of(SECTOR)
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let buf = super::within_file(buf, offset, self.export_size)?;
        if buf.is_empty() { Ok(()) } else { self.read_export(buf, offset.0) }
    }
}

/// Whether an error of the `nbd` crate's client is an error that the server replied with, after
/// which the connection is still in step. That crate gives these no number of the operating system,
/// and no other error these kinds.
fn is_reply(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
        && matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::PermissionDenied)
}

/// One connection, past its handshake. The `nbd` crate's client writes a request, and reads the
/// head of a reply, in several pieces: buffers make one system call of them.
pub(super) type Connection = NbdClient<Wire>;

pub(super) struct Wire {
    input: BufReader<UnixStream>,
    output: BufWriter<UnixStream>,
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf)
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Chooses an export on a new connection, and returns its size.
pub(super) fn choose(stream: UnixStream, export: &[u8]) -> io::Result<(Connection, u64)> {
    stream.set_read_timeout(Some(START_TIME))?;
    let mut wire =
        Wire { input: BufReader::with_capacity(BUFFER, stream.try_clone()?), output: BufWriter::new(stream) };
    let export = handshake(&mut wire, export)?;
    // How long a read takes is up to the storage, and to whoever waits for it.
    wire.input.get_ref().set_read_timeout(None)?;
    Ok((NbdClient::new(wire, &export), export.size))
}

/// The pool of connections.
struct Pool {
    state: Mutex<PoolState>,
    changed: Condvar,
}

struct PoolState {
    idle: Vec<Connection>,
    /// Idle ones and those in use.
    alive: usize,
}

impl Pool {
    fn new(idle: Vec<Connection>) -> Self {
        let alive = idle.len();
        Self { state: Mutex::new(PoolState { idle, alive }), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a connection. `None` if all are lost.
    fn take(&self) -> Option<Connection> {
        let mut state = self.state();
        loop {
            if let Some(connection) = state.idle.pop() {
                return Some(connection);
            }
            if state.alive == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put(&self, connection: Connection) {
        self.state().idle.push(connection);
        self.changed.notify_one();
    }

    /// Removes a connection that broke while it was in use.
    fn lose(&self) {
        self.state().alive -= 1;
        self.changed.notify_all();
    }
}
