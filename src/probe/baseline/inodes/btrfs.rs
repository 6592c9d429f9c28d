//! btrfs: an inode is an item of a subvolume's tree, and the items that follow it are its names,
//! its entries and its extents (`linux/btrfs_tree.h`). Their place says nothing of their number, so
//! the agent sends the items of all trees before the walk, and they are digested here.
//!
//! An extent is a part of the address space. The digest of an inode therefore covers the chunks in
//! which its extents lie. Subvolumes number their inodes separately: a number that several of them
//! have counts as changed. So does the number of a subvolume, which its entry in a directory has in
//! place of an inode's.

use super::{Contents, GROUP, SelfContained, State};
use crate::appliance::DeviceNumber;
use crate::probe::layout::Layout;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use virt_bmap_agent_protocol::bounds::ITEM_BYTES;
use virt_bmap_agent_protocol::record::Member;
use virt_bmap_map::MOST_DIGESTS;
use virt_bmap_on_disk::Fields as _;

/// `BTRFS_CHUNK_TREE_OBJECTID`
const CHUNK_TREE: u64 = 3;
/// `BTRFS_FIRST_FREE_OBJECTID` and `BTRFS_LAST_FREE_OBJECTID`: between them are the inodes.
const FIRST: u64 = 256;
const LAST: u64 = 256_u64.wrapping_neg();

/// Types of items: `BTRFS_*_KEY`.
const INODE_ITEM: u32 = 1;
const VERITY_ITEMS: [u32; 2] = [36, 37];
const DIR_INDEX: u32 = 96;
const EXTENT_DATA: u32 = 108;
const CHUNK_ITEM: u32 = 228;

/// Bytes of a `struct btrfs_ioctl_search_header`.
const HEADER: usize = 32;

/// Digests of the items that the agent sends.
pub(in crate::probe) struct Items {
    /// Digest of what holds for all inodes; it goes into each digest.
    rest: Sha256,
    /// The layouts of the devices on which a filesystem may lie.
    devices: Arc<HashMap<DeviceNumber, Arc<Layout>>>,
    /// The trees of subvolumes.
    trees: BTreeSet<u64>,
    /// The chunks: start, end, and the bytes of the item.
    chunks: Vec<(u64, u64, Vec<u8>)>,
    groups: BTreeMap<u64, (Sha256, [Inode; GROUP as usize])>,
    bytes: u64,
    /// Whether something is missing or makes no sense, so that there are no digests.
    is_bad: bool,
}

/// What the items of an inode say, besides their digest.
#[derive(Clone, Copy, Default)]
struct Inode {
    /// `st_mode`; 0 before its own item has come.
    mode: u32,
    /// The tree that has it.
    tree: u64,
    /// Whether several trees have it, or it has items that make it look different from what they
    /// say.
    is_odd: bool,
}

/// An item of a tree.
struct Item<'a> {
    object: u64,
    kind: u32,
    /// Key and bytes.
    whole: (&'a [u8], &'a [u8]),
}

impl Items {
    /// `rest` is the digest of what holds for all inodes.
    pub(in crate::probe) fn new(rest: Sha256, devices: Arc<HashMap<DeviceNumber, Arc<Layout>>>) -> Self {
        let (trees, chunks, groups) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
        Self { rest, devices, trees, chunks, groups, bytes: 0, is_bad: false }
    }

    /// Takes a device of the filesystem. All of them come before the items.
    pub(in crate::probe) fn member(&mut self, member: Member) {
        let Member { id, major, minor } = member;
        // Which number the kernel gives to a disk differs from boot to boot. Its layout names the
        // disk.
        self.rest.update(id.to_le_bytes());
        match self.devices.get(&(major, minor)) {
            Some(layout) if !layout.is_partial() => super::digest_layout(&mut self.rest, layout),
            // Other blocks are read in place of those on a missing device.
            Some(_) | None => self.is_bad = true,
        }
        self.is_bad |= !self.groups.is_empty();
    }

