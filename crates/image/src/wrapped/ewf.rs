//! EnCase images (E01), in one file or in segments.
//!
//! The image is parsed by a child process of few rights, which gets the open files and nothing
//! else, and serves the disk over sockets that it inherits too. The child is this program itself:
//! see [`use_own_ewf_reader`].

use crate::captive::Captive;
use crate::file::PlainFile;
use crate::served::{self, Served};
use crate::{Image, Location, OpenError, OpenOptions, Source as _, Warning};
use serde::{Deserialize, Serialize};
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use virt_bmap_archives::ewf;
use virt_bmap_child as child;

/// The first argument of this program when it is started as the reader of an EnCase image. The
/// others are paths of inherited files: sockets, on each of which one client is served, and the
/// segments.
pub const EWF_READER: &str = "--read-ewf";

/// The child, in messages.
const READER: &str = "the reader of EnCase images";

/// Sockets on which the disk is read, and so the reads that can be under way at once.
const CONNECTIONS: usize = 4;

/// Address space of the child. Caches and buffers take some 300 MiB of it at most.
const MEMORY: u64 = 2 << 30;

/// Processor time of the child: no limit in practice, since a disk may be read for days.
const CPU: Duration = Duration::from_secs(365 * 86_400);

/// Longest answer about an image.
const MOST_ABOUT: u64 = 4096;

/// Whether the program that runs can start itself as the reader.
static IS_READER: AtomicBool = AtomicBool::new(false);

/// Says that this program serves an EnCase image when its first argument is [`EWF_READER`]. Until
/// this was called, such images are refused: a program that does not know the argument would do
/// something else.
pub fn use_own_ewf_reader() {
    IS_READER.store(true, Ordering::Relaxed);
}

/// What the program that acquired a disk noted about it: the answer of the export `about`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acquisition {
    /// The MD5 of the disk, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// Its SHA-1, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha1: Option<String>,
    /// Sectors that could not be read from the disk. They are zeroes in the image.
    #[serde(default)]
    pub unread_sectors: u64,
}

impl Acquisition {
    /// The name of the export with the answer.
    pub const EXPORT: &str = "about";
    /// The name of the export with the disk.
    pub const DISK: &str = "disk";
}

/// The first segment of an EnCase image.
pub(crate) struct Evidence(PathBuf);

impl Evidence {
    /// The image of which `file`, which is at `path`, is the first segment. `None` if it is none.
    pub(crate) fn of(path: &Path, file: &PlainFile) -> Option<Self> {
        // A file that cannot be read is reported when it is opened.
        let head = file.read(0, 16).ok().filter(|head| ewf::is_first_segment(head));
        // The others are beside the file itself, not beside a link to it.
        head.map(|_| Self(path.canonicalize().unwrap_or_else(|_| path.to_owned())))
    }

    /// Opens the disk.
    ///
    /// # Errors
    /// The child cannot be started or refuses the image, or a segment cannot be opened.
    pub(crate) fn open(self, path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
        let set_up = |source| OpenError::SetUp { program: READER, path: path.to_owned(), source };
        if !IS_READER.load(Ordering::Relaxed) {
            return Err(set_up(io::ErrorKind::Unsupported.into()));
        }
        let segments = self.segments(options)?;
        let mut command = child::command("/proc/self/exe".as_ref());
        command.env_clear().arg(EWF_READER);
        let mut ours = Vec::new();
        for _ in 0..=CONNECTIONS {
            let (here, there) = UnixStream::pair().map_err(set_up)?;
            ours.push(here);
            let there = child::inherit(&mut command, there.into());
            command.arg(there);
        }
        let (paths, files): (Vec<PathBuf>, Vec<PlainFile>) = segments.into_iter().unzip();
        for file in files {
            let file = child::inherit(&mut command, file.file.into());
            command.arg(file);
        }
        child::limit(&mut command, MEMORY, CPU);
        child::confine(&mut command);
        let captive = Captive::spawn(READER, command, path)?;
        let refused = |captive: &Captive, error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                OpenError::Ewf { path: path.to_owned(), reason: child::message(&captive.said()) }
            }
            _ => set_up(error),
        };

        let mut ours = ours.into_iter();
        let acquisition = match ours.next() {
            Some(stream) => about(stream).map_err(|error| refused(&captive, error))?,
            None => Acquisition::default(),
        };
        let (mut connections, mut size) = (Vec::new(), 0);
        for stream in ours {
            let (connection, has) = served::choose(stream, Acquisition::DISK.as_bytes())
                .map_err(|error| refused(&captive, error))?;
            connections.push(connection);
            size = has;
        }
        let disk = Served::new(captive, connections, size);
        let mut warnings = Vec::new();
        if options.access.force_share {
            warnings.push(Warning::MayBeTorn { path: path.to_owned() });
        }
        if disk.size() != size {
            let rounded = disk.size();
            warnings.push(Warning::RoundedUp { path: path.to_owned(), size, rounded });
        }
        if acquisition.unread_sectors > 0 {
            let sectors = acquisition.unread_sectors;
            warnings.push(Warning::Unread { path: path.to_owned(), sectors });
        }
        let location = Location::File(path.to_owned());
        let image = Image::of_wrapped(location, Arc::new(disk), paths, warnings);
        Ok(Image { acquisition: Some(acquisition), ..image })
    }

    /// All segments that are there, by their names.
    fn segments(&self, options: &OpenOptions) -> Result<Vec<(PathBuf, PlainFile)>, OpenError> {
        let mut paths = vec![self.0.clone()];
        let more = (2..=ewf::MOST_SEGMENTS).map_while(|number| ewf::segment_path(&self.0, number));
        paths.extend(more.take_while(|path| path.symlink_metadata().is_ok()));
        super::make_room_for(paths.len());
        paths.into_iter().map(|path| Ok((path.clone(), super::segment(&path, options)?))).collect()
    }
}

/// Asks the child about the image.
fn about(stream: UnixStream) -> io::Result<Acquisition> {
    let (connection, size) = served::choose(stream, Acquisition::EXPORT.as_bytes())?;
    let mut text = Vec::new();
    connection.take(size.min(MOST_ABOUT)).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
