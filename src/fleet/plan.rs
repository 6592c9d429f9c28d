//! Finds the guests among images and below directories: each image is one guest.

use super::error::FleetError;
use super::{Guest, GuestId};
use crate::mapper::GuestDisk;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_image::ImageFormat;

/// Deepest directory below the one that was named.
const MAX_DEPTH: usize = 32;

/// Suffixes of images that are no format's name.
const MORE_SUFFIXES: [&str; 3] = ["img", "vhd", "dd"];

/// The guests of these images and directories, ordered by id. Paths become absolute.
///
/// An image that is named is a guest whatever it is called. Below a directory those are whose suffix is
/// that of an image format, but for the parts of a VMDK that its descriptor names; symbolic links to files
/// are followed, those to directories are not. What has two names is one guest.
///
/// The id is the path below the directory without its suffix, or the file's name; where two would have the
/// same, each gets a part of its path's hash.
///
/// # Errors
/// When a path is not there or a directory cannot be read, and when there is no image at all.
pub fn plan(places: &[PathBuf]) -> Result<Vec<Guest>, FleetError> {
    let mut found: Vec<Found> = Vec::new();
    for place in places {
        let metadata = place.metadata().map_err(FleetError::io(place, "could not be looked at"))?;
        let place = std::path::absolute(place).map_err(FleetError::io(place, "has no absolute path"))?;
        if metadata.is_dir() {
            walk(&place, &place, 0, &mut found)?;
        } else {
            let name = place.file_name().unwrap_or(place.as_os_str()).into();
            found.push(Found { path: place, name });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup_by(|a, b| a.path == b.path);
    if found.is_empty() {
        return Err(FleetError::NoGuest { places: places.to_vec() });
    }
    let mut uses: HashMap<GuestId, u32> = HashMap::new();
    for one in &found {
        *uses.entry(one.id()).or_default() += 1;
    }
    let mut guests: Vec<Guest> = found
        .into_iter()
        .map(|one| {
            let id = one.id();
            let id = if uses[&id] > 1 { id.with_hash_of(one.path.as_os_str().as_bytes()) } else { id };
            Guest { id, disks: vec![GuestDisk { path: one.path, format: None }] }
        })
        .collect();
    guests.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(guests)
}

/// An image.
struct Found {
    /// Absolute.
    path: PathBuf,
    /// What it is called below the directory that was named.
    name: PathBuf,
}

impl Found {
    fn id(&self) -> GuestId {
        let name = if is_image(&self.name) { self.name.with_extension("") } else { self.name.clone() };
        GuestId::of_name(name.as_os_str().as_bytes())
    }
}

fn walk(top: &Path, directory: &Path, depth: usize, found: &mut Vec<Found>) -> Result<(), FleetError> {
    let unreadable = || FleetError::io(directory, "could not be listed");
    for entry in directory.read_dir().map_err(unreadable())? {
        let entry = entry.map_err(unreadable())?;
        let path = entry.path();
        if entry.file_name().as_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth < MAX_DEPTH {
                walk(top, &path, depth + 1, found)?;
            }
        } else if is_image(&path) && !is_part(&path) && path.metadata().is_ok_and(|data| data.is_file()) {
            let name = path.strip_prefix(top).unwrap_or(&path).to_owned();
            found.push(Found { path, name });
        }
    }
    Ok(())
}

/// Whether the suffix is one that images have.
fn is_image(path: &Path) -> bool {
    let Some(suffix) = path.extension().and_then(|suffix| suffix.to_str()) else { return false };
    let suffix = suffix.to_ascii_lowercase();
    suffix.parse::<ImageFormat>().is_ok() || MORE_SUFFIXES.contains(&&*suffix)
}

/// Whether it is called like a part of a VMDK: `disk-flat.vmdk`, `disk-s001.vmdk`.
fn is_part(path: &Path) -> bool {
    let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { return false };
    let is_vmdk = path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("vmdk"));
    let Some((_, last)) = stem.rsplit_once('-') else { return false };
    let is_numbered = last.len() == 4
        && last.starts_with(['s', 'f', 'p'])
        && last[1..].bytes().all(|digit| digit.is_ascii_digit());
    is_vmdk && (is_numbered || ["flat", "delta", "sesparse", "ctk", "rdm", "rdmp"].contains(&last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn ids(guests: &[Guest]) -> Vec<&str> {
        guests.iter().map(|guest| guest.id.as_str()).collect()
    }

    #[test]
    fn images_are_found_below_directories() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("rack1/deep")).unwrap();
        fs::create_dir(at(".snapshots")).unwrap();
        for name in [
            "web1.qcow2",
            "README",
            "rack1/web1.raw",
            "rack1/deep/db.VMDK",
            "rack1/deep/db-flat.vmdk",
            "rack1/deep/db-s001.vmdk",
            "rack1/my-disk.vmdk",
            ".snapshots/old.raw",
            "a b.img",
        ] {
            fs::write(at(name), b"").unwrap();
        }
        std::os::unix::fs::symlink("..", at("rack1/loop")).unwrap();
        std::os::unix::fs::symlink("missing", at("dangling.raw")).unwrap();
        let guests = plan(&[dir.path().to_owned(), at("rack1/../web1.qcow2")]).unwrap();
        // The same file by another path is another guest: paths are not resolved.
        let guests_once = plan(&[dir.path().to_owned(), at("web1.qcow2")]).unwrap();
        assert_eq!(ids(&guests_once), ["a%20b", "rack1+deep+db", "rack1+my-disk", "rack1+web1", "web1"]);
        assert_eq!(guests.len(), 6);
        assert!(guests.iter().all(|guest| guest.disks[0].path.is_absolute()));
    }

    #[test]
    fn ids_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("disk.qcow2"), b"").unwrap();
        }
        fs::write(at("odd"), b"").unwrap();
        let guests = plan(&[at("a/disk.qcow2"), at("b/disk.qcow2"), at("odd")]).unwrap();
        assert!(guests[0].id.as_str().starts_with("disk~") && guests[1].id.as_str().starts_with("disk~"));
        assert_ne!(guests[0].id, guests[1].id);
        assert_eq!(guests[2].id.as_str(), "odd");
        assert!(plan(&[at("missing")]).unwrap_err().to_string().contains("could not be looked at"));
        fs::create_dir(at("empty")).unwrap();
        assert!(plan(&[at("empty")]).unwrap_err().to_string().contains("no guest was found in"));
    }
}
