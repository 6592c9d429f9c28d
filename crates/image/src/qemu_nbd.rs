//! Every format but raw: a captive `qemu-nbd` that reads the image and serves us alone.
//!
//! The child listens on a Unix socket in a private directory. As soon as all connections of the
//! pool are open, socket and directory are removed, so that nothing is left of them however this
//! process ends. The child ends in one of three ways: dropping the [`QemuNbd`] kills it; it exits
//! when its last client disconnects, as when this process ends; and the kernel kills it when the
//! thread that started it ends, which covers the time before the first connection.

use super::block_device::Description;
use super::link::Link;
use super::{OpenError, SECTOR, Source, qemu_img};
use nbd::client::{NbdClient, handshake};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virt_bmap_child as child;
use virt_bmap_ranges::DiskOffset;

/// The program.
const QEMU_NBD: &str = "qemu-nbd";

/// Connections in the pool, and so the reads that can be under way at once. qemu-nbd serves all of
/// them from one thread; a few suffice to keep it busy.
const CONNECTIONS: usize = 4;

/// Longest read in one request, by the NBD specification's default limit on payloads.
const MAX_READ: usize = 32 << 20;

/// Time for the child to start listening, and for each handshake.
const START_TIME: Duration = Duration::from_secs(20);

/// Buffer for replies: one system call is enough for a small read.
const BUFFER: usize = 32 << 10;

/// Bytes that are kept of the child's messages.
const MAX_SAID: usize = 8 << 10;

/// A [`Source`] that reads through a captive `qemu-nbd`.
pub(super) struct QemuNbd {
    /// Closed before the child is killed.
    pool: Pool,
    captive: Captive,
    /// Size of the export. The disk may be up to a sector longer, and reads as zeroes there.
    export_size: u64,
}

/// The inner error of an [`io::Error`] of a read through qemu-nbd.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The child answered with an error, for instance because the image is damaged there.
    #[error("qemu-nbd cannot read {length} bytes at {offset:#x} of {path:?}")]
    Refused {
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
    #[error("qemu-nbd, which reads {path:?}, has failed: {said}")]
    Gone {
        /// The image.
        path: PathBuf,
        /// Its last message.
        said: String,
    },
}