    /// Takes items of a tree.
    pub(in crate::probe) fn items(&mut self, tree: u64, mut bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.is_bad |= self.bytes > ITEM_BYTES;
        self.trees.extend(Some(tree).filter(|tree| *tree != CHUNK_TREE));
        while !bytes.is_empty() && !self.is_bad {
            let Some((item, rest)) = item(bytes) else {
                self.is_bad = true;
                return;
            };
            bytes = rest;
            match tree {
                CHUNK_TREE if item.kind == CHUNK_ITEM => {
                    match item.whole.0.le64(16).zip(item.whole.1.le64(0)) {
                        Some((start, length)) => {
                            let bytes = [&item.whole.0[8..], item.whole.1].concat();
                            self.chunks.push((start, start.saturating_add(length), bytes));
                        }
                        None => self.is_bad = true,
                    }
                }
                CHUNK_TREE => {}
                _ if (FIRST..=LAST).contains(&item.object) => {
                    self.is_bad |= self.of_inode(tree, &item).is_none();
                }
                _ => {}
            }
        }
    }

    /// Takes an item of an inode; `None` if it makes no sense.
    fn of_inode(&mut self, tree: u64, item: &Item<'_>) -> Option<()> {
        let first = item.object / GROUP * GROUP;
        let (digest, inodes) =
            self.groups.entry(first).or_insert_with(|| (self.rest.clone(), Default::default()));
        let inode = inodes.get_mut(usize::try_from(item.object - first).ok()?)?;
        let (key, body) = item.whole;
        // The transaction that last wrote the leaf is no part of it.
        digest.update(tree.to_le_bytes());
        digest.update(&key[8..]);
        digest.update(body);
        inode.is_odd |= inode.tree != 0 && inode.tree != tree;
        inode.tree = tree;
        match item.kind {
            INODE_ITEM => inode.mode = body.le32(52)?,
            // The entry is a subvolume, or nothing that has an inode.
            DIR_INDEX => inode.is_odd |= u32::from(body.u8_at(8)?) != INODE_ITEM,
            kind if VERITY_ITEMS.contains(&kind) => inode.is_odd = true,
            // Otherwise the data is in the item.
            EXTENT_DATA if body.u8_at(20)? != 0 => {
                let (start, length) = (body.le64(21)?, body.le64(29)?);
                let end = start.checked_add(length)?;
                let after = self.chunks.partition_point(|(_, chunk_end, _)| *chunk_end <= start);
                let touched =
                    self.chunks[after..].iter().take_while(|(chunk, ..)| start != 0 && *chunk < end);
                touched.for_each(|(.., chunk)| digest.update(chunk));
            }
            _ => {}
        }
        Some(())
    }

    /// The groups of inodes; `None` if they are not reliable, or too many.
    pub(super) fn states(self) -> Option<BTreeMap<u64, State>> {
        let is_good = !self.is_bad && !self.chunks.is_empty() && self.groups.len() <= MOST_DIGESTS;
        let is_ascending = self.chunks.windows(2).all(|pair| pair[0].1 <= pair[1].0);
        (is_good && is_ascending).then_some(())?;
        let states = self.groups.into_iter().map(|(first, (digest, inodes))| {
            let content = |at: usize| {
                let number = first.saturating_add(at as u64);
                inodes[at].content().filter(|_| !self.trees.contains(&number))
            };
            let self_contained: Contents = std::array::from_fn(content);
            Some((first, State { digest: *digest.finalize().first_chunk()?, self_contained }))
        });
        states.collect()
    }
}

impl Inode {
    /// Nothing of it lies in blocks of its own but the data of a file.
    fn content(self) -> Option<SelfContained> {
        match self.mode & 0xf000 {
            _ if self.is_odd => None,
            0x8000 => Some(SelfContained::File),
            0x4000 => Some(SelfContained::InlineDirectory),
            0xa000 => Some(SelfContained::InlineLink),
            _ => None,
        }
    }
}

