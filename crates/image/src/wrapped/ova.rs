//! The disks of an appliance (OVA), read where they are in the archive.
//!
//! A disk's path is that of the archive, followed by the disk's name in it, as if the archive were
//! a directory: `appliance.ova/disk1.vmdk`.

use crate::chain::{self, Trust};
use crate::file::PlainFile;
use crate::link::{Link, Node};
use crate::{Image, Location, OpenError, OpenOptions, open_chain};
use std::io;
use std::path::{Path, PathBuf};
use virt_bmap_archives::ReadAt;
use virt_bmap_archives::ova::{self, Member, Ova, OvaError};

/// A disk of an appliance.
pub(crate) struct Disk {
    archive: PathBuf,
    file: PlainFile,
    member: Member,
}

impl Disk {
    /// The disk at `path`, if that leads through an archive. `None` if it does not.
    ///
    /// # Errors
    /// The archive is no appliance, or has no such disk.
    pub(crate) fn named(path: &Path) -> Result<Option<Self>, OpenError> {
        // A path through a file does not exist.
        let mut above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        let Some(archive) = above.find(|above| above.exists()).filter(|above| above.is_file()) else {
            return Ok(None);
        };
        let Some(file) = super::file(archive) else { return Ok(None) };
        let (Some(Ova { disks, .. }), Ok(name)) = (read(archive, &file)?, path.strip_prefix(archive)) else {
            return Ok(None);
        };
        let member = disks.into_iter().find(|disk| Path::new(&disk.name) == name);
        let missing = || {
            let name = name.to_string_lossy().into_owned();
            OpenError::Ova { path: archive.to_owned(), reason: OvaError::Missing { name } }
        };
        let member = member.ok_or_else(missing)?;
        Ok(Some(Self { archive: archive.to_owned(), file, member }))
    }

    /// The only disk of an archive.
    ///
    /// # Errors
    /// The archive is no appliance, or has several disks.
    pub(crate) fn only(path: &Path, file: PlainFile) -> Result<Self, OpenError> {
        let disks = read(path, &file)?.map(|ova| ova.disks).unwrap_or_default();
        match <[Member; 1]>::try_from(disks) {
            Ok([member]) => Ok(Self { archive: path.to_owned(), file, member }),
            Err(disks) => {
                let first = disks.first().map(|disk| path.join(&disk.name)).unwrap_or_default();
                Err(OpenError::SeveralDisks { path: path.to_owned(), count: disks.len(), first })
            }
        }
    }

    /// Opens the disk, which was named by `path`.
    ///
    /// # Errors
    /// As for [`open`](crate::open); also if it refers to another file.
    pub(crate) fn open(self, path: &Path, options: &OpenOptions) -> Result<Image, OpenError> {
        let Self { archive, file, member: Member { name, offset, size } } = self;
        if size == 0 {
            return Err(OpenError::Empty { path: archive.join(name) });
        }
        let archive = std::path::absolute(&archive).map_err(|error| OpenError::from_io(path, error))?;
        let inside = archive.join(name);
        let node = Node::Part { archive, offset, size };
        let link = Link { format: options.format, ..Link::new(inside, node) };
        let chain = chain::follow_file(file.part(offset, size), link, Trust::Alone, &options.access)?;
        // What the user named may be the archive; its name promises nothing.
        let image = open_chain(&chain.links[0].path.clone(), chain, options)?;
        Ok(Image { location: Location::File(path.to_owned()), ..image })
    }
}

/// The disks of the appliance that `file` is, at `path`. `None` if it is none.
///
/// # Errors
/// It cannot be used, or has several guests.
pub(crate) fn disks(path: &Path, file: &PlainFile) -> Result<Option<Vec<Location>>, OpenError> {
    let Some(Ova { disks, systems }) = read(path, file)? else { return Ok(None) };
    let named: Vec<PathBuf> = disks.iter().map(|disk| path.join(&disk.name)).collect();
    if systems > 1 {
        let first = named.into_iter().next().unwrap_or_default();
        return Err(OpenError::SeveralGuests { path: path.to_owned(), count: systems, first });
    }
    Ok(Some(named.into_iter().map(Location::File).collect()))
}

/// Whether a file is a tar archive.
pub(crate) fn is_archive(path: &Path, file: &PlainFile) -> Result<bool, OpenError> {
    let head = file.read(0, 512).map_err(|error| OpenError::from_io(path, error))?;
    Ok(ova::is_tar(&head))
}

/// The appliance that a file is. `None` if it is no tar archive.
fn read(path: &Path, file: &PlainFile) -> Result<Option<Ova>, OpenError> {
    if !is_archive(path, file)? {
        return Ok(None);
    }
    ova::read(file).map(Some).map_err(|reason| OpenError::Ova { path: path.to_owned(), reason })
}

impl ReadAt for PlainFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.read(offset, buf.len())?;
        if bytes.len() < buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.copy_from_slice(&bytes);
        Ok(())
    }
}
