//! Serves a file, read-only, over NBD on a Unix socket, and prints what is read.
//!
//! ```text
//! serve_file [-q] FILE SOCKET
//! nbdinfo nbd+unix:///disk?socket=SOCKET
//! qemu-img convert -f raw nbd+unix:///disk?socket=SOCKET out.qcow2
//! ```
//!
//! Each line is an offset and a length, in bytes. With `-q` nothing is printed. Ctrl-C ends it.

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::env;
use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;
use tokio::net::UnixListener;
use virt_bmap_nbd::{Command, Export, Exports, Limits, Request, Server};

struct FileExport {
    file: File,
    size: u64,
    quiet: bool,
}

impl Export for FileExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn observe(&self, request: &Request) {
        if !self.quiet && request.command == Command::Read {
            // If standard output is closed, the server goes on.
            writeln!(io::stdout(), "{:#x} {:#x}", request.offset, request.length).ok();
        }
    }

    /// Answers from the page cache, if it is all there.
    fn try_read(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<bool> {
        while !buf.is_empty() {
            match preadv2(&self.file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buf = &mut buf[count..];
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                // Some filesystems cannot tell whether they would wait.
                Err(Errno::AGAIN | Errno::OPNOTSUPP) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

fn main() -> anyhow::Result<()> {
    let mut args: Vec<String> = env::args().skip(1).collect();
    let quiet = args.first().is_some_and(|arg| arg == "-q");
    if quiet {
        args.remove(0);
    }
    let [path, socket] = &args[..] else {
        anyhow::bail!("usage: serve_file [-q] FILE SOCKET");
    };
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let size = if metadata.file_type().is_block_device() {
        rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?
    } else {
        metadata.len()
    };

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let exports =
            Exports::new().with("disk", Arc::new(FileExport { file, size, quiet }))?.with_default("disk")?;
        let listener = UnixListener::bind(socket)?;
        let stop = async {
            tokio::signal::ctrl_c().await.ok();
        };
        Server::new(exports, Limits::default()).run(listener, stop).await;
        std::fs::remove_file(socket)?;
        Ok(())
    })
}
