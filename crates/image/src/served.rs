//! A disk that is served over NBD: by a captive child, to us alone, or by a server that the user
//! names.

use super::captive::Captive;
use super::nbd_uri::NbdUri;
use super::{SECTOR, Source};
use nbd::client::{NbdClient, handshake};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
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

/// A [`Source`] that reads from a server.
pub(super) struct Served {
    /// Closed before a child is killed.
    pool: Pool,
    server: ServedBy,
    /// Size of the export. The disk may be up to a sector longer, and reads as zeroes there.
    export_size: u64,
}

/// Who serves the disk.
enum ServedBy {
    /// A child of ours.
    Child(Captive),
    /// A server that the user names: its URI, for messages.
    Named(PathBuf),
}

impl ServedBy {
    /// Who it is, and what it serves, for messages.
    fn names(&self) -> (&'static str, PathBuf) {
        match self {
            Self::Child(captive) => (captive.program, captive.path.clone()),
            Self::Named(uri) => ("the NBD server", uri.clone()),
        }
    }

    /// The error that it has ended, or broke the protocol.
    fn gone(&self) -> io::Error {
        let (program, path) = self.names();
        let said = match self {
            Self::Child(captive) => child::message(&captive.said()),
            Self::Named(_) => "the connection broke".to_owned(),
        };
        io::Error::new(io::ErrorKind::BrokenPipe, ReadError::Gone { program, path, said })
    }
}

/// The inner error of an [`io::Error`] of a read from a server.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It answered with an error, for instance because the image is damaged there.
    #[error("{program} cannot read {length} bytes at {offset:#x} of {path:?}")]
    Refused {
        /// The child's program, or "the NBD server".
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
    /// It ended, or violated the protocol.
    #[error("{program}, which reads {path:?}, has failed: {said}")]
    Gone {
        /// The child's program, or "the NBD server".
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
        Self { pool: Pool::new(connections), server: ServedBy::Child(captive), export_size }
    }

    /// The disk that the server at `uri` serves on these connections. There is at least one.
    pub(super) fn by_server(uri: &NbdUri, connections: Vec<Connection>, export_size: u64) -> Self {
        let server = ServedBy::Named(uri.to_string().into());
        Self { pool: Pool::new(connections), server, export_size }
    }

    /// Bytes of the export. Its last sector may be incomplete.
    pub(super) fn export_size(&self) -> u64 {
        self.export_size
    }

    /// Reads from the export.
    fn read_export(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buf.len();
        let mut connection = self.pool.take().ok_or_else(|| self.server.gone())?;
        let mut at = offset;
        for part in buf.chunks_mut(MAX_READ) {
            let result = connection.seek(SeekFrom::Start(at)).and_then(|_| connection.read_exact(part));
            match result {
                Ok(()) => at += part.len() as u64,
                Err(source) if is_reply(&source) => {
                    self.pool.put(connection);
                    let ((program, path), offset) = (self.server.names(), DiskOffset(offset));
                    let error = ReadError::Refused { program, path, offset, length, source };
                    return Err(io::Error::other(error));
                }
                Err(source) => {
                    tracing::debug!(error = %source, "a connection to a server broke");
                    self.pool.lose();
                    return Err(self.server.gone());
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
    input: BufReader<Stream>,
    output: BufWriter<Stream>,
}

/// A connected socket.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// See [`UnixStream::set_read_timeout`].
    pub(super) fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(limit),
            Self::Tcp(stream) => stream.set_read_timeout(limit),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tcp(stream) => stream.flush(),
        }
    }
}

impl Wire {
    /// The two directions of a connection.
    ///
    /// # Errors
    /// The system's error of copying the descriptor.
    pub(super) fn new(stream: Stream) -> io::Result<Self> {
        let input = BufReader::with_capacity(BUFFER, stream.try_clone()?);
        Ok(Self { input, output: BufWriter::new(stream) })
    }

    /// The socket.
    pub(super) fn stream(&self) -> &Stream {
        self.input.get_ref()
    }
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
    let mut wire = Wire::new(Stream::Unix(stream))?;
    let export = handshake(&mut wire, export)?;
    // How long a read takes is up to the storage, and to whoever waits for it.
    wire.stream().set_read_timeout(None)?;
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
