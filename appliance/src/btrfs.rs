//! The devices of a btrfs, the chunks of its address space, and the purpose of the parts of that
//! space (`linux/btrfs.h`, `linux/btrfs_tree.h`). FIEMAP gives offsets in that address space.

use crate::getfsmap::{Spaces, push};
use rustix::fd::AsFd;
use rustix::fs::stat;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};
use virt_bmap_agent_protocol::record::{BlockPurpose, Chunk, Member};

/// `BTRFS_ROOT_TREE_OBJECTID`
const ROOT_TREE: u64 = 1;
/// `BTRFS_FS_TREE_OBJECTID`, the subvolume at the top; others have numbers from
/// `BTRFS_FIRST_FREE_OBJECTID` on.
const TOP: u64 = 5;
const FIRST_SUBVOLUME: u64 = 256;
/// `BTRFS_LAST_FREE_OBJECTID`
const LAST_SUBVOLUME: u64 = 256_u64.wrapping_neg();
/// `BTRFS_ROOT_ITEM_KEY`
const ROOT_ITEM: u32 = 132;
/// `BTRFS_EXTENT_TREE_OBJECTID`
const EXTENT_TREE: u64 = 2;
/// `BTRFS_CHUNK_TREE_OBJECTID`
const CHUNK_TREE: u64 = 3;
/// `BTRFS_FIRST_CHUNK_TREE_OBJECTID`, the object of all chunk items.
const CHUNKS: u64 = 256;
/// `BTRFS_CHUNK_ITEM_KEY`
const CHUNK_ITEM: u32 = 228;
/// `BTRFS_EXTENT_ITEM_KEY`: its key has start and length of an extent.
const EXTENT_ITEM: u32 = 168;
/// `BTRFS_METADATA_ITEM_KEY`: its key has start and level of a node.
const METADATA_ITEM: u32 = 169;
/// `BTRFS_EXTENT_FLAG_TREE_BLOCK`, a flag in `struct btrfs_extent_item`.
const TREE_BLOCK: u64 = 1 << 1;

/// Highest device number that is tried; the numbers of a filesystem only grow.
const MOST_DEVICES: u64 = 1 << 12;

/// Most chunks: a petabyte has a million.
const MOST_CHUNKS: usize = 1 << 20;

/// Most extents. A filesystem with more is not examined.
const MOST_EXTENTS: usize = 1 << 23;

/// Bytes of items in one call.
const ROOM: usize = 64 << 10;

/// `struct btrfs_ioctl_search_key`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Key {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transaction: u64,
    max_transaction: u64,
    min_type: u32,
    max_type: u32,
    items: u32,
    unused: u32,
    unused_too: [u64; 4],
}

/// `struct btrfs_ioctl_search_args_v2`, without its buffer.
#[repr(C)]
#[derive(Clone, Copy)]
struct Search {
    key: Key,
    room: u64,
}

#[repr(C)]
struct SearchWithRoom {
    search: Search,
    items: [u8; ROOM],
}

/// `struct btrfs_ioctl_dev_info_args`
#[repr(C)]
struct DeviceInfo {
    id: u64,
    uuid: [u8; 16],
    bytes_used: u64,
    total_bytes: u64,
    unused: [u64; 379],
    path: [u8; 1024],
}

/// `struct btrfs_ioctl_fs_info_args`, with the fields that are used here.
#[repr(C)]
struct FilesystemInfo {
    max_id: u64,
    devices: u64,
    uuid: [u8; 16],
    node_size: u32,
    sector_size: u32,
    rest: [u64; 123],
}

const TYPE: u8 = 0x94;

fn information(root: impl AsFd) -> Result<FilesystemInfo, Errno> {
    const INFO: Opcode = opcode::read::<FilesystemInfo>(TYPE, 31);
    #[allow(unsafe_code)]
    // SAFETY: `FilesystemInfo` has the 1024 bytes that the kernel fills in.
    unsafe {
        ioctl(root.as_fd(), Getter::<INFO, FilesystemInfo>::new())
    }
}

/// All devices, including missing ones.
///
/// # Errors
/// The error of the ioctl.
pub(crate) fn members(root: impl AsFd) -> Result<Vec<Member>, Errno> {
    const DEVICE: Opcode = opcode::read_write::<DeviceInfo>(TYPE, 30);
    let info = information(root.as_fd())?;
    let mut members = Vec::new();
    for id in 1..=info.max_id.min(MOST_DEVICES) {
        let mut device = DeviceInfo {
            id,
            uuid: [0; 16],
            bytes_used: 0,
            total_bytes: 0,
            unused: [0; 379],
            path: [0; 1024],
        };
        #[allow(unsafe_code)]
        // SAFETY: `DeviceInfo` has the 4096 bytes that the kernel reads and fills in.
        match unsafe { ioctl(root.as_fd(), Updater::<DEVICE, DeviceInfo>::new(&mut device)) } {
            Ok(()) => {}
            Err(Errno::NODEV) => continue,
            Err(errno) => return Err(errno),
        }
        let path = device.path.split(|byte| *byte == 0).next().unwrap_or_default();
        let number = stat(path).map_or(0, |stat| stat.st_rdev);
        members.push(Member { id, major: rustix::fs::major(number), minor: rustix::fs::minor(number) });
    }
    Ok(members)
}

