//! Finds all files that an image needs, before qemu does, and refuses those that must not be
//! opened.
//!
//! An image names its backing file or its extents. If the user has stated the image's format, these
//! references are trusted. A *detected* format is not enough: the guest of a raw disk can write any
//! header to it, and qemu would then open whatever that header names on the host. So with a
//! detected format every file in the chain must be a plain local file, and qemu gets the whole
//! chain instead of following it itself.

use super::access::Access;
use super::error::FileRole;
use super::file::PlainFile;
use super::foreign::{self, Foreign};
use super::format::{format_by_name, suffix};
use super::link::{Link, Node};
use super::qemu_img::{self, Info};
use super::references::{self, Reference, Unreadable};
use super::{ImageFormat, OpenError, lock, vmdk};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Most images in a chain.
const MAX_LINKS: usize = 64;

/// Whether the references of an image are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The user has stated the format: references are followed as far as they are local files, and
    /// qemu opens the others.
    Stated,
    /// The format was detected: every reference must be a plain local file.
    Found,
    /// The image is inside another file, and must not refer to any.
    Alone,
}

/// A chain of images, followed to its end.
#[derive(Debug)]
pub(super) struct Chain {
    /// From the image itself down; never empty.
    pub(super) links: Vec<Link>,
    /// The image itself, open.
    pub(super) top: PlainFile,
    /// The images among them that were not closed as they should be.
    pub(super) dirty: Vec<PathBuf>,
}

/// Follows the image at `path` down.
///
/// # Errors
/// [`OpenError`] names the file and the reason.
pub(super) fn follow(path: &Path, stated: Option<ImageFormat>, access: &Access) -> Result<Chain, OpenError> {
    let trust = if stated.is_some() { Trust::Stated } else { Trust::Found };
    let absolute = std::path::absolute(path).map_err(|error| OpenError::from_io(path, error))?;
    let file = PlainFile::open(&absolute)?;
    let node = if file.is_device { Node::Device } else { Node::File };
    follow_file(file, Link { format: stated, ..Link::new(absolute, node) }, trust, access)
}

/// Follows the image in `file` down, of which `link` has the path, the node and the format, if it
/// is known.
///
/// # Errors
/// [`OpenError`] names the file and the reason.
pub(super) fn follow_file(
    file: PlainFile,
    link: Link,
    trust: Trust,
    access: &Access,
) -> Result<Chain, OpenError> {
    let path = link.path.clone();
    let mut walk = Walk { trust, access, links: Vec::new(), seen: Vec::new(), dirty: Vec::new() };
    let mut next = walk.link(&file, link)?;
    while let Some(below) = next {
        if walk.links.len() == MAX_LINKS {
            return Err(OpenError::TooDeep { path, limit: MAX_LINKS });
        }
        next = match below {
            Below::Local { file, path, format } => {
                let node = if file.is_device { Node::Device } else { Node::File };
                walk.link(&file, Link { format, ..Link::new(path, node) })?
            }
            Below::Other(link) => {
                walk.links.push(link);
                None
            }
        };
    }
    Ok(Chain { links: walk.links, top: file, dirty: walk.dirty })
}

struct Walk<'a> {
    trust: Trust,
    access: &'a Access,
    links: Vec<Link>,
    /// Identities of the images so far.
    seen: Vec<(u64, u64)>,
    dirty: Vec<PathBuf>,
}

/// The next image below in the chain.
enum Below {
    /// A local file, and its format if the image states it.
    Local { file: PlainFile, path: PathBuf, format: Option<ImageFormat> },
    /// Anything else that a trusted image names.
    Other(Link),
}

