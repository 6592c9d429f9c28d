//! What the bytes of an image's files hold: bytes of the guest's disk, or tables of the image's
//! own, on which bytes of the disk depend.
//!
//! People hold offsets in the file on their host: a bad sector in an extent of a VMDK, a mapfile of
//! ddrescue of a qcow2. The tables of [`qcow2`] and [`vmdk`] are read here, so the answer
//! is exact for these, damaged ones included. For the other formats the places are those of
//! `qemu-img map`, and the rest of the file is "the image's own metadata".

mod parts;
mod qcow2;
mod vmdk;

pub use parts::{Effect, Holds, Part};

use super::access::Access;
use super::block_device::Description;
use super::chain::{self, Chain};
use super::file::PlainFile;
use super::foreign::Foreign;
use super::link::Link;
use super::map_entry::MapEntry;
use super::references::Unreadable;
use super::{ImageFormat, OpenError, OpenOptions, qemu_img};
use parts::{Found, Piece};
use std::path::{Path, PathBuf};
use std::time::Duration;
use virt_bmap_ranges::{ContainerRange, DiskRange, IndexedRanges};

/// Most processor time for qemu-img, which reads all tables of the chain.
const MAX_CPU: Duration = Duration::from_secs(1800);

/// A file that holds a guest disk or a part of one.
#[derive(Debug)]
pub struct Container {
    /// Bytes in the file.
    pub size: u64,
    /// Bytes of the guest's disk.
    pub disk_size: u64,
    /// Format of the image at the top of the chain.
    pub format: ImageFormat,
    path: PathBuf,
    links: Vec<Link>,
    /// Which image of the chain the file belongs to.
    depth: usize,
    /// Whether the file is not the image's own but an extent or a data file: its number.
    data_file: Option<usize>,
    access: Access,
}

/// Why it is not known what the bytes of a file hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The image cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file is none of the image's.
    #[error(
        "{file:?} is no file of the image {image:?}, whose files are {files:?}; name its image with --image"
    )]
    NotOfImage {
        /// The file.
        file: PathBuf,
        /// The image.
        image: PathBuf,
        /// The files of the image.
        files: Vec<PathBuf>,
    },
    /// qemu does not tell the places of this format.
    #[error(
        "{file:?}: it is not known where a {format} image has the bytes of the disk; \
         convert a copy to qcow2 or raw, or use offsets of the guest's disk"
    )]
    NoPlaces {
        /// The file.
        file: PathBuf,
        /// Its format.
        format: ImageFormat,
    },
    /// The file is in too many pieces.
    #[error(
        "{file:?}: the ranges hold more than {limit} pieces of the disk; look up fewer of them at a time"
    )]
    TooMany {
        /// The file.
        file: PathBuf,
        /// Most pieces.
        limit: usize,
    },
}

impl Container {
    /// Finds `file` in the chain of `image`: the image itself, an image below it, an extent or a
    /// data file.
    ///
    /// The image is not checked for damage: it may have some.
    ///
    /// # Errors
    /// [`ContainerError::Open`], [`ContainerError::NotOfImage`].
    pub fn find(image: &Path, options: &OpenOptions, file: &Path) -> Result<Self, ContainerError> {
        let Chain { links, .. } = chain::follow(image, options.format, &options.access)?;
        let wanted = PlainFile::open(file)?;
        let is_it = |path: &PathBuf| PlainFile::open(path).is_ok_and(|it| it.identity == wanted.identity);
        let place = links.iter().enumerate().find_map(|(depth, link)| {
            if link.is_local() && is_it(&link.path) {
                return Some((depth, None));
            }
            let number = link.data_file.iter().chain(&link.extents).position(is_it)?;
            Some((depth, Some(number)))
        });
        let Some((depth, data_file)) = place else {
            let files = links
                .iter()
                .flat_map(|link| link.data_file.iter().chain(&link.extents).chain([&link.path]).cloned());
            let (file, image) = (file.to_owned(), image.to_owned());
            return Err(ContainerError::NotOfImage { file, image, files: files.collect() });
        };
        let format = links.first().and_then(|link| link.format).unwrap_or(ImageFormat::Raw);
        let access = options.access.clone();
        let disk_size = qemu_img::info(&links[0], &access)?.virtual_size;
        let (size, path) = (wanted.size, file.to_owned());
        Ok(Self { size, disk_size, format, path, links, depth, data_file, access })
    }