/// All chunks, ascending.
///
/// # Errors
/// The error of the ioctl.
pub(crate) fn chunks(root: impl AsFd) -> Result<Vec<Chunk>, Errno> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let (first, last) =
        (ItemPlace { object: CHUNKS, ..ItemPlace::FIRST }, ItemPlace { object: CHUNKS, ..ItemPlace::LAST });
    search(root, CHUNK_TREE, first, last, |item| {
        if item.place.kind == CHUNK_ITEM {
            chunks.push(chunk(&item)?);
        }
        Some(chunks.len() <= MOST_CHUNKS)
    })?;
    Ok(chunks)
}

/// The trees whose items say where files lie: that of the chunks, and those of all subvolumes,
/// ascending.
///
/// # Errors
/// The error of the ioctl.
pub(crate) fn trees_of_files(root: impl AsFd) -> Result<Vec<u64>, Errno> {
    let mut trees = vec![CHUNK_TREE, TOP];
    let first = ItemPlace { object: FIRST_SUBVOLUME, ..ItemPlace::FIRST };
    let last = ItemPlace { object: LAST_SUBVOLUME, ..ItemPlace::LAST };
    search(root, ROOT_TREE, first, last, |item| {
        trees.extend(Some(item.place.object).filter(|_| item.place.kind == ROOT_ITEM));
        Some(true)
    })?;
    trees.dedup();
    Ok(trees)
}

/// Calls `each` with the items of a tree, as the kernel returns them, until it returns `false`.
///
/// # Errors
/// The error of the ioctl.
pub(crate) fn items(root: impl AsFd, tree: u64, each: impl FnMut(&[u8]) -> bool) -> Result<(), Errno> {
    pages(root, tree, ItemPlace::FIRST, ItemPlace::LAST, |_| Some(true), each)
}

/// The purpose of the parts of the address space, from the extent tree: nodes of trees, or data.
/// `None` if there are too many extents.
///
/// # Errors
/// The error of the ioctl.
pub(crate) fn spaces(root: impl AsFd) -> Result<Option<Spaces>, Errno> {
    let node = u64::from(information(root.as_fd())?.node_size);
    let mut spaces = Spaces::new();
    let mut extents = 0;
    search(root, EXTENT_TREE, ItemPlace::FIRST, ItemPlace::LAST, |item| {
        let place = item.place;
        let used = match place.kind {
            METADATA_ITEM => Some((BlockPurpose::Metadata, node)),
            EXTENT_ITEM if item.word(16)? & TREE_BLOCK != 0 => Some((BlockPurpose::Metadata, place.offset)),
            EXTENT_ITEM => Some((BlockPurpose::DataExtents, place.offset)),
            _ => None,
        };
        match used {
            // Each extent is a part of its own: files may refer to a part of one.
            Some((BlockPurpose::DataExtents, length)) => {
                spaces.entry(BlockPurpose::DataExtents).or_default().push((place.object, length));
            }
            Some((purpose, length)) => push(&mut spaces, purpose, place.object, length),
            None => {}
        }
        extents += usize::from(used.is_some());
        Some(extents <= MOST_EXTENTS)
    })?;
    Ok((extents <= MOST_EXTENTS).then_some(spaces))
}

/// `struct btrfs_key`: the key by which a tree is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ItemPlace {
    object: u64,
    kind: u32,
    offset: u64,
}

impl ItemPlace {
    const FIRST: Self = Self { object: 0, kind: 0, offset: 0 };
    /// The type has one byte.
    const LAST: Self = Self { object: u64::MAX, kind: 255, offset: u64::MAX };

    /// The next possible key.
    fn next(self) -> Option<Self> {
        let Self { object, kind, offset } = self;
        if let Some(offset) = offset.checked_add(1) {
            Some(Self { offset, ..self })
        } else if kind < Self::LAST.kind {
            Some(Self { object, kind: kind + 1, offset: 0 })
        } else {
            Some(Self { object: object.checked_add(1)?, kind: 0, offset: 0 })
        }
    }
}

/// An item of a tree.
struct Item<'a> {
    place: ItemPlace,
    body: &'a [u8],
}