impl Walk<'_> {
    /// Adds `file` as the next image of the chain. `link` has its format if the user or the image
    /// above states it.
    fn link(&mut self, file: &PlainFile, mut link: Link) -> Result<Option<Below>, OpenError> {
        let (path, known) = (link.path.clone(), link.format);
        if self.seen.contains(&file.identity) {
            return Err(OpenError::Loop { path });
        }
        self.seen.push(file.identity);
        let fail = |error| OpenError::from_io(&path, error);
        if !self.access.force_share && lock::is_locked(&file.file) {
            return Err(OpenError::Locked { path });
        }

        link.format = match known {
            Some(format) => Some(format),
            None => {
                if let Some(Foreign { kind, remedy }) = foreign::of(&path, file).map_err(fail)? {
                    return Err(OpenError::Foreign { path, kind, remedy });
                }
                references::sniff(file).map_err(fail)?
            }
        };
        let is_sniffed = link.format.is_some();
        let format = match link.format {
            Some(format) => format,
            None => found(&self.ask(&link)?, &link, file)?,
        };
        link.format = Some(format);
        let references = references::read(file, format).map_err(|error| match error {
            Unreadable::Io(source) => OpenError::from_io(&path, source),
            Unreadable::Foreign(Foreign { kind, remedy }) => {
                OpenError::Foreign { path: path.clone(), kind, remedy }
            }
            Unreadable::Broken(reason) => OpenError::Corrupt { path: path.clone(), format, reason },
        })?;
        link.is_encrypted = references.is_encrypted;
        if link.is_encrypted && self.access.key.is_none() {
            return Err(OpenError::Encrypted { path });
        }
        if let (Trust::Alone, Some(first)) = (self.trust, references.files.first()) {
            let (reference, role) = (first.name.clone().into(), first.role);
            return Err(OpenError::NotAlone { path, reference, role });
        }
        let mut unexpected = references.files.iter().filter(|reference| !self.is_allowed(&link, reference));
        if let (None, Trust::Found, Some(first)) = (known, self.trust, unexpected.next())
            && (file.is_device || is_raw_by_name(&path))
        {
            let (reference, role) = (first.name.clone().into(), first.role);
            return Err(match self.links.last() {
                None => OpenError::RawByName { path, format, reference, role },
                Some(referrer) => {
                    let named =
                        Reference { name: path.into(), role: FileRole::Backing, format: None, needed: 0 };
                    self.untrusted(referrer, &named, "raw by its name but not by its content")
                }
            });
        }
        enough(&path, file.size, references.needed)?;

        let mut below = None;
        for reference in references.files {
            match reference.role {
                FileRole::Backing => below = Some(self.below(&link, &reference)?),
                FileRole::Extent => {
                    let extent = self.data_file(&link, &reference)?;
                    link.extents.extend(extent);
                }
                FileRole::DataFile => link.data_file = self.data_file(&link, &reference)?,
            }
        }
        // All its references are known to be harmless, so qemu may open it now.
        if is_sniffed && format != ImageFormat::Raw {
            self.ask(&link)?;
        }
        self.links.push(link);
        Ok(below)
    }

    /// Detects a format with qemu-img, or confirms it.
    fn ask(&mut self, link: &Link) -> Result<Info, OpenError> {
        let info = qemu_img::info(link, self.access)?;
        if info.dirty_flag {
            self.dirty.push(link.path.clone());
        }
        Ok(info)
    }

    /// Opens the backing file that `referrer` names.
    fn below(&self, referrer: &Link, reference: &Reference) -> Result<Below, OpenError> {
        let format = match reference.format.as_deref().map(str::parse) {
            None => None,
            Some(Ok(format)) => Some(format),
            Some(Err(_)) if self.trust == Trust::Stated => None,
            Some(Err(_)) => {
                return Err(self.untrusted(referrer, reference, "said to be of a format that is not known"));
            }
        };
        Ok(match self.open(referrer, reference)? {
            Some((path, file)) => Below::Local { file, path, format },
            None => Below::Other(Link { format, ..Link::new(reference.name.clone().into(), Node::Other) }),
        })
    }

    /// The path of the extent or data file that `referrer` names; `None` if qemu has to open it.
    fn data_file(&self, referrer: &Link, reference: &Reference) -> Result<Option<PathBuf>, OpenError> {
        if self.trust == Trust::Found
            && reference.role == FileRole::Extent
            && leaves_directory(&reference.name)
        {
            return Err(self.untrusted(referrer, reference, "not in the descriptor's own directory"));
        }
        let Some((path, file)) = self.open(referrer, reference)? else { return Ok(None) };
        if self.trust == Trust::Found && reference.role == FileRole::Extent {
            let real = |path: &Path| path.canonicalize().map_err(|error| OpenError::from_io(path, error));
            let directory = referrer.path.parent().unwrap_or(Path::new("/"));
            if !real(&path)?.starts_with(real(directory)?) {
                return Err(self.untrusted(
                    referrer,
                    reference,
                    "a link out of the descriptor's own directory",
                ));
            }
            if vmdk::is_nested(&file).map_err(|error| OpenError::from_io(&path, error))? {
                return Err(self.untrusted(referrer, reference, "not an extent but another descriptor"));
            }
        }
        if !self.access.force_share && lock::is_locked(&file.file) {
            return Err(OpenError::Locked { path });
        }
        enough(&path, file.size, reference.needed)?;
        Ok(Some(path))
    }

    /// Opens a file that `referrer` names. `None` if it is not a local file and the image is
    /// trusted.
    fn open(
        &self,
        referrer: &Link,
        reference: &Reference,
    ) -> Result<Option<(PathBuf, PlainFile)>, OpenError> {
        let refuse = |reason| match self.trust {
            Trust::Stated => Ok(None),
            Trust::Found | Trust::Alone => Err(self.untrusted(referrer, reference, reason)),
        };
        if has_protocol(&reference.name) {
            return refuse("not a plain local file");
        }
        let path = referrer.path.parent().unwrap_or(Path::new("/")).join(&reference.name);
        match PlainFile::open(&path) {
            Ok(file) if file.is_device && !self.is_allowed(referrer, reference) => match self.trust {
                Trust::Stated => Ok(Some((path, file))),
                Trust::Found | Trust::Alone => refuse("a device"),
            },
            Ok(file) => Ok(Some((path, file))),
            Err(OpenError::NotFound { path }) => {
                Err(OpenError::Missing { path, referrer: referrer.path.clone(), role: reference.role })
            }
            Err(OpenError::NotAFile { .. } | OpenError::Directory { .. }) => refuse("not a plain file"),
            Err(error) => Err(error),
        }
    }

    /// Whether the user allows an image of any format to name this file.
    fn is_allowed(&self, referrer: &Link, reference: &Reference) -> bool {
        let path = referrer.path.parent().unwrap_or(Path::new("/")).join(&reference.name);
        reference.role != FileRole::Extent
            && self.access.allowed.iter().any(|allowed| allowed.contains(&path))
    }

    fn untrusted(&self, referrer: &Link, reference: &Reference, reason: &'static str) -> OpenError {
        let top = self.links.first().unwrap_or(referrer);
        OpenError::Untrusted {
            referrer: referrer.path.clone(),
            reference: reference.name.clone().into(),
            role: reference.role,
            reason,
            format: top.format.unwrap_or(ImageFormat::Raw),
        }
    }
}

