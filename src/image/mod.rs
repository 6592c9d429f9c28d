//! Opens a guest's disk read-only, whatever its format.
//!
//! Whoever serves a disk sees a [`Source`]: so many bytes that can be read at an offset. [`open`] makes
//! one of an image: a raw file or block device is read directly, every other format by a captive
//! `qemu-nbd`. A guest's writes stay in an [`Overlay`] over it.
//!
//! An image comes from a guest, and a guest is not trusted: see [`OpenError::Untrusted`] for what is
//! refused unless the user states the image's format.

mod block_device;
mod chain;
mod direct;
mod error;
mod file;
mod format;
mod frozen;
mod layer;
mod lock;
mod overlay;
mod qemu_img;
mod qemu_nbd;
mod raw;
mod references;
mod stamp;
mod vmdk;
mod writable;

pub use error::{OpenError, Role};
pub use format::{Format, UnknownFormat};
pub use frozen::{Activity, Freezable, Frozen, freeze};
pub use layer::Layer;
pub use overlay::Overlay;
pub use qemu_nbd::ReadError;
pub use stamp::Stamp;
pub use writable::{Writable, WritableRaw};

use crate::range::{DiskOffset, DiskRange};
use block_device::Description;
use chain::{Chain, Link};
use direct::Direct;
use qemu_nbd::QemuNbd;
use raw::RawFile;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// The image's format, if the user states it. An image of a stated format is trusted in what it
    /// refers to; raw is never looked into. `None`: find it out, and trust nothing.
    pub format: Option<Format>,
    /// Read the image although another program may be writing to it.
    pub force_share: bool,
}

/// An image that has been opened.
#[non_exhaustive]
pub struct Image {
    /// The disk's bytes. What else it takes to read them (a child process, connections) goes with the
    /// last clone.
    pub source: Arc<dyn Source>,
    /// The image's file name as it was given to [`open`].
    pub name: PathBuf,
    /// Its format, stated or found out.
    pub format: Format,
    /// All images that the disk is made of, from the image itself down to the last backing file.
    pub chain: Vec<ImageFile>,
    /// What the user should know of it.
    pub warnings: Vec<Warning>,
    /// How to ask qemu's programs about it.
    asked: Asked,
}

/// How qemu's programs are asked about an image that has been opened.
struct Asked {
    /// The image and what is below it.
    description: Description,
    /// The image itself.
    top: Link,
    force_share: bool,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("name", &self.name)
            .field("format", &self.format)
            .field("size", &self.source.size())
            .field("chain", &self.chain)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// All files that the disk is made of, those that hold an image's data before the image itself.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.chain.iter().flat_map(|image| image.data_files.iter().chain([&image.filename]))
    }
}

/// One image of a chain of backing files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageFile {
    /// Absolute path; or, where the user has trusted the image, what it says instead of one.
    pub filename: PathBuf,
    /// Its format. `None` where the user has trusted the image and only qemu knows.
    pub format: Option<Format>,
    /// Other files that hold its data: extents of a VMDK, the data file of a qcow2.
    pub data_files: Vec<PathBuf>,
}

/// What the user should know of an image that has been opened all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// It was opened with [`OpenOptions::force_share`].
    #[error("{path:?} may be written to while it is read, and the map may be torn")]
    MayBeTorn {
        /// The image.
        path: PathBuf,
    },
    /// Its size is no multiple of 512.
    #[error("{path:?} has {size} bytes, which is no multiple of 512; zeroes are added to reach {rounded}")]
    RoundedUp {
        /// The image.
        path: PathBuf,
        /// Bytes that it has.
        size: u64,
        /// Bytes that the disk has.
        rounded: u64,
    },
    /// Its last user did not close it, so it has not been checked for damage.
    #[error("{path:?} was not closed by its last user, and may not be whole")]
    Unclean {
        /// The image, or a file below it.
        path: PathBuf,
    },
}

