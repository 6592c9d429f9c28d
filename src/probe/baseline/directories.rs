//! Unchanged directories: their entries are those that the baseline has there.
//!
//! When the agent finds an unchanged directory, the unchanged objects in it are reused, and so are
//! those in all directories below it that are unchanged throughout. The other entries go to the
//! agent as a host listing.

use super::Baseline;
use std::collections::{BTreeMap, HashMap, HashSet};
use virt_bmap_agent_protocol::record::ObjectKind;
use virt_bmap_agent_protocol::{Entry, Listing, Listings};
use virt_bmap_map::{Kind, ObjectId};

/// Unchanged directories, by inode.
#[derive(Debug, Default)]
pub struct Directories(HashMap<u64, Directory>);

/// An unchanged directory.
#[derive(Debug)]
pub(in crate::probe) struct Directory {
    /// The object in the baseline.
    pub(in crate::probe) id: ObjectId,
    /// The unchanged files and symbolic links in it.
    pub(in crate::probe) files: Vec<ObjectId>,
    /// The directories in it that are unchanged throughout, with all below them.
    pub(in crate::probe) directories: Vec<u64>,
    /// Its other entries, until the host listings are made of them.
    entries: Vec<Entry>,
    /// How many objects are reused with it.
    objects: u32,
    /// Whether its parent directory may have changed.
    is_top: bool,
}

impl Directories {
    /// The unchanged directories and files with these inodes, and the host listings of the
    /// directories that the agent may find. Both are empty if the agent has no room for the
    /// listings. `has_streams`: an object with a colon in its name may be a part of another one,
    /// which the agent reports with that.
    pub(in crate::probe) fn new(
        baseline: &Baseline,
        device: &[u8],
        directories: &HashMap<u64, ObjectId>,
        files: &HashMap<u64, ObjectId>,
        has_streams: bool,
    ) -> (Self, Listings) {
        let name = |id: ObjectId| baseline.map.object(id).name();
        // The root is always listed: it has no parent.
        let paths: BTreeMap<&[u8], u64> = directories
            .iter()
            .map(|(inode, id)| (name(*id).path, *inode))
            .filter(|(path, _)| *path != b"/")
            .collect();
        let mut all: HashMap<u64, Directory> = paths
            .values()
            .filter_map(|inode| Some((*inode, Directory::new(*directories.get(inode)?))))
            .collect();
        let mut below: HashMap<u64, Vec<u64>> = HashMap::new();
        let kinds = [
            (Kind::Directory, ObjectKind::Directory),
            (Kind::File, ObjectKind::File),
            (Kind::Symlink, ObjectKind::Symlink),
        ];
        let objects = kinds
            .iter()
            .flat_map(|(kind, reported)| baseline.on(device, *kind).map(|object| (object, *reported)));
        for (object, kind) in objects {
            let Some((parent, name)) = object.name().in_directory() else { continue };
            let inode = object.attributes().inode.unwrap_or(0);
            let is_directory = kind == ObjectKind::Directory;
            let is_known = is_directory && all.contains_key(&inode);
            let Some(parent) =
                paths.get(parent).and_then(|parent| all.get_mut(parent).map(|it| (*parent, it)))
            else {
                continue;
            };
            if is_known {
                below.entry(parent.0).or_default().push(inode);
            } else if !is_directory && files.get(&inode) == Some(&object.id()) {
                parent.1.files.push(object.id());
            } else {
                parent.1.entries.push(Entry { inode, kind, name: name.to_vec() });
            }
        }
        if has_streams {
            all.values_mut().for_each(|directory| leave_streams_out(&mut directory.entries));
        }
        // From the bottom to the top.
        for inode in paths.values().rev() {
            let Some(mut directory) = all.remove(inode) else { continue };
            for inside in below.remove(inode).unwrap_or_default() {
                let Some(it) = all.get_mut(&inside) else { continue };
                it.is_top = false;
                if it.entries.is_empty() {
                    directory.directories.push(inside);
                    directory.objects = directory.objects.saturating_add(1).saturating_add(it.objects);
                } else {
                    let (_, name) = name(it.id).in_directory().unwrap_or_default();
                    let (kind, name) = (ObjectKind::Directory, name.to_vec());
                    directory.entries.push(Entry { inode: inside, kind, name });
                }
            }
            let files = u32::try_from(directory.files.len()).unwrap_or(u32::MAX);
            directory.objects = directory.objects.saturating_add(files);
            all.insert(*inode, directory);
        }
        let is_met = |directory: &Directory| directory.is_top || !directory.entries.is_empty();
        let met = all.iter_mut().filter(|(_, directory)| is_met(directory));
        let listings: Listings = met
            .map(|(inode, directory)| {
                let entries = std::mem::take(&mut directory.entries);
                (*inode, Listing { objects: directory.objects, entries })
            })
            .collect();
        if listings.fit() { (Self(all), listings) } else { Default::default() }
    }

