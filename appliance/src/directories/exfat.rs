//! exFAT: the entries of a directory name the first clusters of those in it. The kernel shows no
//! place of an entry, so directories are told by their names.

use super::chain::{Step, Table, chain};
use super::device::Device;
use super::{Place, extents};
use std::collections::HashMap;
use virt_bmap_on_disk::Fields;
use virt_bmap_on_disk::exfat::{Clusters, Directory, Layout};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Most bytes of a directory in which names are looked for.
const MOST: u64 = 64 << 20;

/// The kernel fetches whole pages of a directory, also where its clusters are smaller
/// (`exfat_dir_readahead` in its `fs/exfat/dir.c`).
const PAGE: u64 = 4096;

/// Entries of the table from here on end a chain (4.1.2 of the specification).
const END: u32 = 0xffff_fff8;

pub(super) struct Exfat {
    layout: Layout,
    table: Table,
    /// The directories in the directory whose place was asked for last.
    below: HashMap<String, Clusters>,
    /// The clusters of the directories that have been found, and whose place was not asked for yet.
    found: HashMap<u32, Clusters>,
    is_root: bool,
}

impl Exfat {
    pub(super) fn new(device: &Device) -> Option<Self> {
        let layout = Layout::of(&device.read(0, 512)?)?;
        let table = Table::new(layout.table_start, layout.table_end);
        Some(Self { layout, table, below: HashMap::new(), found: HashMap::new(), is_root: true })
    }

    pub(super) fn place(&mut self, device: &Device, id: u32) -> Option<Place> {
        self.below.clear();
        // The root comes first.
        let is_root = std::mem::replace(&mut self.is_root, false);
        let clusters = if is_root { Clusters::Chain(self.layout.root) } else { self.found.remove(&id)? };
        let ranges = self.ranges(device, clusters)?;
        let mut entries = Vec::new();
        for range in &ranges {
            let left = MOST.saturating_sub(entries.len() as u64);
            entries.extend(device.read(range.start.0, range.len().min(left))?);
        }
        for Directory { name, clusters } in self.layout.directories(&entries) {
            // Of two with one name, the kernel finds the first.
            self.below.entry(name).or_insert(clusters);
        }
        let mut beside = vec![(0, self.layout.heap)];
        if self.layout.cluster < PAGE {
            beside.extend(ranges.iter().map(|range| (range.end.0, PAGE)));
        }
        Some(Place { extents: extents(ranges), beside })
    }

    pub(super) fn found(&mut self, id: u32, name: &[u8]) {
        let name = String::from_utf8_lossy(name);
        if let Some(clusters) = self.below.remove(&*name) {
            self.found.insert(id, clusters);
        }
    }

    fn ranges(&mut self, device: &Device, clusters: Clusters) -> Option<Vec<Range<DeviceOffset>>> {
        let Self { layout, table, .. } = self;
        let range = |first: u64, count: u64| {
            layout.place(first.checked_add(count)?.checked_sub(1)?)?;
            Range::at(DeviceOffset(layout.place(first)?), count.checked_mul(layout.cluster)?)
        };
        match clusters {
            Clusters::Run(_, 0) => Some(Vec::new()),
            Clusters::Run(first, count) => Some(vec![range(first, count)?]),
            Clusters::Chain(first) => {
                let clusters = chain(first, |cluster| {
                    layout.place(cluster)?;
                    match table.bytes(device, cluster.checked_mul(4)?, 4)?.le32(0)? {
                        END.. => Some(Step::End),
                        next => Some(Step::To(next.into())),
                    }
                })?;
                let mut joined: Vec<Range<DeviceOffset>> = Vec::new();
                for cluster in clusters {
                    let next = range(cluster, 1)?;
                    match joined.last_mut() {
                        Some(last) if last.end == next.start => last.end = next.end,
                        _ => joined.push(next),
                    }
                }
                Some(joined)
            }
        }
    }
}
