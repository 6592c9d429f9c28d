#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! A [`Source`] is a disk that can be read at any offset. [`open`] makes one from an image: a raw
//! file or block device is read directly, every other format by a captive `qemu-nbd`. A guest's
//! writes stay in an [`Overlay`] over it, or go to the image through a [`Writable`].
//!
//! [`OpenError::Untrusted`] lists the references that are refused unless the user states the
//! image's format.

mod access;
mod block_device;
mod captive;
mod chain;
mod contents;
mod context;
mod direct;
mod error;
mod file;
mod foreign;
mod format;
mod layer;
mod link;
mod location;
mod lock;
mod map_entry;
mod nbd_client;
mod nbd_uri;
mod overlay;
mod qemu_img;
mod qemu_nbd;
mod raw;
mod references;
mod served;
mod source;
mod stamp;
mod tls;
mod vmdk;
mod wrapped;
mod writable;

pub use access::{Access, AllowedBacking, BadPattern, ImageKey};
pub use contents::{Container, ContainerError, Effect, Holds, Part};
pub use error::{FileRole, OpenError};
pub use format::{ImageFormat, UnknownFormat};
pub use layer::Layer;
pub use location::Location;
pub use nbd_uri::{BadUri, NbdUri, Server, Tls};
pub use overlay::Overlay;
pub use qemu_nbd::private_directory;
pub use served::ReadError;
pub use source::{Allocation, Source};
pub use stamp::Stamp;
pub use virt_bmap_archives::ova::OvaError;
pub use wrapped::{Acquisition, EWF_READER, UNPACK_LIMIT, UnpackObserver, Unpacking, use_own_ewf_reader};
pub use writable::{Change, Writable, WritableRaw};

use block_device::Description;
use chain::Chain;
use direct::Direct;
use link::{Link, Node};
use raw::RawFile;
use served::Served;
use source::{SECTOR, within_file};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The image's format, if the user states it. The references of an image with a stated format
    /// are trusted; a raw image is never parsed. `None`: detect the format and trust no references.
    pub format: Option<ImageFormat>,
    /// The internal snapshot of a qcow2 image whose disk to open. `None`: the present disk.
    pub snapshot: Option<String>,
    /// What may be opened, and with which key.
    pub access: Access,
}

/// An image that has been opened.
#[non_exhaustive]
pub struct Image {
    /// The disk's bytes. The child process and its connections, if any, end with the last clone.
    pub source: Arc<dyn Source>,
    /// The location that [`open`] was given.
    pub location: Location,
    /// Its format, stated or detected.
    pub format: ImageFormat,
    /// All images of the chain, from the image itself down to the base.
    pub chain: Vec<ImageFile>,
    /// The internal snapshot that was opened, if one was.
    pub snapshot: Option<String>,
    /// Warnings for the user.
    pub warnings: Vec<Warning>,
    /// What was noted when the disk was acquired, if it is in an EnCase image.
    pub acquisition: Option<Acquisition>,
    /// How to start qemu's programs on it.
    qemu: QemuArguments,
}

/// How to start qemu's programs on an image that has been opened.
struct QemuArguments {
    /// The image and what is below it.
    description: Description,
    /// The image itself.
    top: Link,
    access: Access,
    /// The unnamed file that a compressed image was unpacked to: qemu finds it as long as it is
    /// open.
    unpacked: Option<File>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("location", &self.location)
            .field("format", &self.format)
            .field("size", &self.source.size())
            .field("chain", &self.chain)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// A raw disk that is not in a file of its own.
    fn of_wrapped(
        location: Location,
        source: Arc<dyn Source>,
        held_in: Vec<PathBuf>,
        warnings: Vec<Warning>,
    ) -> Self {
        let format = ImageFormat::Raw;
        let top = Link { format: Some(format), ..Link::new(location.name().into(), Node::File) };
        let file =
            ImageFile { location: location.clone(), format: Some(format), data_files: Vec::new(), held_in };
        // qemu's programs are asked nothing about a raw disk.
        let description = Description::default();
        let qemu = QemuArguments { description, top, access: Access::default(), unpacked: None };
        Self {
            source,
            location,
            format,
            chain: vec![file],
            snapshot: None,
            warnings,
            acquisition: None,
            qemu,
        }
    }

    /// All files of the chain. The data files of an image come before the image itself. `None` if a
    /// part of it is not in a file or block device of this host.
    pub fn files(&self) -> Option<Vec<&Path>> {
        let files: Option<Vec<_>> = self.chain.iter().map(ImageFile::files).collect();
        Some(files?.into_iter().flatten().collect())
    }
}

