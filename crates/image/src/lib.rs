#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! Whoever serves a disk sees a [`Source`]: so many bytes that can be read at an offset. [`open`]
//! makes one of an image: a raw file or block device is read directly, every other format by a
//! captive `qemu-nbd`. A guest's writes stay in an [`Overlay`] over it.
//!
//! See [`OpenError::Untrusted`] for what is refused unless the user states the image's format.

mod block_device;
mod chain;
mod direct;
mod error;
mod file;
mod format;
mod frozen;
mod layer;
mod link;
mod lock;
mod map_entry;
mod overlay;
mod qemu_img;
mod qemu_nbd;
mod raw;
mod references;
mod source;
mod stamp;
mod vmdk;
mod writable;

pub use error::{FileRole, OpenError};
pub use format::{ImageFormat, UnknownFormat};
pub use frozen::{Activity, Freezable, Frozen, freeze};
pub use layer::Layer;
pub use overlay::Overlay;
pub use qemu_nbd::ReadError;
pub use source::{Allocation, Source};
pub use stamp::Stamp;
pub use writable::{Writable, WritableRaw};

use block_device::Description;
use chain::Chain;
use direct::Direct;
use link::Link;
use qemu_nbd::QemuNbd;
use raw::RawFile;
use source::{SECTOR, within_file};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// The image's format, if the user states it. An image of a stated format is trusted in what it
    /// refers to; raw is never looked into. `None`: find it out, and trust nothing.
    pub format: Option<ImageFormat>,
    /// Read the image although another program may be writing to it.
    pub force_share: bool,
}

/// An image that has been opened.
#[non_exhaustive]
pub struct Image {
    /// The disk's bytes. What else it takes to read them (a child process, connections) goes with
    /// the last clone.
    pub source: Arc<dyn Source>,
    /// The image's file name as it was given to [`open`].
    pub name: PathBuf,
    /// Its format, stated or found out.
    pub format: ImageFormat,
    /// All images that the disk is made of, from the image itself down to the last backing file.
    pub chain: Vec<ImageFile>,
    /// What the user should know of it.
    pub warnings: Vec<Warning>,
    /// How to start qemu's programs on it.
    qemu: QemuArguments,
}

/// How to start qemu's programs on an image that has been opened.
struct QemuArguments {
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
    pub format: Option<ImageFormat>,
    /// Other files that hold its data: extents of a VMDK, the data file of a qcow2.
    pub data_files: Vec<PathBuf>,
}

/// What the user should know of an image that has been opened all the same.
///
/// Exhaustive, so that who passes warnings on is made to think of each new one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
/// use virt_bmap_image::{self as image, OpenOptions};
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
    let format = links.first().and_then(|link| link.format).unwrap_or(ImageFormat::Raw);
    if let (ImageFormat::Raw, None, false, Some(expected)) =
        (format, stated, top.is_device, format::format_by_name(path))
    {
        return Err(OpenError::NotAsNamed { path: path.to_owned(), expected });
    }

    let mut warnings = Vec::new();
    if force_share {
        warnings.push(Warning::MayBeTorn { path: path.to_owned() });
    }
    let for_qemu = ChainForQemu { chain: &links, all: stated.is_none(), force_share };
    let qemu = QemuArguments { description: for_qemu.description(0), top: links[0].clone(), force_share };
    let source: Arc<dyn Source> = if format == ImageFormat::Raw {
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
            for_qemu.check(&dirty)?;
        }
        warnings.extend(dirty.into_iter().map(|path| Warning::Unclean { path }));
        let captive = QemuNbd::start(&qemu.description, &qemu.top, None)?;
        // What another program writes to may move.
        if force_share {
            Arc::new(captive)
        } else {
            Arc::new(Direct::new(captive, &qemu.description, &links))
        }
    };
    let chain = links.into_iter().map(ImageFile::from).collect();
    Ok(Image { source, name: path.to_owned(), format, chain, warnings, qemu })
}

/// Describes the images of a chain to qemu's programs.
struct ChainForQemu<'c> {
    chain: &'c [Link],
    /// Whether a description names every image below. Otherwise, for an image that the user trusts,
    /// it names only the image, and qemu follows the references in it.
    all: bool,
    force_share: bool,
}

impl ChainForQemu<'_> {
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
                && format != ImageFormat::Raw
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
