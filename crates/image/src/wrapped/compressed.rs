//! Images that are compressed as a whole: gzip, xz, zstd, bzip2.
//!
//! Such a file has no place for a byte of the disk, so it is unpacked once, into an unnamed sparse
//! file. The programs of these formats do it, as children without rights that get the open file and
//! give bytes.

use crate::chain::{self, Trust};
use crate::file::{PlainFile, bytes_at};
use crate::foreign::Foreign;
use crate::link::{Link, Node};
use crate::{Image, OpenError, OpenOptions, open_chain};
use rustix::fs::SeekFrom;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_child as child;

/// Most bytes that an image may have when it is unpacked, if the user states no other limit.
pub const UNPACK_LIMIT: u64 = 256 << 30;

/// Unit in which holes are looked for: a block of the usual filesystems.
const BLOCK: usize = 4096;

/// Bytes that are taken from the child at once.
const BUFFER: usize = 1 << 20;

/// After so many bytes, the room on the filesystem is looked at.
const CHECK_EVERY: u64 = 64 << 20;

/// This part of the filesystem is left to others.
const KEPT_FREE: u64 = 20;

/// Address space of the child. xz needs the most: its dictionary, and 10 % more.
const MEMORY: u64 = 2 << 30;

/// Processor time of the child. What it gives is limited by its bytes.
const CPU: Duration = Duration::from_secs(30 * 86_400);

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

impl Compression {
    /// How a file with this beginning is compressed. Sources: RFC 1952; "The .xz File Format" 1.1;
    /// RFC 8878; for bzip2, `file(1)` and the first block's magic.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        Some(match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] if bytes_at::<6>(head, 4) == Some(*b"1AY&SY") => Self::Bzip2,
            _ => return None,
        })
    }

    /// The program that unpacks it.
    fn program(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }

    /// As what it is refused where only an image can be.
    pub(crate) fn foreign(self) -> Foreign {
        let (kind, remedy) = match self {
            Self::Gzip => ("compressed by gzip", "unpack it with gunzip"),
            Self::Xz => ("compressed by xz", "unpack it with unxz"),
            Self::Zstd => ("compressed by zstd", "unpack it with unzstd"),
            Self::Bzip2 => ("compressed by bzip2", "unpack it with bunzip2"),
        };
        Foreign { kind, remedy }
    }
}

/// How far an image is unpacked.
#[derive(Clone, Copy, Debug)]
pub struct Unpacking<'p> {
    /// The image.
    pub path: &'p Path,
    /// Bytes of it that were read.
    pub read: u64,
    /// Its size.
    pub size: u64,
}

/// Is told how far an image is unpacked, several times a second, and may stop it.
#[derive(Clone)]
pub struct UnpackObserver(pub Arc<dyn Fn(Unpacking<'_>) -> ControlFlow<()> + Send + Sync>);

impl fmt::Debug for UnpackObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnpackObserver")
    }
}

/// A compressed image.
pub(crate) struct Compressed {
    file: PlainFile,
    compression: Compression,
}

impl Compressed {
    /// The image that `file` is. `None` if it is not compressed.
    pub(crate) fn of(file: PlainFile) -> Option<Self> {
        // A file that cannot be read is reported when it is opened.
        let compression = Compression::of(&file.read(0, 16).ok()?)?;
        Some(Self { file, compression })
    }

    /// Unpacks and opens it.
    ///
    /// # Errors
    /// As for [`open`](crate::open); also if it is damaged, or has more bytes than it may.
    pub(crate) fn open(self, path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
        let absolute = std::path::absolute(path).map_err(|error| OpenError::from_io(path, error))?;
        let file = self.unpack(path, options)?;
        // Its name has gone, but qemu's programs find it here as long as it is open.
        let here = format!("/proc/{}/fd/{}", std::process::id(), file.file.as_raw_fd());
        let link = Link::new(absolute, Node::Unpacked(here.into()));
        let chain = chain::follow_file(file, link, Trust::Alone, &options.access)?;
        open_chain(path, chain, options)
    }

