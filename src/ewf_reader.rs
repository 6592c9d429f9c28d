//! The child process that reads an EnCase image.
//!
//! It is this program with a hidden argument. It parses what whoever made the image has written, so
//! it has no rights but to the open files and sockets that it inherits, and answers only requests
//! for the bytes of the disk, by the NBD server.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use virt_bmap_archives::SizedFile;
use virt_bmap_archives::ewf::{About, Ewf};
use virt_bmap_child as child;
use virt_bmap_image::{Acquisition, EWF_READER};
use virt_bmap_nbd::{Export, Exports, Limits, Server};
use virt_bmap_ranges::error_chain;

/// Threads that decompress.
const THREADS: usize = 4;

/// Serves an EnCase image if this process was started for that, and returns how it ended. A program
/// has to call this before it does anything else; only then can it open such images.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != EWF_READER) {
        virt_bmap_image::use_own_ewf_reader();
        return None;
    }
    Some(match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If nobody hears it, the parent says that there was no reason.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    })
}

/// Serves the image until the last socket is closed. The error is a message.
fn serve(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    let (mut sockets, mut segments) = (Vec::new(), Vec::new());
    let system = |error: io::Error| error.to_string();
    for path in arguments {
        let file = File::from(child::inherited(&path).ok_or("started without its files")?);
        let metadata = file.metadata().map_err(system)?;
        if metadata.is_file() {
            segments.push(SizedFile { file, size: metadata.len() });
        } else {
            sockets.push(UnixStream::from(std::os::fd::OwnedFd::from(file)));
        }
    }
    let image = Ewf::open(segments).map_err(|error| error_chain(&error).to_string())?;
    let about = serde_json::to_vec(&acquisition(image.about())).map_err(|error| error.to_string())?;
    let exports = Exports::new()
        .with(Acquisition::DISK, Arc::new(Disk(image)))
        .and_then(|exports| exports.with(Acquisition::EXPORT, Arc::new(Text(about))));
    let exports = exports.map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(THREADS)
        .enable_all()
        .build()
        .map_err(system)?;
    let server = Arc::new(Server::new(exports, Limits::default()));
    runtime
        .block_on(async {
            let mut connections = Vec::new();
            for socket in sockets {
                socket.set_nonblocking(true)?;
                let (socket, server) = (tokio::net::UnixStream::from_std(socket)?, server.clone());
                connections.push(tokio::spawn(async move {
                    // The other end of a connection that is broken knows.
                    let _ = server.serve(socket, std::future::pending()).await;
                }));
            }
            for connection in connections {
                connection.await?;
            }
            io::Result::Ok(())
        })
        .map_err(system)
}

fn acquisition(about: &About) -> Acquisition {
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Acquisition {
        md5: about.md5.as_ref().map(|sum| hexadecimal(sum)),
        sha1: about.sha1.as_ref().map(|sum| hexadecimal(sum)),
        unread_sectors: about.unread_sectors,
    }
}

/// The disk.
struct Disk(Ewf<SizedFile>);

impl Export for Disk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
}

/// A short text.
struct Text(Vec<u8>);

impl Export for Text {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)?.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
