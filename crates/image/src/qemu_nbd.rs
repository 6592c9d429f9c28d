//! Every format but raw: a captive `qemu-nbd` that reads the image and serves us alone.
//!
//! The child listens on a Unix socket in a private directory. As soon as all connections of the
//! pool are open, socket and directory are removed, so that nothing is left of them however this
//! process ends. The child ends in one of three ways: dropping the [`Served`] disk kills it; it exits
//! when its last client disconnects, as when this process ends; and the kernel kills it when the
//! thread that started it ends, which covers the time before the first connection.

use super::block_device::Description;
use super::captive::Captive;
use super::link::Link;
use super::served::{self, START_TIME, Served};
use super::{OpenError, qemu_img};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use virt_bmap_child as child;

/// The program.
const QEMU_NBD: &str = "qemu-nbd";

/// Connections in the pool, and so the reads that can be under way at once. qemu-nbd serves all of
/// them from one thread; a few suffice to keep it busy.
const CONNECTIONS: usize = 4;

/// Starts a child that serves `description`, whose top is `link`, or an internal snapshot of
/// it.
///
/// # Errors
/// The child does not start, or cannot open the image.
pub(super) fn start(
    description: &Description,
    link: &Link,
    snapshot: Option<&str>,
) -> Result<Served, OpenError> {
    qemu_img::patiently(link, || start_once(description, link, snapshot))
}

fn start_once(description: &Description, link: &Link, snapshot: Option<&str>) -> Result<Served, OpenError> {
    let set_up = |source| OpenError::SetUp { program: QEMU_NBD, path: link.path.clone(), source };
    let timed_out = || OpenError::TimedOut { program: QEMU_NBD, path: link.path.clone(), limit: START_TIME };
    let directory = private_directory().map_err(set_up)?;
    let socket = directory.path().join("s");
    let mut command = child::command(QEMU_NBD.as_ref());
    command.arg("--read-only").arg(format!("--shared={CONNECTIONS}")).arg("--socket").arg(&socket);
    if let Some(name) = snapshot {
        // As in a description, a comma would end the name.
        command.arg(format!("--load-snapshot=snapshot.name={}", name.replace(',', ",,")));
    }
    description.state(&mut command, &link.path)?;
    let mut captive = Captive::spawn(QEMU_NBD, command, &link.path)?;

    let deadline = Instant::now() + START_TIME;
    let mut connections = Vec::with_capacity(CONNECTIONS);
    let mut export_size = 0;
    while connections.len() < CONNECTIONS {
        match UnixStream::connect(&socket).and_then(|stream| served::choose(stream, b"")) {
            Ok((connection, size)) => {
                export_size = size;
                connections.push(connection);
            }
            // Not listening yet, or not any more.
            Err(error) if is_not_listening(&error) => {
                if captive.has_ended().map_err(set_up)? {
                    let said = captive.said();
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
    Ok(Served::new(captive, connections, export_size))
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