    /// What the bytes in `wanted` hold, in the order of the file. Every byte of them that is in the
    /// file is in a part.
    ///
    /// # Errors
    /// A file cannot be read, or [`ContainerError`] says why not.
    pub fn parts(&self, wanted: &[ContainerRange]) -> Result<Vec<Part>, ContainerError> {
        let mut found = Found::new(wanted, self.size);
        let rest = self.walk(&mut |piece| found.take(piece))?;
        let Some(pieces) = found.end(rest) else {
            return Err(ContainerError::TooMany { file: self.path.clone(), limit: parts::MAX_PIECES });
        };
        let reached = self.reached()?;
        Ok(pieces.into_iter().map(|piece| piece.seen_through(reached.as_ref())).collect())
    }

    /// Passes what the file holds to `each`, and returns what its other bytes are.
    fn walk(&self, each: &mut dyn FnMut(Piece)) -> Result<Holds, ContainerError> {
        let link = &self.links[self.depth];
        match (link.format, self.data_file) {
            (Some(ImageFormat::Raw), _) => {
                each(Piece::data(0, 0, self.size.min(self.disk_size)));
                Ok(Holds::Unused)
            }
            (Some(ImageFormat::Qcow2), data_file) => {
                // With a data file, the image's own file has only tables.
                let is_split = link.data_file.is_some();
                let mut here = |piece: Piece| {
                    if !is_split || piece.holds.is_of_data() == data_file.is_some() {
                        each(piece);
                    }
                };
                let walked = qcow2::walk(&PlainFile::open(&link.path)?, is_split, &mut here);
                walked.map_err(|error| self.unreadable(error))?;
                Ok(Holds::Unused)
            }
            (Some(ImageFormat::Vmdk), extent) => {
                let image = PlainFile::open(&link.path)?;
                let files = link.extents.iter().map(|path| PlainFile::open(path));
                let files = files.collect::<Result<Vec<_>, _>>()?;
                let walked = vmdk::walk(&image, &files, extent, self.disk_size, each);
                match walked.map_err(|error| self.unreadable(error))? {
                    vmdk::Known::All => Ok(Holds::Unused),
                    vmdk::Known::Part(part) => self.places(part, each),
                }
            }
            _ => self.places(DiskRange::new(0, self.disk_size), each),
        }
    }

    /// Passes the places that `qemu-img map` gives for this part of the disk.
    fn places(&self, part: DiskRange, each: &mut dyn FnMut(Piece)) -> Result<Holds, ContainerError> {
        let mut are_all_known = true;
        self.map(|range, entry| {
            let within = range.intersection(part).filter(|_| entry.data && entry.depth == self.depth as u64);
            match (within, entry.offset) {
                (Some(within), Some(offset)) => {
                    let at = offset.saturating_add(within.start.0 - range.start.0);
                    each(Piece::data(at, within.start.0, within.len()));
                }
                (Some(_), None) => are_all_known = false,
                (None, _) => {}
            }
        })?;
        if are_all_known {
            return Ok(Holds::Metadata);
        }
        let format = self.links[self.depth].format.unwrap_or(self.format);
        Err(ContainerError::NoPlaces { file: self.path.clone(), format })
    }

    /// The bytes of the disk that the images above leave to this one. `None`: all.
    fn reached(&self) -> Result<Option<IndexedRanges>, OpenError> {
        if self.depth == 0 {
            return Ok(None);
        }
        let mut reached = Vec::new();
        self.map(|range, entry| {
            if entry.depth >= self.depth as u64 || !entry.present {
                reached.push(range);
            }
        })?;
        Ok(Some(IndexedRanges::from_unsorted(reached)))
    }

    fn map(&self, mut each: impl FnMut(DiskRange, &MapEntry)) -> Result<(), OpenError> {
        let description = Description::of_chain(&self.links, &self.access)?;
        let top = &self.links[0].path;
        qemu_img::map(&description, top, MAX_CPU, self.access.force_share, |entry| {
            each(entry.within(self.disk_size), &entry);
        })
    }

    fn unreadable(&self, error: Unreadable) -> OpenError {
        let path = self.path.clone();
        match error {
            Unreadable::Io(source) => OpenError::from_io(&path, source),
            Unreadable::Foreign(Foreign { kind, remedy }) => OpenError::Foreign { path, kind, remedy },
            Unreadable::Broken(reason) => {
                let format = self.links[self.depth].format.unwrap_or(self.format);
                OpenError::Corrupt { path, format, reason }
            }
        }
    }
}

#[cfg(test)]
mod tests;