impl Item<'_> {
    fn word(&self, at: usize) -> Option<u64> {
        word(self.body, at)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Calls `each` for all items of a tree between two keys, ascending, until it asks to stop. `each`
/// returns `None` for an invalid item.
fn search(
    root: impl AsFd,
    tree: u64,
    first: ItemPlace,
    last: ItemPlace,
    each: impl FnMut(Item<'_>) -> Option<bool>,
) -> Result<(), Errno> {
    pages(root, tree, first, last, each, |_| true)
}

/// The same, and calls `page` with the bytes of the items that one call has returned, until it
/// returns `false`.
fn pages(
    root: impl AsFd,
    tree: u64,
    first: ItemPlace,
    last: ItemPlace,
    mut each: impl FnMut(Item<'_>) -> Option<bool>,
    mut page: impl FnMut(&[u8]) -> bool,
) -> Result<(), Errno> {
    /// `BTRFS_IOC_TREE_SEARCH_V2`; the number has the size of the arguments without the buffer.
    const OPCODE: Opcode = opcode::read_write::<Search>(TYPE, 17);
    let mut from = first;
    let mut request =
        Box::new(SearchWithRoom { search: Search { key: Key::default(), room: 0 }, items: [0; ROOM] });
    loop {
        let key = Key {
            tree,
            min_object: from.object,
            min_type: from.kind,
            min_offset: from.offset,
            max_object: last.object,
            max_type: last.kind,
            max_offset: last.offset,
            max_transaction: u64::MAX,
            items: u32::MAX,
            ..Key::default()
        };
        request.search = Search { key, room: ROOM as u64 };
        #[allow(unsafe_code)]
        // SAFETY: the kernel reads the arguments and fills the buffer of `room` bytes behind them.
        unsafe { ioctl(root.as_fd(), Updater::<OPCODE, SearchWithRoom>::new(&mut request)) }?;
        let mut rest = &request.items[..];
        let mut seen = None;
        for _ in 0..request.search.key.items {
            let Some((item, after)) = item(rest) else { return Err(Errno::IO) };
            rest = after;
            if item.place < from {
                return Err(Errno::IO);
            }
            seen = Some(item.place);
            if !each(item).ok_or(Errno::IO)? {
                return Ok(());
            }
        }
        let used = request.items.len() - rest.len();
        if !page(&request.items[..used]) {
            return Ok(());
        }
        match seen.and_then(ItemPlace::next).filter(|next| *next <= last) {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

/// Takes the first item off the buffer: a `struct btrfs_ioctl_search_header`, and the bytes that it
/// counts.
fn item(bytes: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let kind_and_length = word(bytes, 24)?;
    let place = ItemPlace { object: word(bytes, 8)?, kind: kind_and_length as u32, offset: word(bytes, 16)? };
    let (body, rest) = bytes.get(32..)?.split_at_checked(usize::try_from(kind_and_length >> 32).ok()?)?;
    Some((Item { place, body }, rest))
}

/// Takes a `struct btrfs_chunk`.
fn chunk(item: &Item<'_>) -> Option<Chunk> {
    let body = item.body;
    let stripes = (0..usize::from(short(body, 44)?))
        .map(|number| Some((word(body, 48 + 32 * number)?, word(body, 56 + 32 * number)?)))
        .collect::<Option<_>>()?;
    Some(Chunk {
        start: item.place.offset,
        length: word(body, 0)?,
        stripe_length: word(body, 16)?,
        profile: word(body, 24)?,
        sub_stripes: short(body, 46)?,
        stripes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<Key>(), 104);
        assert_eq!(size_of::<Search>(), 112);
        assert_eq!(size_of::<DeviceInfo>(), 4096);
        assert_eq!(size_of::<FilesystemInfo>(), 1024);
    }

    #[test]
    fn an_item_is_taken_apart() {
        let mut bytes = vec![0; 32];
        bytes[16..24].copy_from_slice(&4096u64.to_le_bytes());
        bytes[24..28].copy_from_slice(&CHUNK_ITEM.to_le_bytes());
        bytes[28..32].copy_from_slice(&80u32.to_le_bytes());
        bytes.resize(32 + 80, 0);
        bytes[32..40].copy_from_slice(&8192u64.to_le_bytes());
        bytes[32 + 44] = 1;
        bytes[32 + 48] = 7;
        bytes[32 + 57] = 1;
        let (found, rest) = item(&bytes).unwrap();
        let chunk_of = |bytes: &[u8]| chunk(&item(bytes)?.0);
        let chunk = chunk(&found).unwrap();
        assert_eq!((chunk.start, chunk.length, chunk.stripes), (4096, 8192, vec![(7, 256)]));
        assert!(rest.is_empty());
        assert!(chunk_of(&bytes[..100]).is_none() && chunk_of(&[]).is_none());
        bytes[32 + 44] = 2;
        assert!(chunk_of(&bytes).is_none());
    }

    #[test]
    fn places_follow_each_other() {
        let place = |object, kind, offset| ItemPlace { object, kind, offset };
        assert_eq!(place(1, 2, 3).next(), Some(place(1, 2, 4)));
        assert_eq!(place(1, 2, u64::MAX).next(), Some(place(1, 3, 0)));
        assert_eq!(place(1, 255, u64::MAX).next(), Some(place(2, 0, 0)));
        assert_eq!(ItemPlace::LAST.next(), None);
    }
}