/// Opens the image at `path`, read-only.
///
/// Blocks while qemu's programs look at it, some 50 ms for an image that is not raw.
///
/// ```no_run
/// use virt_bmap::image::{self, OpenOptions};
///
/// let image = image::open("guest.vmdk".as_ref(), &OpenOptions::default())?;
/// println!("{} bytes of {}", image.source.size(), image.format);
/// # Ok::<(), image::OpenError>(())
/// ```
///
/// # Errors
/// When it cannot be opened, is damaged, locked, or refers to what it must not: see [`OpenError`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
    let OpenOptions { format: stated, force_share } = *options;
    let Chain { links, top, dirty } = chain::follow(path, stated, force_share)?;
    // The top of a chain always has a format: stated, or found out.
    let format = links.first().and_then(|link| link.format).unwrap_or(Format::Raw);
    if let (Format::Raw, None, false, Some(expected)) =
        (format, stated, top.is_device, chain::format_by_name(path))
    {
        return Err(OpenError::NotAsNamed { path: path.to_owned(), expected });
    }

    let mut warnings = Vec::new();
    if force_share {
        warnings.push(Warning::MayBeTorn { path: path.to_owned() });
    }
    let told = Told { chain: &links, all: stated.is_none(), force_share };
    let asked = Asked { description: told.description(0), top: links[0].clone(), force_share };
    let source: Arc<dyn Source> = if format == Format::Raw {
        if !force_share {
            lock::hold(&top.file);
        }
        let raw = RawFile::new(top.file, top.size);
        if raw.size() != top.size {
            let (size, rounded) = (top.size, raw.size());
            warnings.push(Warning::RoundedUp { path: path.to_owned(), size, rounded });
        }
        Arc::new(raw)
    } else {
        if !force_share {
            told.check(&dirty)?;
        }
        warnings.extend(dirty.into_iter().map(|path| Warning::Unclean { path }));
        let captive = QemuNbd::start(&asked.description, &asked.top, None)?;
        // What another program writes to may move.
        if force_share {
            Arc::new(captive)
        } else {
            Arc::new(Direct::new(captive, &asked.description, &links))
        }
    };
    let chain = links.into_iter().map(ImageFile::from).collect();
    Ok(Image { source, name: path.to_owned(), format, chain, warnings, asked })
}

/// What qemu is told of a chain: all of it; or, of an image that the user trusts, its format alone, and
/// qemu follows what the image says.
struct Told<'c> {
    chain: &'c [Link],
    all: bool,
    force_share: bool,
}

impl Told<'_> {
    /// The image at place `index` of the chain.
    fn description(&self, index: usize) -> Description {
        let end = if self.all { self.chain.len() } else { index + 1 };
        Description::of_chain(&self.chain[index..end], self.force_share)
    }

    /// Has each image of the chain checked, but for those that are known not to be in order and
    /// those that only qemu finds.
    fn check(&self, dirty: &[PathBuf]) -> Result<(), OpenError> {
        for (index, link) in self.chain.iter().enumerate() {
            if let Some(format) = link.format
                && format != Format::Raw
                && link.path.is_absolute()
                && !dirty.contains(&link.path)
            {
                qemu_img::check(&self.description(index), &link.path, format)?;
            }
        }
        Ok(())
    }
}

impl From<Link> for ImageFile {
    fn from(link: Link) -> Self {
        let data_files = link.data_file.into_iter().chain(link.extents).collect();
        Self { filename: link.path, format: link.format, data_files }
    }
}

/// Unit in which a guest addresses its disk, in bytes.
const SECTOR: u64 = 512;

/// Splits a read of `buf` at `offset` into what a file of `file_size` bytes has and what lies between
/// its end and the next sector's, and fills the latter with zeroes.
fn within_file(buf: &mut [u8], offset: DiskOffset, file_size: u64) -> io::Result<&mut [u8]> {
    let disk_size = file_size.next_multiple_of(SECTOR);
    let end = offset.0.checked_add(buf.len() as u64).filter(|end| *end <= disk_size);
    let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
    let past_end = end.saturating_sub(file_size).min(buf.len() as u64) as usize;
    let (inside, past) = buf.split_at_mut(buf.len() - past_end);
    past.fill(0);
    Ok(inside)
}

/// The bytes of one guest disk, as the guest sees them.
///
/// All methods take `&self` and may be called from many threads at once. Offsets are checked by the
/// caller: a read past [`size`](Self::size) is an error of kind
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof).
pub trait Source: Send + Sync + 'static {
    /// Size in bytes; a multiple of 512.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset` if that needs no waiting, and returns whether it did. What is in
    /// `buf` after `false` or an error means nothing.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Fills `buf` from `offset`; may block.
    ///
    /// # Errors
    /// What the operating system says of the read.
    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()>;

    /// Which parts of `range` hold data and which are known to read as zeroes: a partition of
    /// `range`, ascending. May block.
    ///
    /// # Errors
    /// What the operating system says of the query.
    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        Ok(vec![Allocation { range, is_hole: false }])
    }
}

/// What [`Source::allocation`] knows of one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The bytes that this is about.
    pub range: DiskRange,
    /// Whether they are a hole: not allocated, and read as zeroes.
    pub is_hole: bool,
}
