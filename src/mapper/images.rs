//! The descriptions and warnings of images in a map's header.

use crate::geometry::Geometry;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use virt_bmap_image::{Image, Location};
use virt_bmap_map::{Cause, ImageFile, ImageInfo, Warning};

/// The description of these images in a map's header.
pub fn described(images: &[Image]) -> Vec<ImageInfo> {
    let file = |location: &Location, format: Option<virt_bmap_image::ImageFormat>| ImageFile {
        name: location.name().into_vec(),
        format: format.map_or_else(|| "unknown".to_owned(), |format| format.to_string()),
    };
    let info = |(disk, image): (u16, &Image)| ImageInfo {
        disk,
        size: image.source.size(),
        sector: Geometry::of(&*image.source).sector,
        image: file(&image.location, Some(image.format)),
        snapshot: image.snapshot.clone(),
        chain: image.chain.iter().skip(1).map(|below| file(&below.location, below.format)).collect(),
    };
    (1..).zip(images).map(info).collect()
}

/// The map's warning for a warning of the image.
pub(super) fn image_warning(warning: &virt_bmap_image::Warning) -> Warning {
    let (path, cause) = match warning {
        virt_bmap_image::Warning::MayBeTorn { path } => (path, Cause::ImageMayBeTorn),
        virt_bmap_image::Warning::RoundedUp { path, size, rounded } => {
            (path, Cause::ImageRoundedUp { size: *size, rounded: *rounded })
        }
        virt_bmap_image::Warning::Unclean { path } => (path, Cause::ImageUnclean),
        virt_bmap_image::Warning::Unread { path, sectors } => {
            (path, Cause::ImageUnread { sectors: *sectors })
        }
    };
    Warning::on_image(path.as_os_str().as_bytes(), cause)
}
