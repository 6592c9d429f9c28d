//! Derives operations from two maps of one guest and the ranges written between them.

use super::{Action, Operation, WrittenPart};
use hashbrown::{HashMap, HashSet};
use std::cmp::Ordering;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_map::hardlinks::disk_ranges;
use virt_bmap_map::{Attributes, Kind, Map, Marks, Object, ObjectName, PieceFlags};
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, FileOffset, RangeSet};

/// The ranges written between two maps, for each disk in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// By the guest, since these bytes were last part of an operation.
    pub seen: Vec<RangeSet<DiskOffset>>,
    /// Those of them that were written before the first map was made already.
    pub held: Vec<RangeSet<DiskOffset>>,
    /// By the replay of its journals: these ranges hold data that the guest wrote only to a
    /// journal.
    pub replayed: Vec<RangeSet<DiskOffset>>,
}

/// Derives operations on one filesystem from the differences between two maps of it. Operations on
/// removed objects come first, the deepest first, then all others by name.
///
/// Files are identified by their inode numbers and, where both maps know it, by the
/// [time](Attributes::born) at which they were made; on filesystems without lasting inode numbers
/// (vfat, exfat) by their first block. If the new map does not have the filesystem on `device`, it
/// could not be examined, so there are no operations.
///
/// Filesystems write the data of a file before its inode, with a flush between. So data that was
/// written to a file whose inode is the same is no operation yet. If the next comparison, to which
/// it is [held](Written::held), does not find a change of the inode either, the write is an
/// operation that [came earlier](Operation::is_earlier).
pub fn compare<'a>(old: &'a Map, new: &'a Map, device: &[u8], written: &Written) -> Vec<Operation<'a>> {
    let Some(facts) = Facts::of(old, new, device) else { return Vec::new() };
    let (mut kept, mut gone, mut come) = (Vec::new(), Vec::new(), Vec::new());
    merge(old, new, &facts, |old, new| match (old, new) {
        (Some(old), Some(new)) if facts.is_same(old, new) => kept.push((old, new)),
        (old, new) => {
            gone.extend(old);
            come.extend(new);
        }
    });
    let mut names = Names::of(&facts, &gone, &come, &kept);
    let mut found = names.operations(&facts);
    // Files with another name, or one more or less.
    let named: HashSet<_> = gone.iter().chain(&come).map(|object| facts.key(*object)).collect();
    // A file with several names is compared once.
    let mut seen = HashSet::new();
    let pairs = kept.iter().copied().chain(names.pairs.iter().copied());
    for (old, new) in pairs {
        let is_linked = new.attributes().links > Some(1);
        if !is_linked || seen.insert(facts.key(new)) {
            let is_renamed = named.contains(&facts.key(new));
            Change { old, new, is_renamed, written, facts: &facts }.put(&mut found);
        }
    }
    for operation in &mut found {
        if operation.action == Action::Create
            && let Some(object) = new.find(operation.name)
        {
            operation.written = joined(touched(object, &written.seen));
        }
    }
    found.sort_by(|a, b| {
        let is_gone = |operation: &Operation<'_>| operation.after.is_none();
        let by_name = (a.name.device, a.name.path).cmp(&(b.name.device, b.name.path));
        b.is_earlier
            .cmp(&a.is_earlier)
            .then(is_gone(b).cmp(&is_gone(a)))
            .then(if is_gone(a) { by_name.reverse() } else { by_name })
            .then(a.action.cmp(&b.action))
    });
    found
}

/// Whether a file was last modified when its inode was last changed, as a write does.
/// `utimensat(2)` sets another time, unless that is the present one.
pub(super) fn is_now(attributes: &Attributes) -> bool {
    /// Times that a driver sets one after the other differ by less, in nanoseconds.
    const TICK: u64 = 10_000_000;
    let times = attributes.modified.zip(attributes.changed);
    times.is_none_or(|(modified, changed)| modified.abs_diff(changed) < TICK)
}

/// Facts about the filesystem.
struct Facts<'a> {
    device: &'a [u8],
    /// Bytes in a block.
    block: u64,
    /// Whether its inode numbers change with each mount.
    is_volatile: bool,
    /// Whether an inode number is never that of another file later, as in btrfs.
    is_lasting: bool,
    /// Whether the time at which a file was made never changes.
    keeps_birth_time: bool,
    /// Inodes of which either map does not know that time.
    unborn: HashSet<u64>,
    /// The paths in the old map of files that are known by their place.
    placed: HashMap<Key, &'a [u8]>,
    /// Whether both maps list symbolic links.
    has_symlinks: bool,
}