impl QemuNbd {
    /// Starts a child that serves `description`, whose top is `link`, or an internal snapshot of
    /// it.
    ///
    /// # Errors
    /// The child does not start, or cannot open the image.
    pub(super) fn start(
        description: &Description,
        link: &Link,
        snapshot: Option<&str>,
    ) -> Result<Self, OpenError> {
        let set_up = |source| OpenError::SetUp { program: QEMU_NBD, path: link.path.clone(), source };
        let timed_out =
            || OpenError::TimedOut { program: QEMU_NBD, path: link.path.clone(), limit: START_TIME };
        let directory = private_directory().map_err(set_up)?;
        let socket = directory.path().join("s");
        let mut command = child::command(QEMU_NBD.as_ref());
        command.arg("--read-only").arg(format!("--shared={CONNECTIONS}")).arg("--socket").arg(&socket);
        if let Some(name) = snapshot {
            // As in a description, a comma would end the name.
            command.arg(format!("--load-snapshot=snapshot.name={}", name.replace(',', ",,")));
        }
        command.args(description.to_arguments());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut captive = Captive::spawn(command, &link.path)?;

        let deadline = Instant::now() + START_TIME;
        let mut connections = Vec::with_capacity(CONNECTIONS);
        let mut export_size = 0;
        while connections.len() < CONNECTIONS {
            match connect(&socket) {
                Ok((connection, size)) => {
                    export_size = size;
                    connections.push(connection);
                }
                // Not listening yet, or not any more.
                Err(error) if is_not_listening(&error) => {
                    if captive.child.try_wait().map_err(set_up)?.is_some() {
                        let said = captive.said.wait_for_end();
                        return Err(qemu_img::complaint(QEMU_NBD, &said, description, link));
                    }
                    if Instant::now() >= deadline {
                        return Err(timed_out());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                // It accepts the connection and sends nothing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(timed_out()),
                Err(error) => return Err(set_up(error)),
            }
        }
        directory.close().map_err(set_up)?;
        Ok(Self { pool: Pool::new(connections), captive, export_size })
    }

    /// Bytes of the export. Its last sector may be incomplete.
    pub(super) fn export_size(&self) -> u64 {
        self.export_size
    }

    /// Reads from the export.
    fn read_export(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buf.len();
        let gone = || {
            let said = child::message(&self.captive.said.wait_for_end());
            io::Error::new(
                io::ErrorKind::BrokenPipe,
                ReadError::Gone { path: self.captive.path.clone(), said },
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
                    let error = ReadError::Refused { path, offset: DiskOffset(offset), length, source };
                    return Err(io::Error::other(error));
                }
                Err(source) => {
                    tracing::debug!(error = %source, "a connection to qemu-nbd broke");
                    self.pool.lose();
                    return Err(gone());
                }
            }
        }
        self.pool.put(connection);
        Ok(())
    }
}

impl Source for QemuNbd {
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

fn is_not_listening(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}

/// A new directory that only this user may enter, for a Unix socket: its path leaves room for a
/// name in the 108 bytes of a socket's address, see unix(7). Below `$XDG_RUNTIME_DIR` where there
/// is one, else where temporary files are. Removed when dropped.
///
/// # Errors
/// When no such directory can be made.
pub fn private_directory() -> io::Result<tempfile::TempDir> {
    const MAX_PATH: usize = 64;
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = runtime.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    let mut last = io::ErrorKind::NotFound.into();
    for place in places.filter(|place| place.is_absolute() && place.as_os_str().len() <= MAX_PATH) {
        let made = tempfile::Builder::new()
            .prefix("virt-bmap-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(place);
        match made {
            Ok(directory) => return Ok(directory),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One connection, past its handshake. The `nbd` crate's client writes a request, and reads the
/// head of a reply, in several pieces: buffers make one system call of them.
type Connection = NbdClient<Wire>;

struct Wire {
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

/// Opens a connection, and returns the size of the export.
fn connect(socket: &Path) -> io::Result<(Connection, u64)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(START_TIME))?;
    let mut wire =
        Wire { input: BufReader::with_capacity(BUFFER, stream.try_clone()?), output: BufWriter::new(stream) };
    let export = handshake(&mut wire, b"")?;
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

/// The child, and the thread that keeps it.
struct Captive {
    child: Child,
    path: PathBuf,
    said: Arc<Said>,
    /// Dropped to let the keeper go.
    stay: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Captive {
    /// Spawns `command` on a thread of its own, which then collects what the child says and stays
    /// until the child has gone: the child dies with the thread that spawned it, and that must not
    /// be a thread which happened to open the image.
    fn spawn(mut command: std::process::Command, path: &Path) -> Result<Self, OpenError> {
        let set_up = |source| OpenError::SetUp { program: QEMU_NBD, path: path.to_owned(), source };
        let said = Arc::new(Said::default());
        let (stay, gone) = mpsc::channel::<()>();
        let (started, start) = mpsc::sync_channel(1);
        let keeper = std::thread::Builder::new()
            .name(QEMU_NBD.to_owned())
            .spawn({
                let said = Arc::clone(&said);
                move || {
                    let mut spawned = command.spawn();
                    let stderr = spawned.as_mut().ok().and_then(|child| child.stderr.take());
                    let is_running = spawned.is_ok();
                    if started.send(spawned).is_ok() && is_running {
                        said.collect(stderr);
                        let _ = gone.recv();
                    }
                }
            })
            .map_err(set_up)?;
        let spawned = start.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        let child = spawned.map_err(|source| qemu_img::cannot_run(QEMU_NBD, path, source))?;
        Ok(Self { child, path: path.to_owned(), said, stay: Some(stay), keeper: Some(keeper) })
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        // Fails only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stay = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// The end of the child's standard error.
#[derive(Default)]
struct Said {
    /// The bytes, and whether there will be more.
    state: Mutex<(Vec<u8>, bool)>,
    ended: Condvar,
}

impl Said {
    fn state(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `stderr` to its end, so that the child never waits for this process, and keeps the
    /// tail.
    fn collect(&self, stderr: Option<ChildStderr>) {
        let mut buf = [0; 4096];
        if let Some(mut stderr) = stderr {
            loop {
                match stderr.read(&mut buf) {
                    Ok(0) => break,
                    Ok(length) => {
                        let tail = &mut self.state().0;
                        tail.extend_from_slice(&buf[..length]);
                        let surplus = tail.len().saturating_sub(MAX_SAID);
                        tail.drain(..surplus);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        self.state().1 = true;
        self.ended.notify_all();
    }

    /// The child's messages, complete if it has ended or ends at once.
    fn wait_for_end(&self) -> Vec<u8> {
        const PATIENCE: Duration = Duration::from_millis(300);
        let wait = self.ended.wait_timeout_while(self.state(), PATIENCE, |(_, ended)| !*ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.0.clone()
    }
}
