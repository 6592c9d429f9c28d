//! Finds guests: each image, named or found in a directory, is one guest.

use super::error::FleetError;
use super::{Guest, GuestId};
use crate::mapper::GuestDisk;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_image::{ImageFormat, Location};

/// Maximum depth of directories that are searched.
const MAX_DEPTH: usize = 32;

/// Suffixes of images, besides the names of the formats.
const MORE_SUFFIXES: [&str; 5] = ["img", "vhd", "dd", "ova", "e01"];

/// The guests of these images and directories, ordered by ID. Paths become absolute.
///
/// A named image is a guest whatever its suffix. In a directory, a file is a guest if its suffix is
/// that of an image format and its name is not that of a part of a VMDK. Symbolic links to files
/// are followed, links to directories are not. A path that was found twice is one guest.
///
/// The ID is the path below the directory without its suffix, or the file's name. If two guests
/// would have the same ID, a part of the hash of the path is appended to each.
///
/// # Errors
/// If a path does not exist, a directory cannot be read, or no image is found.
pub fn plan(places: &[PathBuf]) -> Result<Vec<Guest>, FleetError> {
    let mut found: Vec<Found> = Vec::new();
    for place in places {
        let metadata =
            place.metadata().map_err(FleetError::io(place, "cannot find this file or directory"))?;
        let place =
            std::path::absolute(place).map_err(FleetError::io(place, "cannot make this path absolute"))?;
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
            Guest { id, disks: vec![GuestDisk::new(Location::File(one.path), None)] }
        })
        .collect();
    guests.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(guests)
}

/// An image.
struct Found {
    /// Absolute.
    path: PathBuf,
    /// Its path below the directory that was given.
    name: PathBuf,
}

impl Found {
    fn id(&self) -> GuestId {
        let name = if is_image(&self.name) { self.name.with_extension("") } else { self.name.clone() };
        GuestId::of_name(name.as_os_str().as_bytes())
    }
}

fn walk(top: &Path, directory: &Path, depth: usize, found: &mut Vec<Found>) -> Result<(), FleetError> {
    let unreadable = || FleetError::io(directory, "cannot list this directory");
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

/// Whether the suffix is that of an image.
fn is_image(path: &Path) -> bool {
    let Some(suffix) = path.extension().and_then(|suffix| suffix.to_str()) else { return false };
    let suffix = suffix.to_ascii_lowercase();
    suffix.parse::<ImageFormat>().is_ok() || MORE_SUFFIXES.contains(&&*suffix)
}

/// Whether the name is that of a part of a VMDK: `disk-flat.vmdk`, `disk-s001.vmdk`.
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
            "evidence.E01",
            "evidence.E02",
        ] {
            fs::write(at(name), b"").unwrap();
        }
        std::os::unix::fs::symlink("..", at("rack1/loop")).unwrap();
        std::os::unix::fs::symlink("missing", at("dangling.raw")).unwrap();
        let guests = plan(&[dir.path().to_owned(), at("rack1/../web1.qcow2")]).unwrap();
        // The same file by another path is another guest: paths are not resolved.
        let guests_once = plan(&[dir.path().to_owned(), at("web1.qcow2")]).unwrap();
        assert_eq!(
            ids(&guests_once),
            ["a%20b", "evidence", "rack1+deep+db", "rack1+my-disk", "rack1+web1", "web1"]
        );
        assert_eq!(guests.len(), 7);
        assert!(guests.iter().all(|guest| guest.disks[0].location.file().unwrap().is_absolute()));
    }

    #[test]
    fn equal_ids_become_unique() {
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
        assert!(
            plan(&[at("missing")]).unwrap_err().to_string().contains("cannot find this file or directory")
        );
        fs::create_dir(at("empty")).unwrap();
        assert!(plan(&[at("empty")]).unwrap_err().to_string().contains("no guest found in"));
    }
}