/// What identifies a file.
#[derive(PartialEq, Eq, Hash, Clone, Copy)]
enum Key {
    /// Its inode, and when that was made, if this is known of all files with the inode: on btrfs,
    /// files of several subvolumes have one number.
    Inode(Kind, u64, Option<i64>),
    Place(Kind, DiskNumber, u64),
}

impl<'a> Facts<'a> {
    /// `None` if the new map does not have the filesystem.
    fn of(old: &'a Map, new: &'a Map, device: &[u8]) -> Option<Self> {
        let filesystem = new.header().filesystems.iter().find(|fs| fs.device == device)?;
        let kind = FsKind::from_name(&filesystem.kind);
        let is_new = !old.header().filesystems.iter().any(|fs| fs.device == device);
        let mut facts = Self {
            device: &filesystem.device,
            block: filesystem.block_size.unwrap_or(4096).max(1),
            is_volatile: kind.facts().has_volatile_inodes,
            is_lasting: kind == FsKind::Btrfs,
            keeps_birth_time: kind.facts().keeps_birth_time,
            unborn: HashSet::new(),
            placed: HashMap::new(),
            has_symlinks: new.lists_metadata() && (old.lists_metadata() || is_new),
        };
        if facts.is_volatile {
            let objects = old.objects().filter(|object| facts.is_compared(*object));
            let placed = objects.filter_map(|object| Some((facts.key(object)?, object.name().path)));
            facts.placed = placed.collect();
        }
        if facts.keeps_birth_time {
            let objects = old.objects().chain(new.objects()).filter(|object| facts.is_compared(*object));
            let unborn = objects.map(Object::attributes).filter(|attributes| attributes.born.is_none());
            facts.unborn = unborn.filter_map(|attributes| attributes.inode).collect();
        }
        Some(facts)
    }

    fn is_compared(&self, object: Object<'_>) -> bool {
        let name = object.name();
        let is_kind = match object.kind() {
            Kind::File | Kind::Directory => true,
            Kind::Symlink => self.has_symlinks,
            _ => false,
        };
        is_kind && name.path != b"/" && name.device == self.device
    }

    fn key(&self, object: Object<'a>) -> Option<Key> {
        let kind = object.kind();
        match object.attributes().inode {
            Some(inode) if !self.is_volatile => {
                let is_known = self.keeps_birth_time && !self.unborn.contains(&inode);
                Some(Key::Inode(kind, inode, object.attributes().born.filter(|_| is_known)))
            }
            _ => disk_ranges(object).next().map(|(disk, span)| Key::Place(kind, disk, span.start.0)),
        }
    }

    /// Whether objects of the same name are the same file.
    fn is_same(&self, old: Object<'a>, new: Object<'a>) -> bool {
        if self.is_volatile {
            // Unless it lies where a file of another name was: that was renamed over this one.
            let placed = self.key(new).and_then(|key| self.placed.get(&key));
            return placed.is_none_or(|path| *path == new.name().path);
        }
        let (before, after) = (old.attributes().inode, new.attributes().inode);
        before.is_none() || after.is_none() || (before == after && self.is_as_old(old, new) != Some(false))
    }

    /// When two objects were made, if that is known of both.
    fn births(&self, old: Object<'_>, new: Object<'_>) -> Option<(i64, i64)> {
        old.attributes().born.zip(new.attributes().born).filter(|_| self.keeps_birth_time)
    }

    /// Whether two objects are the same by the times at which they were made; `None` if these do
    /// not tell. An object that has not been modified since then may be another one, made in the
    /// same tick of the guest's clock.
    fn is_as_old(&self, old: Object<'_>, new: Object<'_>) -> Option<bool> {
        let (before, born) = self.births(old, new)?;
        let is_modified = new.attributes().modified != Some(born);
        (before != born || is_modified).then_some(before == born)
    }

    /// Whether a freed inode was reused for another file.
    fn is_reused(&self, old: Object<'_>, new: Object<'_>) -> bool {
        if let Some(is_as_old) = self.is_as_old(old, new) {
            return !is_as_old;
        }
        // Renaming changes neither the data of a file nor its modification time. Within one tick,
        // that time says nothing.
        let has_data = |object| disk_ranges(object).next().is_some();
        let is_of_one_tick = self.births(old, new).is_some() && has_data(old) && has_data(new);
        let is_modified = old.attributes().modified != new.attributes().modified || is_of_one_tick;
        !self.is_lasting && old.kind() == Kind::File && is_modified && !share_bytes(old, new)
    }
}