    /// Whether there are no directories.
    pub(in crate::probe) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The inodes of all of them.
    pub(in crate::probe) fn inodes(&self) -> impl Iterator<Item = u64> {
        self.0.keys().copied()
    }

    /// The directory with this inode.
    pub(in crate::probe) fn get(&self, inode: u64) -> Option<&Directory> {
        self.0.get(&inode)
    }
}

/// Removes the streams of files from the entries of a directory.
fn leave_streams_out(entries: &mut Vec<Entry>) {
    if !entries.iter().any(|entry| entry.name.contains(&b':')) {
        return;
    }
    let names: HashSet<(u64, Vec<u8>)> =
        entries.iter().map(|entry| (entry.inode, entry.name.clone())).collect();
    entries.retain(|entry| {
        let colons = entry.name.iter().enumerate().filter(|(_, byte)| **byte == b':');
        let mut files = colons.map(|(at, _)| (entry.inode, entry.name[..at].to_vec()));
        !files.any(|file| names.contains(&file))
    });
}

impl Directory {
    fn new(id: ObjectId) -> Self {
        Self { id, files: Vec::new(), directories: Vec::new(), entries: Vec::new(), objects: 0, is_top: true }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BASELINE_TREE, CLEAN, DEVICE, TOP, known_in_tree, tree};
    use super::*;

    #[test]
    fn host_listings_have_the_changed_entries_only() {
        let baseline = tree();
        let (directories, files) = known_in_tree(&baseline);
        let (_, mut listings) = Directories::new(&baseline, DEVICE, &directories, &files, false);
        assert_eq!(listings.take(CLEAN), None, "all of it comes with the one above");
        let top = listings.take(TOP).unwrap();
        // Two files and a directory in it, and another file.
        assert_eq!(top.objects, 4);
        let told = |entries: &[Entry]| -> Vec<(u64, bool, String)> {
            let name = |entry: &Entry| String::from_utf8_lossy(&entry.name).into_owned();
            let mut told: Vec<_> = entries
                .iter()
                .map(|entry| (entry.inode, entry.kind == ObjectKind::Directory, name(entry)))
                .collect();
            told.sort();
            told
        };
        let inode = |path: &str| BASELINE_TREE.iter().find(|(_, known, _)| *known == path).unwrap().2;
        assert_eq!(
            told(&top.entries),
            [
                (inode("/top/listed"), true, "listed".to_owned()),
                (inode("/top/partly"), true, "partly".to_owned()),
                (inode("/top/changed"), false, "changed".to_owned()),
            ]
        );
        let partly = listings.take(inode("/top/partly")).unwrap();
        assert_eq!((partly.objects, told(&partly.entries).len()), (0, 1));
        // One is below a listed directory, the other one is in the root.
        let below = listings.take(inode("/top/listed/below")).unwrap();
        assert_eq!((below.objects, below.entries.len()), (1, 0));
        assert_eq!(listings, Listings::default());
    }
}