/// One image of a chain of backing files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageFile {
    /// Where it is; the path of a file is absolute.
    pub location: Location,
    /// Its format. `None` if the user trusts the image and only qemu knows the format.
    pub format: Option<ImageFormat>,
    /// Other files that hold its data: extents of a VMDK, the data file of a qcow2.
    pub data_files: Vec<PathBuf>,
    /// The files that hold it, if it is not in a file of its own: all segments of a disk,
    /// the archive that it is in, or the compressed file.
    pub held_in: Vec<PathBuf>,
}

impl ImageFile {
    /// All its files, its data files first. `None` if it is not on this host.
    pub fn files(&self) -> Option<Vec<&Path>> {
        let held = self.held_in.iter().map(PathBuf::as_path);
        let own = if self.held_in.is_empty() { Some(self.location.file()?) } else { None };
        Some(self.data_files.iter().map(PathBuf::as_path).chain(held).chain(own).collect())
    }
}

/// A warning about an image that was opened.
///
/// Exhaustive, so that callers have to handle each new warning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// It was opened with [`Access::force_share`].
    #[error("{path:?} may be written to while it is read, and the map may be torn")]
    MayBeTorn {
        /// The image.
        path: PathBuf,
    },
    /// Its size is no multiple of 512.
    #[error("{path:?} has {size} bytes, not a multiple of 512; zeroes are added up to {rounded}")]
    RoundedUp {
        /// The image.
        path: PathBuf,
        /// Bytes that it has.
        size: u64,
        /// Bytes that the disk has.
        rounded: u64,
    },
    /// Its last user did not close it, so it has not been checked for damage.
    #[error("{path:?} was not closed by the last program that used it, and may be damaged")]
    Unclean {
        /// The image, or a file below it.
        path: PathBuf,
    },
    /// A part of the disk could not be read when it was acquired.
    #[error("{path:?}: {sectors} sectors could not be read when the disk was acquired; they are zeroes here")]
    Unread {
        /// The image.
        path: PathBuf,
        /// How many sectors.
        sectors: u64,
    },
}

/// Opens the image at `location`, read-only.
///
/// Blocks while qemu's programs examine it, some 50 ms for an image that is not raw.
///
/// ```no_run
/// use virt_bmap_image::{self as image, OpenOptions};
///
/// let location = image::Location::File("guest.vmdk".into());
/// let image = image::open(&location, &OpenOptions::default())?;
/// println!("{} bytes of {}", image.source.size(), image.format);
/// # Ok::<(), image::OpenError>(())
/// ```
///
/// # Errors
/// The image cannot be opened, is damaged or locked, or has references that are refused: see
/// [`OpenError`].
pub fn open(location: &Location, options: &OpenOptions) -> Result<Image, OpenError> {
    match location {
        Location::File(path) => match wrapped::Wrapped::of(path, options)? {
            Some(wrapped) => wrapped.open(path, options),
            None => open_file(path, options),
        },
        Location::Nbd(uri) => open_nbd(uri, options),
        Location::Other(name) => Err(OpenError::Unsupported {
            path: name.into(),
            kind: "no file, block device or NBD server; let an NBD server serve it and give its URI",
        }),
    }
}

/// The disks at `location`, each of which can be opened: several if it is an appliance (OVA), and
/// else the location itself. With a stated format, it is one image.
///
/// # Errors
/// It is an appliance that cannot be used.
pub fn disks(location: &Location, format: Option<ImageFormat>) -> Result<Vec<Location>, OpenError> {
    match location {
        Location::File(path) if format.is_none() => wrapped::disks(path),
        _ => Ok(vec![location.clone()]),
    }
}

fn open_file(path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
    let chain = chain::follow(path, options.format, &options.access)?;
    open_chain(path, chain, options)
}