/// Visits the objects of both maps that operations can concern; objects of the same name together.
fn merge<'a>(
    old: &'a Map,
    new: &'a Map,
    facts: &Facts<'a>,
    mut visit: impl FnMut(Option<Object<'a>>, Option<Object<'a>>),
) {
    let mut olds = old.objects().filter(|object| facts.is_compared(*object)).peekable();
    let mut news = new.objects().filter(|object| facts.is_compared(*object)).peekable();
    loop {
        let order = match (olds.peek(), news.peek()) {
            (Some(old), Some(new)) => old.name().cmp(&new.name()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        visit(old, new);
    }
}

/// Names that were added and removed, grouped by file.
struct Names<'a> {
    files: Vec<Group<'a>>,
    /// Objects of the same file with different names, which remain to be compared.
    pairs: Vec<(Object<'a>, Object<'a>)>,
}

/// The names of one file.
#[derive(Default)]
struct Group<'a> {
    gone: Vec<Object<'a>>,
    come: Vec<Object<'a>>,
    /// A name that it has in both maps.
    kept: Option<Object<'a>>,
}

impl<'a> Names<'a> {
    fn of(
        facts: &Facts<'a>,
        gone: &[Object<'a>],
        come: &[Object<'a>],
        kept: &[(Object<'a>, Object<'a>)],
    ) -> Self {
        let mut files: Vec<Group<'a>> = Vec::new();
        let mut numbers: HashMap<Key, usize> = HashMap::new();
        let mut group = |object: Object<'a>, files: &mut Vec<Group<'a>>| {
            let next = files.len();
            let number = facts.key(object).map_or(next, |key| *numbers.entry(key).or_insert(next));
            if number == next {
                files.push(Group::default());
            }
            number
        };
        for object in gone {
            let number = group(*object, &mut files);
            files[number].gone.push(*object);
        }
        for object in come {
            let number = group(*object, &mut files);
            files[number].come.push(*object);
        }
        for (_, object) in kept {
            if let Some(number) = facts.key(*object).and_then(|key| numbers.get(&key)) {
                files[*number].kept.get_or_insert(*object);
            }
        }
        Self { files, pairs: Vec::new() }
    }

    fn operations(&mut self, facts: &Facts<'a>) -> Vec<Operation<'a>> {
        let mut found = Vec::new();
        let mut renamed = Vec::new();
        for Group { gone, come, kept } in &self.files {
            let is_one = match (gone.first(), come.first()) {
                (Some(old), Some(new)) => kept.is_some() || !facts.is_reused(*old, *new),
                _ => true,
            };
            let pairs = if is_one { gone.len().min(come.len()) } else { 0 };
            renamed.extend(gone.iter().copied().zip(come.iter().copied()).take(pairs));
            let stays = kept.is_some() || pairs > 0;
            for old in &gone[pairs..] {
                let action = match old.kind() {
                    Kind::Directory => Action::Rmdir,
                    _ if stays => Action::Unlink,
                    _ => Action::Delete,
                };
                found.push(operation(action, Some(*old), None));
            }
            let mut from = kept.or_else(|| come.first().copied().filter(|_| pairs > 0));
            for new in &come[pairs..] {
                let action = match (new.kind(), from) {
                    (Kind::Directory, _) => Action::Mkdir,
                    (_, Some(_)) => Action::Link,
                    (Kind::Symlink, None) => Action::Symlink,
                    (_, None) => Action::Create,
                };
                found.push(Operation { from: from.map(Object::name), ..operation(action, None, Some(*new)) });
                from.get_or_insert(*new);
            }
        }
        // An object in a renamed directory has a new path for that reason alone.
        let of_directory = |(old, new): &(Object<'a>, Object<'a>)| {
            let (old, new) = (old.name(), new.name());
            (old.kind == Kind::Directory).then_some(((old.device, old.path), new.path))
        };
        let directories: HashMap<_, _> = renamed.iter().filter_map(of_directory).collect();
        // The new name of what had this name.
        let now_named: HashMap<_, _> = renamed
            .iter()
            .map(|(old, new)| ((old.name().device, old.name().path), new.name().path))
            .collect();
        for (old, new) in &renamed {
            let is_implied = old.name().in_directory().is_some_and(|(directory, name)| {
                let now = directories.get(&(old.name().device, directory));
                now.is_some_and(|now| new.name().in_directory() == Some((*now, name)))
            });
            if is_implied {
                continue;
            }
            let (from, to) = (old.name(), new.name());
            let action = match now_named.get(&(to.device, to.path)) {
                // Of the two, one is enough.
                Some(now) if *now == from.path && from.path < to.path => Action::Exchange,
                Some(now) if *now == from.path => continue,
                _ => Action::Rename,
            };
            found.push(Operation { from: Some(from), ..operation(action, Some(*old), Some(*new)) });
        }
        self.pairs = renamed;
        found
    }
}

fn share_bytes(a: Object<'_>, b: Object<'_>) -> bool {
    let ours: Vec<(DiskNumber, DiskRange)> = disk_ranges(a).collect();
    disk_ranges(b).any(|(disk, span)| {
        let first = ours.partition_point(|(at, range)| (*at, range.end) <= (disk, span.start));
        ours.get(first).is_some_and(|(at, range)| *at == disk && range.start < span.end)
    })
}

fn operation<'a>(action: Action, old: Option<Object<'a>>, new: Option<Object<'a>>) -> Operation<'a> {
    let attributes = |object: Option<Object<'a>>| object.map(Object::attributes);
    let name = new.or(old).map_or(ObjectName::device(Kind::File, b""), Object::name);
    let (before, after) = (attributes(old), attributes(new));
    Operation { action, name, from: None, before, after, written: Vec::new(), is_earlier: false }
}

/// Parts of files, of which those that follow one another are one.
fn joined(parts: impl Iterator<Item = (u64, Option<u64>)>) -> Vec<WrittenPart> {
    let mut joined: Vec<WrittenPart> = Vec::new();
    for (length, offset) in parts {
        let offset = offset.map(FileOffset);
        match joined.last_mut() {
            Some(last) if last.offset.map(|at| FileOffset(at.0 + last.length)) == offset => {
                last.length += length;
            }
            _ => joined.push(WrittenPart { offset, length }),
        }
    }
    joined
}

/// The written bytes of an object, with their offset in it if that is known. Only one copy of a
/// mirror is counted.
fn touched<'a>(
    object: Object<'a>,
    written: &'a [RangeSet<DiskOffset>],
) -> impl Iterator<Item = (u64, Option<u64>)> + 'a {
    let pieces = object.pieces().filter(|piece| {
        let is_data = !piece.role.flags.intersects(PieceFlags::PARITY | PieceFlags::UNWRITTEN);
        is_data && piece.role.copy == 0
    });
    pieces.flat_map(move |piece| {
        let disk = usize::from(piece.disk).checked_sub(1).and_then(|index| written.get(index));
        disk.into_iter().flat_map(move |disk| disk.overlap(piece.range)).map(move |part| {
            let place = piece.file_offset.map(|offset| offset.0 + (part.start.0 - piece.range.start.0));
            (part.len(), place)
        })
    })
}

/// A file or directory in both maps.
struct Change<'c, 'a> {
    old: Object<'a>,
    new: Object<'a>,
    is_renamed: bool,
    written: &'c Written,
    facts: &'c Facts<'a>,
}

impl<'a> Change<'_, 'a> {
    fn put(&self, found: &mut Vec<Operation<'a>>) {
        let before = found.len();
        if self.new.kind() == Kind::File {
            self.put_data(found);
        }
        self.put_attributes(found, found.len() > before);
    }

