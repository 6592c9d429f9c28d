//! Where a btrfs lies: its devices, and the chunks of its address space, as the kernel gives them
//! (`linux/btrfs.h`, `linux/btrfs_tree.h`). FIEMAP speaks of that address space.

use rustix::fd::AsFd;
use rustix::fs::stat;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};
use virt_bmap_agent::record::{Chunk, Member};

/// `statfs` magic of btrfs.
pub(crate) const MAGIC: u64 = 0x9123_683e;

/// `BTRFS_CHUNK_TREE_OBJECTID`
const CHUNK_TREE: u64 = 3;
/// `BTRFS_FIRST_CHUNK_TREE_OBJECTID`, the object of all chunk items.
const CHUNKS: u64 = 256;
/// `BTRFS_CHUNK_ITEM_KEY`
const CHUNK_ITEM: u32 = 228;

/// Most devices that are asked for; a file system's numbers only grow.
const MOST_DEVICES: u64 = 1 << 12;

/// Most chunks that are taken in: a petabyte has a million.
const MOST_CHUNKS: usize = 1 << 20;

/// Bytes of items asked for at a time.
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

/// `struct btrfs_ioctl_fs_info_args`, as far as it is of interest.
#[repr(C)]
struct FilesystemInfo {
    max_id: u64,
    rest: [u64; 127],
}

const TYPE: u8 = 0x94;

/// The devices, also those that are missing.
///
/// # Errors
/// What the ioctl says.
pub(crate) fn members(root: impl AsFd) -> Result<Vec<Member>, Errno> {
    const INFO: Opcode = opcode::read::<FilesystemInfo>(TYPE, 31);
    const DEVICE: Opcode = opcode::read_write::<DeviceInfo>(TYPE, 30);
    #[allow(unsafe_code)]
    // SAFETY: `FilesystemInfo` has the 1024 bytes that the kernel fills in.
    let info = unsafe { ioctl(root.as_fd(), Getter::<INFO, FilesystemInfo>::new()) }?;
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
/// What the ioctl says.
pub(crate) fn chunks(root: impl AsFd) -> Result<Vec<Chunk>, Errno> {
    /// `BTRFS_IOC_TREE_SEARCH_V2`; the number counts the arguments without the buffer.
    const OPCODE: Opcode = opcode::read_write::<Search>(TYPE, 17);
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut from = 0;
    loop {
        let key = Key {
            tree: CHUNK_TREE,
            min_object: CHUNKS,
            max_object: CHUNKS,
            min_offset: from,
            max_offset: u64::MAX,
            max_transaction: u64::MAX,
            min_type: CHUNK_ITEM,
            max_type: CHUNK_ITEM,
            items: u32::MAX,
            ..Key::default()
        };
        let search = Search { key, room: ROOM as u64 };
        let mut request = Box::new(SearchWithRoom { search, items: [0; ROOM] });
        #[allow(unsafe_code)]
        // SAFETY: the kernel reads the arguments and fills the buffer of `room` bytes behind them.
        unsafe { ioctl(root.as_fd(), Updater::<OPCODE, SearchWithRoom>::new(&mut request)) }?;
        let mut rest = &request.items[..];
        for _ in 0..request.search.key.items {
            let Some((chunk, after)) = item(rest) else { return Err(Errno::IO) };
            rest = after;
            from = chunk.start.saturating_add(1);
            chunks.push(chunk);
        }
        if request.search.key.items == 0 || chunks.len() > MOST_CHUNKS {
            return Ok(chunks);
        }
    }
}

/// Takes the first item off the buffer: a `struct btrfs_ioctl_search_header` and a `struct btrfs_chunk`.
fn item(bytes: &[u8]) -> Option<(Chunk, &[u8])> {
    let word = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let short = |bytes: &[u8], at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let length = usize::try_from(word(bytes, 24)? >> 32).ok()?;
    let (body, rest) = bytes.get(32..)?.split_at_checked(length)?;
    let stripes = (0..usize::from(short(body, 44)?))
        .map(|number| Some((word(body, 48 + 32 * number)?, word(body, 56 + 32 * number)?)))
        .collect::<Option<_>>()?;
    let chunk = Chunk {
        start: word(bytes, 16)?,
        length: word(body, 0)?,
        stripe_length: word(body, 16)?,
        profile: word(body, 24)?,
        sub_stripes: short(body, 46)?,
        stripes,
    };
    Some((chunk, rest))
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
        let (chunk, rest) = item(&bytes).unwrap();
        assert_eq!((chunk.start, chunk.length, chunk.stripes), (4096, 8192, vec![(7, 256)]));
        assert!(rest.is_empty());
        assert!(item(&bytes[..100]).is_none() && item(&[]).is_none());
        bytes[32 + 44] = 2;
        assert!(item(&bytes).is_none());
    }
}
