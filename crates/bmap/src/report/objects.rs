//! The objects as columns: names, measures and attributes.
//!
//! A path is split into its directory, with the slash at its end, and the rest. The directories are
//! a tree, so that the page can add up what is below each of them.

use hashbrown::HashMap;
use std::fmt;

use super::columns::{Columns, known, zigzag};
use super::intervals::{Number, owns};
use crate::list::{Listed, Select, list};
use crate::{Kind, Map, Object, ObjectName};
use virt_bmap_ranges::Printable;

/// Most levels of directories into which a path is split. Otherwise a path of 100,000 directories
/// would make the page build 100,000 paths.
const MAX_DEPTH: usize = 64;

/// The measures of files, directories and metadata.
pub(super) struct Measured<'a> {
    /// In the order of the map.
    pub(super) listed: Vec<Listed<'a>>,
    /// Number of each in the map.
    pub(super) numbers: Vec<Number>,
}

impl<'a> Measured<'a> {
    pub(super) fn new(map: &'a Map) -> Self {
        let kinds = Kind::ALL.into_iter().filter(|kind| owns(*kind)).collect();
        let listed = list(map, &Select { kinds, device: None, globs: Vec::new() });
        let mut objects = (0..).zip(map.objects());
        let number = |listed: &Listed<'_>| {
            let id = listed.file.object.id();
            objects.find(|(_, object)| object.id() == id).map_or(0, |(number, _)| number)
        };
        let numbers = listed.iter().map(number).collect();
        Self { listed, numbers }
    }

    /// For each object that is the first name of its file, its own number.
    pub(super) fn first_names(&self, map: &Map) -> Vec<Option<Number>> {
        let mut first_names = vec![None; map.objects().len()];
        for &number in &self.numbers {
            first_names[number as usize] = Some(number);
        }
        first_names
    }

    /// Numbers of the `top` objects by a measure, the largest first, without those that have zero.
    pub(super) fn top(&self, top: usize, measure: impl Fn(&Listed<'a>) -> u64) -> Vec<u64> {
        let mut order: Vec<(u64, Number)> = self
            .listed
            .iter()
            .zip(&self.numbers)
            .map(|(listed, &number)| (measure(listed), number))
            .filter(|(measure, _)| *measure > 0)
            .collect();
        order.sort_by_key(|&(measure, number)| (std::cmp::Reverse(measure), number));
        order.truncate(top);
        order.into_iter().map(|(_, number)| u64::from(number)).collect()
    }
}

/// Adds names, measures and attributes of the objects. `first_names` has `None` for objects without
/// bytes.
pub(super) fn add(map: &Map, measured: &Measured<'_>, first_names: &[Option<Number>], columns: &mut Columns) {
    let objects = || map.objects();
    let attributes = || objects().map(Object::attributes);
    let kind = |kind: Kind| u64::from(kind.specificity());
    columns.numbers("object.kind", objects().map(|object| kind(object.kind())));

    let mut tree = Tree::default();
    let places: Vec<(u32, u32)> = objects().map(|object| tree.place(object.name())).collect();
    columns.numbers("object.device", places.iter().map(|(device, _)| u64::from(*device)));
    columns.numbers("object.directory", places.iter().map(|(_, directory)| u64::from(*directory)));
    columns.texts("object.name", objects().map(|object| Printable(split(object.name().path).1)));
    columns.texts("device.name", tree.devices.iter().map(|device| Printable(device)));
    columns.numbers("directory.parent", tree.directories.iter().map(|directory| u64::from(directory.parent)));
    columns.numbers("directory.device", tree.directories.iter().map(|directory| u64::from(directory.device)));
    columns.texts("directory.name", tree.directories.iter().map(|directory| Printable(directory.name)));

    let same = |(own, first): (u32, &Option<Number>)| match first {
        Some(first) if *first != own => u64::from(*first) + 1,
        _ => 0,
    };
    columns.numbers("object.same", (0u32..).zip(first_names).map(same));
    let mut measures = vec![[0u64; 4]; first_names.len()];
    for (listed, &number) in measured.listed.iter().zip(&measured.numbers) {
        let names = u64::from(listed.file.names) - 1;
        measures[number as usize] = [listed.on_disk, listed.pieces, listed.shared, names];
    }
    for (place, name) in
        ["object.on_disk", "object.pieces", "object.shared", "object.more_names"].into_iter().enumerate()
    {
        columns.numbers(name, measures.iter().map(|measures| measures[place]));
    }

    columns.numbers("object.size", attributes().map(|known_| known(known_.size)));
    columns.numbers("object.inode", attributes().map(|known_| known(known_.inode)));
    columns.numbers("object.marks", attributes().map(|known| u64::from(known.marks.bits())));
    let seconds = |nanoseconds: i64| nanoseconds.div_euclid(1_000_000_000);
    let modified = attributes().map(|known| known.modified.map_or(0, |time| zigzag(seconds(time)) + 1));
    columns.numbers("object.modified", modified);
}