    fn unpack(self, path: &Path, options: &OpenOptions) -> Result<PlainFile, OpenError> {
        let Self { file: PlainFile { file, size, .. }, compression } = self;
        let program = compression.program();
        let fail = |error| OpenError::from_io(path, error);
        let directory = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let no_room = |error| OpenError::CannotUnpack {
            path: path.to_owned(),
            directory: directory.clone(),
            source: error,
        };
        let unpacked = tempfile::tempfile_in(&directory).map_err(no_room)?;
        // The child shares the offset, which therefore says how far it has come.
        rustix::fs::seek(&file, SeekFrom::Start(0)).map_err(|error| fail(error.into()))?;
        let mut command = child::command(program.as_ref());
        command.args(["-d", "-c"]);
        child::limit(&mut command, MEMORY, CPU);
        child::confine(&mut command);
        command.stdin(Stdio::from(file.try_clone().map_err(fail)?));

        let limit = options.access.unpack_limit.unwrap_or(UNPACK_LIMIT);
        let mut target = Target { file: &unpacked, end: 0, checked: 0 };
        let copied = child::read(command, |stdout| {
            let mut buf = vec![0; BUFFER];
            loop {
                let length = fill(stdout, &mut buf).map_err(Stop::Io)?;
                if length == 0 {
                    return Ok(());
                }
                if target.end + length as u64 > limit {
                    return Err(Stop::Limit);
                }
                target.add(&buf[..length])?;
                let read = rustix::fs::seek(&file, SeekFrom::Current(0)).unwrap_or(0);
                let observe = options.access.unpacking.as_ref();
                if observe.is_some_and(|observer| (observer.0)(Unpacking { path, read, size }).is_break()) {
                    return Err(Stop::Interrupted);
                }
            }
        });
        let (output, copied) = copied.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => OpenError::NoProgram { program, path: path.to_owned(), source },
            _ => OpenError::SetUp { program, path: path.to_owned(), source },
        })?;
        match copied {
            Err(Stop::Io(error)) => return Err(no_room(error)),
            Err(Stop::NoRoom) => return Err(no_room(io::ErrorKind::StorageFull.into())),
            Err(Stop::Limit) => return Err(OpenError::UnpackLimit { path: path.to_owned(), limit }),
            Err(Stop::Interrupted) => return Err(OpenError::Interrupted { path: path.to_owned() }),
            Ok(()) => {}
        }
        if !output.status.success() {
            let reason = child::message(&output.stderr);
            return Err(OpenError::NotUnpacked { program, path: path.to_owned(), reason });
        }
        let size = target.end;
        unpacked.set_len(size).map_err(no_room)?;
        if size == 0 {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        PlainFile::unnamed(unpacked, size).map_err(fail)
    }
}

/// Why unpacking stopped.
enum Stop {
    /// A read or write failed.
    Io(io::Error),
    /// The filesystem is nearly full.
    NoRoom,
    /// There are more bytes than there may be.
    Limit,
    /// The observer wants it.
    Interrupted,
}

/// The unpacked file.
struct Target<'f> {
    file: &'f File,
    /// Bytes so far, with holes.
    end: u64,
    /// Bytes when the room was looked at.
    checked: u64,
}

impl Target<'_> {
    /// Appends bytes; blocks of zeroes become holes.
    fn add(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let mut at = 0;
        while at < bytes.len() {
            let block = |at: usize| &bytes[at..(at + BLOCK).min(bytes.len())];
            let is_zero = |at: usize| block(at).iter().all(|byte| *byte == 0);
            let start = at;
            let zero = is_zero(start);
            while at < bytes.len() && is_zero(at) == zero {
                at += block(at).len();
            }
            if !zero {
                self.file.write_all_at(&bytes[start..at], self.end + start as u64).map_err(Stop::Io)?;
            }
        }
        self.end += bytes.len() as u64;
        if self.end - self.checked >= CHECK_EVERY {
            self.checked = self.end;
            let room = rustix::fs::fstatvfs(self.file).map_err(|error| Stop::Io(error.into()))?;
            if room.f_bavail < room.f_blocks / KEPT_FREE {
                return Err(Stop::NoRoom);
            }
        }
        Ok(())
    }
}

/// Reads until the buffer is full, or to the end.
fn fill(input: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buf.len() {
        match input.read(&mut buf[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
