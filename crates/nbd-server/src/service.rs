//! A server with threads of its own, for programs that are not async.

use super::export::Exports;
use super::limits::Limits;
use super::server::{Listener, Server};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Where a service is to listen.
#[derive(Clone, Debug)]
pub enum ListenAddress {
    /// On a Unix socket in a new directory that only this user may enter.
    Private,
    /// On the first of these TCP addresses that is free. There is no authentication: anyone who can
    /// reach the port can read the exports, and write to those that are writable.
    Tcp(Vec<SocketAddr>),
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A TCP address, with the actual port.
    Tcp(SocketAddr),
}

impl Address {
    /// The NBD URI of an export (the NBD project's `doc/uri.md`). An empty name stands for the
    /// default export.
    pub fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export.as_bytes());
        match self {
            Self::Unix(socket) => {
                format!("nbd+unix:///{export}?socket={}", percent_encoded(socket.as_os_str().as_bytes()))
            }
            Self::Tcp(address) if address.ip().is_unspecified() => {
                format!("nbd://localhost:{}/{export}", address.port())
            }
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

/// Escapes as `%XX` all bytes that may have a meaning in a URI.
fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Why a service could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up {what}")]
pub struct ServiceError {
    /// The part that could not be set up.
    pub what: &'static str,
    /// The system's error.
    pub source: io::Error,
}

/// A running server. [`stop`](Self::stop) shuts it down cleanly.
pub struct Service {
    runtime: Runtime,
    server: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    address: Address,
    /// Holds the socket; removed when dropped.
    _directory: Option<tempfile::TempDir>,
}

impl Service {
    /// Starts a server of these exports.
    ///
    /// # Errors
    /// The threads or the socket cannot be set up.
    pub fn start(exports: Exports, limits: Limits, place: &ListenAddress) -> Result<Self, ServiceError> {
        let set_up = |what| move |source| ServiceError { what, source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("nbd")
            .enable_all()
            .build()
            .map_err(set_up("the threads of the NBD server"))?;
        let server = Server::new(exports, limits);
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            stopped.await.ok();
        };
        let inside = runtime.enter();
        let (server, address, directory) = match place {
            ListenAddress::Private => {
                let directory = private_directory().map_err(set_up("a private directory"))?;
                let socket = directory.path().join("nbd.sock");
                let listener = UnixListener::bind(&socket).map_err(set_up("the NBD server's socket"))?;
                (spawn(&runtime, server, listener, stopped), Address::Unix(socket), Some(directory))
            }
            ListenAddress::Tcp(addresses) => {
                let failed = set_up("the NBD server's TCP port");
                let bound = runtime.block_on(TcpListener::bind(&addresses[..]));
                let listener = bound.map_err(&failed)?;
                let address = listener.local_addr().map_err(&failed)?;
                (spawn(&runtime, server, listener, stopped), Address::Tcp(address), None)
            }
        };
        drop(inside);
        Ok(Self { runtime, server, stop, address, _directory: directory })
    }

    /// The address of the server.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Shuts the server down. Requests in flight are answered first: see [`Server::run`].
    pub fn stop(self) {
        drop(self.stop);
        // The server has reported its own panic, if any; there is nothing left to stop.
        let _ = self.runtime.block_on(self.server);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

fn spawn<L: Listener + Send + Sync + 'static>(
    runtime: &Runtime,
    server: Server,
    listener: L,
    stop: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    runtime.spawn(server.run(listener, stop))
}

/// A new directory that only this user may enter, for a Unix socket: its path leaves room for a
/// name in the 108 bytes of a socket's address, see unix(7). Below `$XDG_RUNTIME_DIR` where there
/// is one, else where temporary files are. Removed when dropped.
///
/// # Errors
/// When no such directory can be made.
fn private_directory() -> io::Result<tempfile::TempDir> {
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