/// A path up to its last slash, and the rest.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(memchr::memrchr(b'/', path).map_or(0, |slash| slash + 1))
}

/// The directories of all devices. Number 0 is none.
#[derive(Default)]
struct Tree<'a> {
    devices: Vec<&'a [u8]>,
    device_numbers: HashMap<&'a [u8], u32>,
    directories: Vec<Directory<'a>>,
    numbers: HashMap<(u32, &'a [u8]), u32>,
}

struct Directory<'a> {
    /// 0 for a root.
    parent: u32,
    device: u32,
    /// From its parent on, with a slash at its end.
    name: &'a [u8],
}

impl<'a> Tree<'a> {
    /// The device and the directory of an object.
    fn place(&mut self, name: ObjectName<'a>) -> (u32, u32) {
        let devices = &mut self.devices;
        let device = *self.device_numbers.entry(name.device).or_insert_with(|| {
            devices.push(name.device);
            devices.len() as u32 - 1
        });
        (device, self.directory(device, split(name.path).0))
    }

    /// The number of a directory, which is added with all above it if it is new.
    fn directory(&mut self, device: u32, path: &'a [u8]) -> u32 {
        if path.is_empty() {
            return 0;
        }
        if let Some(&number) = self.numbers.get(&(device, path)) {
            return number;
        }
        // Upwards to the next that is known, and from there down again.
        let ends = memchr::memchr_iter(b'/', path).map(|slash| slash + 1).take(MAX_DEPTH);
        let ends: Vec<usize> = ends.filter(|end| *end < path.len()).chain([path.len()]).collect();
        let (mut parent, mut begin) = (0, 0);
        for end in ends {
            let next = self.directories.len() as u32 + 1;
            let number = *self.numbers.entry((device, &path[..end])).or_insert(next);
            if number == next {
                self.directories.push(Directory { parent, device, name: &path[begin..end] });
            }
            (parent, begin) = (number, end);
        }
        parent
    }
}

impl fmt::Debug for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.directories.iter().map(|d| (d.parent, Printable(d.name).to_string())))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_a_tree() {
        let mut tree = Tree::default();
        let place = |tree: &mut Tree<'static>, path: &'static str| {
            tree.place(ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes()))
        };
        assert_eq!(place(&mut tree, "/usr/lib/x"), (0, 3));
        assert_eq!(place(&mut tree, "/"), (0, 1));
        assert_eq!(place(&mut tree, "/usr/y"), (0, 2));
        assert_eq!(place(&mut tree, "journal"), (0, 0));
        assert_eq!(tree.place(ObjectName::path(Kind::File, b"/dev/sda2", b"/usr/y")), (1, 5));
        assert_eq!(format!("{tree:?}"), r#"[(0, "/"), (1, "usr/"), (2, "lib/"), (0, "/"), (4, "usr/")]"#);
    }

    #[test]
    fn a_very_deep_directory_is_not_split() {
        let path = "/a".repeat(10_000);
        let mut tree = Tree::default();
        tree.place(ObjectName::path(Kind::File, b"/dev/sda1", path.as_bytes()));
        assert_eq!(tree.directories.len(), MAX_DEPTH + 1);
        let whole: usize = tree.directories.iter().map(|directory| directory.name.len()).sum();
        assert_eq!(whole, path.len() - 1);
    }
}