    fn operation(&self, action: Action, written: Vec<WrittenPart>) -> Operation<'a> {
        Operation { written, ..operation(action, Some(self.old), Some(self.new)) }
    }

    /// What happened to the data of a file.
    fn put_data(&self, found: &mut Vec<Operation<'a>>) {
        let (before, after) = (self.old.attributes(), self.new.attributes());
        let (old_size, new_size) = (before.size.unwrap_or(0), after.size.unwrap_or(0));
        // Two changes within a tick of the guest's clock have the same time.
        let is_modified = before.modified != after.modified || new_size != old_size;
        let (mut inside, behind) = self.written_before_and_behind(old_size, new_size, &self.written.seen);
        if after.marks.contains(Marks::INLINE) {
            // What lies in the inode is written with every change of it.
            inside.retain(|part| part.offset.is_some());
        }
        let (in_journal, behind_in_journal) =
            self.written_before_and_behind(old_size, new_size, &self.written.replayed);
        match new_size.cmp(&old_size) {
            Ordering::Less => found.push(self.operation(Action::Truncate, Vec::new())),
            Ordering::Greater => {
                let has_data =
                    !behind.is_empty() || !behind_in_journal.is_empty() || is_without_blocks(&after);
                let action = if has_data { Action::Append } else { Action::Truncate };
                found.push(self.operation(action, behind));
            }
            Ordering::Equal => {}
        }
        let is_punched = new_size == old_size && self.has_new_hole(new_size);
        if is_punched {
            // The kernel zeroes what is left of the blocks at both ends of a hole.
            found.push(self.operation(Action::Punch, inside));
        } else if !inside.is_empty() && !is_modified && !disk_ranges(self.old).eq(disk_ranges(self.new)) {
            found.push(self.operation(Action::Move, inside));
        } else if !inside.is_empty() && !is_modified {
            let held = joined(touched(self.new, &self.written.held));
            if !held.is_empty() {
                found.push(Operation { is_earlier: true, ..self.operation(Action::Write, held) });
            }
        } else if !inside.is_empty() || is_modified && !in_journal.is_empty() {
            found.push(self.operation(Action::Write, inside));
        } else if is_modified && new_size == old_size {
            // Data in the inode is written with the inode.
            let is_inline = new_size > 0 && is_without_blocks(&after);
            let action = if is_inline && is_now(&after) { Action::Write } else { Action::Touch };
            found.push(self.operation(action, Vec::new()));
        }
    }

    /// What happened to the inode besides. `is_told`: whether its new times are told of already.
    fn put_attributes(&self, found: &mut Vec<Operation<'a>>, is_told: bool) {
        let (before, after) = (self.old.attributes(), self.new.attributes());
        let differ = |pair: Option<bool>| pair == Some(true);
        let mode = differ(before.mode.zip(after.mode).map(|(old, new)| old != new));
        let owner = differ(before.owner.zip(after.owner).map(|(old, new)| old != new));
        let changed = differ(before.changed.zip(after.changed).map(|(old, new)| old != new));
        if owner {
            found.push(self.operation(Action::Chown, Vec::new()));
        }
        // A change of the owner takes the bits of setuid and setgid.
        let kept = if owner { 0o1777 } else { 0o7777 };
        let bits = |mode: Option<u16>| mode.map(|mode| mode & kept);
        if mode && bits(before.mode) != bits(after.mode) {
            found.push(self.operation(Action::Chmod, Vec::new()));
        }
        let is_same = before.modified == after.modified && before.links == after.links;
        let is_explained = is_told || mode || owner || self.is_renamed;
        let has_times = !self.facts.is_volatile;
        // Inode numbers that are known are of the same file.
        if changed && is_same && !is_explained && has_times {
            found.push(self.operation(Action::Setxattr, Vec::new()));
        }
    }

    /// Whether fewer bytes of a file of this size have blocks than before.
    fn has_new_hole(&self, size: u64) -> bool {
        let with_blocks = |object: Object<'_>| -> Option<u64> {
            let pieces = object
                .pieces()
                .filter(|piece| piece.role.copy == 0 && !piece.role.flags.intersects(PieceFlags::PARITY));
            let inside = |offset: FileOffset, length: u64| length.min(size.saturating_sub(offset.0));
            pieces.map(|piece| Some(inside(piece.file_offset?, piece.range.len()))).sum()
        };
        let is_plain = !self.new.attributes().marks.intersects(Marks::INLINE | Marks::ENCODED);
        let (old, new) = (with_blocks(self.old), with_blocks(self.new));
        is_plain && old.zip(new).is_some_and(|(old, new)| new < old)
    }

    /// What was written before and after the old end of the file. The block with the old end is
    /// written as a whole when data is appended, and counts as appended. When a file is truncated,
    /// the block with the new end does not count, because the bytes after the end are zeroed.
    fn written_before_and_behind(
        &self,
        old_size: u64,
        new_size: u64,
        written: &[RangeSet<DiskOffset>],
    ) -> (Vec<WrittenPart>, Vec<WrittenPart>) {
        let block = self.facts.block;
        let end = if new_size == old_size { u64::MAX } else { new_size.min(old_size) / block * block };
        let (mut before, mut behind) = (Vec::new(), Vec::new());
        for (bytes, place) in touched(self.new, written) {
            let inside = place.map_or(bytes, |place| end.saturating_sub(place).min(bytes));
            if inside > 0 {
                before.push((inside, place));
            }
            if inside < bytes {
                behind.push((bytes - inside, place.map(|place| place + inside)));
            }
        }
        (joined(before.into_iter()), joined(behind.into_iter()))
    }
}

fn is_without_blocks(attributes: &Attributes) -> bool {
    attributes.marks.intersects(Marks::INLINE | Marks::NO_BLOCKS)
}

#[cfg(test)]
mod tests;
