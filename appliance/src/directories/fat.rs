//! FAT: the handle of a directory has the place of its entry (`fat_encode_fh_nostale` in the
//! kernel's `fs/fat/nfs.c`), and the entry its first cluster.

use super::chain::{Step, Table, chain};
use super::device::Device;
use super::{Place, extents};
use rustix::fd::{AsRawFd as _, OwnedFd};
use std::mem::size_of;
use virt_bmap_on_disk::fat::{ENTRY, Layout, Next};
use virt_bmap_ranges::{DeviceOffset, Range};

/// The place that the kernel gives to the root directory, which has no entry (`MSDOS_ROOT_INO`).
const ROOT: u64 = 1;

/// `FILEID_FAT_WITHOUT_PARENT` of `linux/exportfs.h`.
const HANDLE_TYPE: i32 = 0x71;

pub(super) struct Fat {
    layout: Layout,
    table: Table,
}

impl Fat {
    pub(super) fn new(device: &Device) -> Option<Self> {
        let layout = Layout::of(&device.read(0, 512)?)?;
        // The kernel reads the first table.
        let table = Table::new(layout.reserved, layout.reserved + layout.table);
        Some(Self { layout, table })
    }

    pub(super) fn place(&mut self, device: &Device, directory: &OwnedFd) -> Option<Place> {
        let beside = vec![(0, self.layout.tables_end())];
        let first = match (place_of_entry(directory)?, self.layout.root) {
            (ROOT, Some(first)) => first,
            (ROOT, None) => {
                let root: Range<DeviceOffset> = Range::new(self.layout.tables_end(), self.layout.data);
                return Some(Place { extents: extents([root]), beside });
            }
            (entry, _) => self.layout.first_cluster(&device.read(entry.checked_mul(ENTRY)?, ENTRY)?)?,
        };
        let Self { layout, table } = self;
        let clusters = chain(first, |cluster| {
            layout.place(cluster)?;
            let length = if layout.bits == 32 { 4 } else { 2 };
            let entry = layout.entry(table.bytes(device, layout.offset(cluster), length)?, cluster)?;
            match layout.next(entry) {
                Next::Cluster(next) => Some(Step::To(next)),
                Next::End => Some(Step::End),
                Next::Nothing => None,
            }
        })?;
        let ranges = clusters
            .into_iter()
            .filter_map(|cluster| Range::at(DeviceOffset(layout.place(cluster)?), layout.cluster));
        Some(Place { extents: extents(ranges), beside })
    }
}

/// Where the kernel found the entry of a directory: its number, if the device were one array of
/// entries (`fat_make_i_pos` in the kernel's `fs/fat/fat.h`).
fn place_of_entry(directory: &OwnedFd) -> Option<u64> {
    /// `struct file_handle` of `linux/fs.h`, with room for the `struct fat_fid` of FAT without a
    /// parent.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        generation: u32,
        place_low: u32,
        /// The upper bits, and a part of what a handle with a parent has.
        place_high: [u16; 2],
    }
    let bytes = (size_of::<Handle>() - 8) as u32;
    let mut handle = Handle { bytes, kind: 0, generation: 0, place_low: 0, place_high: [0; 2] };
    let mut mount = 0;
    #[allow(unsafe_code)]
    // SAFETY: the path is an empty C string, `handle` begins like `struct file_handle` and has room
    // for as many bytes as it says, and both outlive the call.
    let result = unsafe {
        let handle = (&raw mut handle).cast();
        libc::name_to_handle_at(directory.as_raw_fd(), c"".as_ptr(), handle, &mut mount, libc::AT_EMPTY_PATH)
    };
    let is_known = result == 0 && handle.kind == HANDLE_TYPE && handle.bytes == bytes;
    let high = u64::from(handle.place_high[0]);
    is_known.then_some(high << 32 | u64::from(handle.place_low))
}