/// The format that qemu-img detected in a file whose format this crate does not recognise.
fn found(info: &Info, link: &Link, file: &PlainFile) -> Result<ImageFormat, OpenError> {
    let unsupported = |kind| OpenError::Unsupported { path: link.path.clone(), kind };
    match info.format.parse() {
        // qemu looks at a file's beginning only.
        Ok(ImageFormat::Raw) if format_by_name(&link.path) == Some(ImageFormat::Vpc) => {
            let is_vhd = references::has_vhd_footer(file).map_err(|e| OpenError::from_io(&link.path, e))?;
            Ok(if is_vhd { ImageFormat::Vpc } else { ImageFormat::Raw })
        }
        Ok(ImageFormat::Raw) if format_by_name(&link.path) == Some(ImageFormat::Dmg) => {
            let is_dmg = references::has_dmg_trailer(file).map_err(|e| OpenError::from_io(&link.path, e))?;
            Ok(if is_dmg { ImageFormat::Dmg } else { ImageFormat::Raw })
        }
        // qemu detects one of these and we did not, so its references are not known.
        Ok(ImageFormat::Qcow | ImageFormat::Qcow2 | ImageFormat::Qed | ImageFormat::Vmdk) => {
            Err(unsupported("of a format that cannot be told for sure"))
        }
        Ok(format) => Ok(format),
        Err(_) => Err(unsupported("of a format that is not known")),
    }
}

fn enough(path: &Path, actual: u64, needed: u64) -> Result<(), OpenError> {
    if actual < needed {
        return Err(OpenError::Truncated { path: path.to_owned(), needed, actual });
    }
    Ok(())
}

/// Whether qemu reads a name as `protocol:rest`: a colon comes before any slash.
fn has_protocol(name: &OsStr) -> bool {
    name.as_bytes().iter().find(|byte| matches!(byte, b':' | b'/')) == Some(&b':')
}

/// Whether a relative name could lead out of the directory that it is relative to.
fn leaves_directory(name: &OsStr) -> bool {
    use std::path::Component::{CurDir, Normal};
    !Path::new(name).components().all(|part| matches!(part, CurDir | Normal(_)))
}

/// Whether the name of a file promises a raw image.
fn is_raw_by_name(path: &Path) -> bool {
    const SUFFIXES: [&str; 5] = ["img", "raw", "dd", "iso", "bin"];
    suffix(path).is_some_and(|suffix| SUFFIXES.contains(&suffix.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_is_a_protocol() {
        for name in ["nbd:unix:/x", "json:{}", "file:a", "C:\\a.vmdk", ":"] {
            assert!(has_protocol(name.as_ref()), "{name}");
        }
        for name in ["a", "./nbd:x", "/a:b", "d/json:{}"] {
            assert!(!has_protocol(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn only_names_below_the_directory_stay_in_it() {
        for name in ["/a", "../a", "b/../../a", ".."] {
            assert!(leaves_directory(name.as_ref()), "{name}");
        }
        for name in ["a", "./a", "b/a", "..a"] {
            assert!(!leaves_directory(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn a_suffix_promises_a_raw_image() {
        assert!(is_raw_by_name("a.IMG".as_ref()));
        assert!(!is_raw_by_name("a.qcow2".as_ref()));
        assert!(!is_raw_by_name("img".as_ref()));
    }
}