/// Opens the image at `path`, which has this chain.
fn open_chain(path: &Path, chain: Chain, options: &OpenOptions) -> Result<Image, OpenError> {
    let OpenOptions { format: stated, snapshot, access } = options;
    let (stated, force_share) = (*stated, access.force_share);
    let Chain { links, top, dirty } = chain;
    // The top of a chain always has a format, stated or detected.
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
    let for_qemu = ChainForQemu { chain: &links, all: stated.is_none(), access };
    let (description, link) = (for_qemu.description(0)?, links[0].clone());
    let mut qemu = QemuArguments { description, top: link, access: access.clone(), unpacked: None };
    let mut rounded = |size: u64, rounded: u64| {
        if size != rounded {
            warnings.push(Warning::RoundedUp { path: path.to_owned(), size, rounded });
        }
    };
    let is_part = matches!(links[0].node, Node::Part { .. });
    let source: Arc<dyn Source> = if format == ImageFormat::Raw && snapshot.is_none() && !is_part {
        if !force_share {
            lock::hold(&top.file);
        }
        let raw = RawFile::new(top.file, top.size);
        rounded(top.size, raw.size());
        Arc::new(raw)
    } else {
        if !force_share {
            for_qemu.check(&dirty)?;
        }
        let captive = serve(&qemu.description, &qemu.top, snapshot.as_deref())?;
        rounded(captive.export_size(), captive.size());
        warnings.extend(dirty.into_iter().map(|path| Warning::Unclean { path }));
        qemu.unpacked = matches!(qemu.top.node, Node::Unpacked(_)).then_some(top.file);
        // Data that another program writes may move. Only qemu reads what is encrypted, and qemu-img
        // does not say where the data of a snapshot are.
        if force_share || snapshot.is_some() || links.iter().any(|link| link.is_encrypted) {
            Arc::new(captive)
        } else {
            Arc::new(Direct::new(captive, &qemu.description, &links))
        }
    };
    let chain = links.into_iter().map(ImageFile::from).collect();
    let location = Location::File(path.to_owned());
    let snapshot = snapshot.clone();
    Ok(Image { source, location, format, chain, snapshot, warnings, acquisition: None, qemu })
}

/// Starts a child that serves an image, or a snapshot in it.
fn serve(description: &Description, top: &Link, snapshot: Option<&str>) -> Result<Served, OpenError> {
    match snapshot {
        Some(name) => layer::snapshot(description, top, name),
        None => qemu_nbd::start(description, top, None),
    }
}

/// Opens an export of an NBD server. Without a stated format it is raw: whoever serves it has
/// opened the image.
fn open_nbd(uri: &NbdUri, options: &OpenOptions) -> Result<Image, OpenError> {
    let OpenOptions { format: stated, snapshot, access } = options;
    let format = stated.unwrap_or(ImageFormat::Raw);
    let location = Location::Nbd(Box::new(uri.clone()));
    let node = Node::Nbd(Box::new(uri.clone()));
    let mut top = Link { format: Some(format), ..Link::new(location.name().into(), node) };
    let mut warnings = Vec::new();
    let mut is_dirty = false;
    if format != ImageFormat::Raw {
        let info = qemu_img::info(&top, access)?;
        (top.is_encrypted, is_dirty) = (info.encrypted, info.dirty_flag);
    }
    if is_dirty {
        warnings.push(Warning::Unclean { path: top.path.clone() });
    }
    let for_qemu = ChainForQemu { chain: std::slice::from_ref(&top), all: false, access };
    let description = for_qemu.description(0)?;
    if !is_dirty {
        for_qemu.check(&[])?;
    }
    let is_plain = format == ImageFormat::Raw && snapshot.is_none();
    let served = is_plain.then(|| nbd_client::open(uri)).flatten();
    let served = served.map_or_else(|| serve(&description, &top, snapshot.as_deref()), Ok)?;
    if served.export_size() != served.size() {
        let (size, rounded) = (served.export_size(), served.size());
        warnings.push(Warning::RoundedUp { path: top.path.clone(), size, rounded });
    }
    let qemu = QemuArguments { description, top: top.clone(), access: access.clone(), unpacked: None };
    let (chain, snapshot) = (vec![ImageFile::from(top)], snapshot.clone());
    let source = Arc::new(served);
    Ok(Image { source, location, format, chain, snapshot, warnings, acquisition: None, qemu })
}

/// Describes the images of a chain to qemu's programs.
struct ChainForQemu<'c> {
    chain: &'c [Link],
    /// Whether a description names every image below. Otherwise, for an image that the user trusts,
    /// it names only the image, and qemu follows the references in it.
    all: bool,
    access: &'c Access,
}

impl ChainForQemu<'_> {
    /// The image at place `index` of the chain.
    fn description(&self, index: usize) -> Result<Description, OpenError> {
        let end = if self.all { self.chain.len() } else { index + 1 };
        Description::of_chain(&self.chain[index..end], self.access)
    }

    /// Checks each image of the chain, except those that are known to be unclean and those that
    /// only qemu finds.
    fn check(&self, dirty: &[PathBuf]) -> Result<(), OpenError> {
        for (index, link) in self.chain.iter().enumerate() {
            if let Some(format) = link.format
                && format != ImageFormat::Raw
                && link.node != Node::Other
                && !dirty.contains(&link.path)
            {
                qemu_img::check(&self.description(index)?, &link.path, format)?;
            }
        }
        Ok(())
    }
}