/// Takes the first item off.
fn item(bytes: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let (body, rest) = rest.split_at_checked(usize::try_from(header.le32(28)?).ok()?)?;
    Some((Item { object: header.le64(8)?, kind: header.le32(24)?, whole: (header, body) }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_map::Digest;

    /// An item: a header of this transaction, and its bytes.
    fn put(transaction: u64, object: u64, kind: u32, offset: u64, body: &[u8]) -> Vec<u8> {
        let mut item: Vec<u8> =
            [transaction, object, offset].iter().flat_map(|word| word.to_le_bytes()).collect();
        item.extend(kind.to_le_bytes());
        item.extend((body.len() as u32).to_le_bytes());
        item.extend(body);
        item
    }

    fn inode(number: u64, mode: u32) -> Vec<u8> {
        let mut body = vec![0; 160];
        body[52..56].copy_from_slice(&mode.to_le_bytes());
        put(7, number, INODE_ITEM, 0, &body)
    }

    fn extent(number: u64, start: u64) -> Vec<u8> {
        let mut body = vec![0; 53];
        body[20] = 1;
        body[21..29].copy_from_slice(&start.to_le_bytes());
        body[29..37].copy_from_slice(&4096_u64.to_le_bytes());
        put(7, number, EXTENT_DATA, 0, &body)
    }

    fn chunk(transaction: u64, start: u64, place: u64) -> Vec<u8> {
        let mut body = vec![0; 80];
        body[..8].copy_from_slice(&(1_u64 << 20).to_le_bytes());
        body[56..64].copy_from_slice(&place.to_le_bytes());
        put(transaction, 256, CHUNK_ITEM, start, &body)
    }

    /// The groups that these items of trees make.
    fn states(items: &[(u64, Vec<u8>)]) -> Option<BTreeMap<u64, State>> {
        let mut all = Items::new(Sha256::new(), Arc::default());
        items.iter().for_each(|(tree, items)| all.items(*tree, items));
        all.states()
    }

    fn digest(items: &[(u64, Vec<u8>)], first: u64) -> Digest {
        states(items).unwrap()[&first].digest
    }

    #[test]
    fn a_digest_covers_the_items_of_inodes_and_their_chunks() {
        let items = |inodes: u64, data: u64, place: u64| {
            let chunks = [chunk(inodes, 1 << 20, place), chunk(inodes, 4 << 20, 1 << 30)].concat();
            (vec![(3, chunks)], vec![(5, [inode(258, 0o100_644), extent(258, data)].concat())])
        };
        let of = |(chunks, inodes): (Vec<_>, Vec<_>)| digest(&[chunks, inodes].concat(), 256);
        let before = of(items(1, 1 << 20, 9 << 20));
        // The leaf with the chunks was written again.
        assert_eq!(of(items(2, 1 << 20, 9 << 20)), before);
        // Balancing has moved the extent, or the chunk.
        assert_ne!(of(items(1, (1 << 20) + 4096, 9 << 20)), before);
        assert_ne!(of(items(1, 1 << 20, 8 << 20)), before);
        // The other chunk does not matter.
        assert_eq!(of(items(1, 4 << 20, 9 << 20)), of(items(1, 4 << 20, 8 << 20)));
    }

    #[test]
    fn numbers_that_say_too_little_are_of_no_inode() {
        let entry = |kind: u8| {
            let mut body = vec![0; 30];
            body[8] = kind;
            body
        };
        let items = [
            inode(257, 0o100_644),
            inode(258, 0o040_755),
            put(7, 258, DIR_INDEX, 2, &entry(1)),
            inode(259, 0o040_755),
            put(7, 259, DIR_INDEX, 2, &entry(132)),
            inode(260, 0o120_777),
            inode(261, 0o100_644),
            inode(262, 0o020_644),
            inode(263, 0o100_644),
        ];
        let top = (5, items.concat());
        let subvolume = (263, inode(261, 0o100_644));
        let states = states(&[(3, chunk(7, 1 << 20, 0)), top, subvolume]).unwrap();
        let expected = [
            None,
            Some(SelfContained::File),
            Some(SelfContained::InlineDirectory),
            // It has an entry of a subvolume.
            None,
            Some(SelfContained::InlineLink),
            // Two subvolumes have it; a device; the number of a subvolume.
            None,
            None,
            None,
        ];
        assert_eq!(states[&256].self_contained, expected);
    }

    #[test]
    fn what_makes_no_sense_has_no_digests() {
        let good = [(3, chunk(7, 1 << 20, 0)), (5, inode(257, 0o100_644))];
        assert!(states(&good).is_some());
        assert!(states(&good[1..]).is_none());
        let overlapping = [chunk(7, 1 << 20, 0), chunk(7, (1 << 20) + 4096, 0)].concat();
        assert!(states(&[(3, overlapping), good[1].clone()]).is_none());
        for cut in [1, 31, 33, 100] {
            let broken = (5, good[1].1[..cut].to_vec());
            assert!(states(&[good[0].clone(), broken]).is_none(), "{cut}");
        }
        let short = (5, put(7, 257, INODE_ITEM, 0, &[0; 20]));
        assert!(states(&[good[0].clone(), short]).is_none());
    }
}
