//! Sources that know which blocks of a disk were written since its map was made.

use crate::changed::{Compared, compare, not_in_holes};
use std::io;
use std::str::FromStr;
use virt_bmap_image::{self, Access, BadUri, Image, Location, OpenError, OpenOptions};
use virt_bmap_map::rangelist;
use virt_bmap_ranges::IndexedRanges;

/// A source of the blocks that were written to a disk since its map was made, or since an earlier
/// time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// A dirty bitmap of the qcow2 image.
    Bitmap(String),
    /// An internal snapshot of the qcow2 image, which is compared with the image.
    Snapshot(String),
    /// An image of the older disk. If it is the image below, the written blocks are those that the
    /// upper image itself holds; otherwise both are compared.
    Image(Location),
    /// A checkpoint of a running domain, by the bitmaps that its backup exports.
    Checkpoint(String),
}

/// A text that names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSince {
    /// It begins with none of the words.
    #[error("expected bitmap:NAME, snapshot:NAME, image:PATH or checkpoint:NAME")]
    Word,
    /// The older image is named by a URI that is none.
    #[error(transparent)]
    Uri(#[from] BadUri),
}

impl FromStr for Since {
    type Err = BadSince;

    fn from_str(word: &str) -> Result<Self, BadSince> {
        match word.split_once(':') {
            Some((_, "")) | None => Err(BadSince::Word),
            Some(("bitmap", name)) => Ok(Self::Bitmap(name.to_owned())),
            Some(("snapshot", name)) => Ok(Self::Snapshot(name.to_owned())),
            Some(("checkpoint", name)) => Ok(Self::Checkpoint(name.to_owned())),
            Some(("image", path)) => Ok(Self::Image(Location::stated(path.as_ref())?)),
            Some(_) => Err(BadSince::Word),
        }
    }
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SinceError {
    /// The image, its bitmap, its snapshot, or the older image cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The holes of the images cannot be determined.
    #[error("cannot find out which parts of the images are holes")]
    Holes(#[source] io::Error),
    /// Only a view of a running domain has the bitmaps.
    #[error("a checkpoint needs the running domain: --domain and --live")]
    NotLive,
}

impl Since {
    /// The bytes of the disk that may have changed, including those that cannot be read. `options`
    /// are for the older image, whose format is detected.
    ///
    /// # Errors
    /// [`SinceError`]
    pub fn written(&self, image: &Image, access: &Access) -> Result<IndexedRanges, SinceError> {
        let list_options = rangelist::RangeListOptions::of(rangelist::Kind::Nbdinfo);
        let old = match self {
            Self::Bitmap(name) => {
                return Ok(image.dirty_bitmap(name, |list| rangelist::read(list, &list_options))?.spans);
            }
            Self::Checkpoint(_) => return Err(SinceError::NotLive),
            Self::Snapshot(name) => image.snapshot(name)?,
            Self::Image(old)
                if image.snapshot.is_none()
                    && image.chain.get(1).is_some_and(|below| is_same(&below.location, old)) =>
            {
                let layer = image.layer()?;
                return Ok(layer.data.iter().chain(layer.zeroes.iter()).collect());
            }
            Self::Image(old) => {
                let options = OpenOptions { access: access.clone(), ..OpenOptions::default() };
                virt_bmap_image::open(old, &options)?.source
            }
        };
        let within = not_in_holes(&*old, &*image.source).map_err(SinceError::Holes)?;
        let Compared { differs, unknown, .. } = compare(&*old, &*image.source, &within, &|_| ());
        Ok(differs.iter().chain(unknown.iter()).collect())
    }
}

fn is_same(a: &Location, b: &Location) -> bool {
    let resolved = [a, b].map(|location| location.file()?.canonicalize().ok());
    matches!(resolved, [Some(a), Some(b)] if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_parsed() {
        assert_eq!("bitmap:a:b".parse(), Ok(Since::Bitmap("a:b".into())));
        assert_eq!("snapshot:s".parse(), Ok(Since::Snapshot("s".into())));
        assert_eq!("checkpoint:c".parse(), Ok(Since::Checkpoint("c".into())));
        assert_eq!("image:/a/b.raw".parse(), Ok(Since::Image(Location::File("/a/b.raw".into()))));
        for word in ["", "monday", "bitmap:", "image", "file:/a"] {
            assert_eq!(word.parse::<Since>(), Err(BadSince::Word), "{word}");
        }
    }
}
