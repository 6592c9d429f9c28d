//! Reads opened files in such a way that the host can attribute each read to its file.

use crate::Fatal;
use crate::aio::{self, Aio, Read};
use crate::buffer::{ALIGNMENT, AlignedBuffer};
use crate::control::Control;
use crate::data_ranges::{DataRange, of_extents};
use crate::file_handle::FileHandle;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Advice, Mode, OFlags, fadvise, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, pread};
use std::collections::HashSet;
use std::ffi::CString;
use std::num::NonZeroU64;
use virt_bmap_agent_protocol::record::{Extent, Operation};
use virt_bmap_agent_protocol::{End, ReadOrder, Record};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Bytes in a page of the kernel.
const PAGE: u64 = 4096;

/// Read errors in one file after which the rest of the file is skipped.
const ERRORS_PER_FILE: usize = 16;

/// A file that has been opened and is to be read.
pub(crate) struct OpenFile {
    pub(crate) fd: OwnedFd,
    pub(crate) id: u32,
    /// Number of its directory.
    pub(crate) parent: u32,
    pub(crate) name: CString,
    /// The ranges to read.
    pub(crate) data_ranges: Vec<DataRange>,
    /// The ends of extents to read with [`ReadOrder::Ends`].
    pub(crate) ends: Vec<End>,
    /// Whether all its extents are plain or unwritten.
    pub(crate) is_promised: bool,
    /// Each read is a multiple of this number of bytes.
    pub(crate) unit: usize,
    /// Its extents, if it is read through the cache of the block device.
    pub(crate) cached: Vec<Extent>,
}

/// A file that was taken from the tables of inodes. It is opened only if the host asks for a read.
pub(crate) struct UnopenedFile {
    pub(crate) id: u32,
    /// Number of its directory.
    pub(crate) parent: u32,
    pub(crate) name: CString,
    pub(crate) handle: FileHandle,
    pub(crate) extents: Vec<Extent>,
    pub(crate) size: u64,
}

impl UnopenedFile {
    /// Opens it. `root` is an open directory of its filesystem.
    fn open(&self, root: BorrowedFd<'_>) -> Result<OpenFile, Errno> {
        Ok(OpenFile {
            fd: self.handle.open(root)?,
            id: self.id,
            parent: self.parent,
            name: self.name.clone(),
            data_ranges: of_extents(&self.extents, self.size),
            ends: Vec::new(),
            is_promised: true,
            unit: ALIGNMENT,
            cached: Vec::new(),
        })
    }
}

pub(crate) struct Reader {
    order: ReadOrder,
    /// Whether the host is asked which files to read.
    asks: bool,
    /// Block size of the filesystem.
    block: usize,
    /// Whether the first read of data also reads metadata, such as checksums.
    warms_up: bool,
    buffer: AlignedBuffer,
    /// The block device, if the driver of the filesystem reads through its cache.
    device: Option<OwnedFd>,
    /// With [`ReadOrder::Ends`], if the kernel supports many reads at once.
    aio: Option<Aio>,
}

impl Reader {
    pub(crate) fn new(
        order: ReadOrder,
        asks: bool,
        block: u64,
        warms_up: bool,
        device: Option<OwnedFd>,
    ) -> Self {
        let block = usize::try_from(block).unwrap_or(CHUNK).clamp(1, CHUNK);
        let aio = matches!(order, ReadOrder::Ends(_)).then(|| Aio::new().ok()).flatten();
        Self { order, asks, block, warms_up, buffer: AlignedBuffer::new(CHUNK), device, aio }
    }

    /// How files are read.
    pub(crate) fn order(&self) -> ReadOrder {
        self.order
    }

    /// Whether the agent asks the host which files to read.
    pub(crate) fn asks(&self) -> bool {
        self.asks
    }

    /// Reads a batch of files, or those that the host selects, and then rereads those that it asks
    /// for, of the unopened ones as well. `batch` has at most
    /// [`virt_bmap_agent_protocol::bounds::FILES_PER_BATCH`] files. `root` is where the filesystem
    /// is mounted.
    pub(crate) fn read(
        &mut self,
        control: &mut Control,
        batch: &[OpenFile],
        unopened: &[UnopenedFile],
        root: &str,
    ) -> Result<(), Fatal> {
        let mut chosen: Vec<&OpenFile> = batch.iter().collect();
        if self.asks && !chosen.is_empty() {
            control.put(&Record::SelectFiles { ids: batch.iter().map(|file| file.id).collect() });
            let due: HashSet<u32> = control.reply()?.files.into_iter().collect();
            chosen.retain(|file| due.contains(&file.id));
        }
        if chosen.is_empty() && unopened.is_empty() {
            control.put(&Record::BatchEnd);
            return control.flush();
        }
        if !chosen.is_empty() {
            self.chosen(control, &chosen)?;
        }
        control.put(&Record::BatchEnd);
        let reread: HashSet<u32> = control.reply()?.files.into_iter().collect();
        if reread.is_empty() {
            return Ok(());
        }
        for file in chosen.iter().filter(|file| reread.contains(&file.id)) {
            self.again(control, file)?;
        }
        let mut unopened = unopened.iter().filter(|file| reread.contains(&file.id)).peekable();
        if unopened.peek().is_some() {
            let root = open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            for file in unopened {
                match file.open(root.as_fd()) {
                    Ok(file) => self.again(control, &file)?,
                    Err(errno) => {
                        control.read_failure(Operation::Open, errno, file.parent, file.name.to_bytes(), 0);
                    }
                }
            }
        }
        control.put(&Record::Tag { id: 0, reset: false });
        control.put(&Record::BatchEnd);
        control.flush()
    }

    /// Reads all of a file once more.
    fn again(&mut self, control: &mut Control, file: &OpenFile) -> Result<(), Fatal> {
        self.forget(file);
        control.tag(file.id, true)?;
        self.file(control, file)?;
        control.settle()
    }

    /// Reads the chosen files of a batch. Leaves no tag set.
    fn chosen(&mut self, control: &mut Control, batch: &[&OpenFile]) -> Result<(), Fatal> {
        let (mut promised, tagged): (Vec<&OpenFile>, Vec<&OpenFile>) =
            batch.iter().partition(|file| self.order != ReadOrder::Tags && file.is_promised);
        if matches!(self.order, ReadOrder::Ends(_)) {
            promised.retain(|file| !file.ends.is_empty());
            if self.warms_up {
                self.ends(control, &promised)?;
            }
        }
        control.settle()?;
        if !promised.is_empty() {
            control.put(&Record::Series { ids: promised.iter().map(|file| file.id).collect() });
            control.flush()?;
            if matches!(self.order, ReadOrder::Ends(_)) {
                self.ends(control, &promised)?;
            } else {
                for file in promised {
                    self.file(control, file)?;
                }
            }
            control.settle()?;
        }
        for file in tagged {
            control.tag(file.id, false)?;
            self.file(control, file)?;
        }
        control.settle()?;
        control.put(&Record::Tag { id: 0, reset: false });
        Ok(())
    }

    /// Has the kernel forget a file's data, which would not be read otherwise. What of the metadata
    /// is cached stays.
    fn forget(&self, file: &OpenFile) {
        fadvise(&file.fd, 0, None, Advice::DontNeed).ok();
        for (device, extent) in
            self.device.iter().flat_map(|device| file.cached.iter().map(move |e| (device, e)))
        {
            // Of a page that is named in part, nothing would be forgotten.
            let start = extent.physical / PAGE * PAGE;
            let end = extent.physical.saturating_add(extent.length).div_ceil(PAGE).saturating_mul(PAGE);
            fadvise(device, start, NonZeroU64::new(end - start), Advice::DontNeed).ok();
        }
    }

    /// Reads all of a file.
    fn file(&mut self, control: &mut Control, file: &OpenFile) -> Result<(), Fatal> {
        self.read_ranges(control, file, &file.data_ranges, file.unit)
    }

    /// Reads the ends of files' extents, and not a block more: in the order of the device, where
    /// the kernel makes one request of those that lie side by side.
    fn ends(&mut self, control: &mut Control, files: &[&OpenFile]) -> Result<(), Fatal> {
        let mut ends: Vec<(&OpenFile, &End)> =
            files.iter().flat_map(|file| file.ends.iter().map(move |end| (*file, end))).collect();
        ends.sort_by_key(|(_, end)| end.physical);
        let results = self.aio.as_mut().map(|aio| {
            let length = |end: &End| {
                let length = usize::try_from(end.length).unwrap_or(aio::LARGEST);
                length.next_multiple_of(self.block).min(aio::LARGEST)
            };
            let reads: Vec<Read<'_>> = ends
                .iter()
                .map(|(file, end)| Read { fd: file.fd.as_fd(), at: end.logical, length: length(end) })
                .collect();
            aio.read(&reads)
        });
        for (number, (file, end)) in ends.into_iter().enumerate() {
            // What goes wrong is tried in the plain way, which knows what to do about it.
            let is_read = results.as_ref().is_some_and(|results| results[number].is_ok());
            if !is_read {
                let range = DataRange { start: end.logical, end: end.logical.saturating_add(end.length) };
                self.read_ranges(control, file, &[range], self.block)?;
            }
        }
        Ok(())
    }

    /// Reads ranges of a file, up to a multiple of `unit`.
    fn read_ranges(
        &mut self,
        control: &mut Control,
        file: &OpenFile,
        data_ranges: &[DataRange],
        unit: usize,
    ) -> Result<(), Fatal> {
        let mut errors = 0;
        for range in data_ranges {
            let mut at = range.start;
            while at < range.end {
                let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
                let want = left.min(CHUNK).next_multiple_of(unit).min(CHUNK);
                match pread(&file.fd, &mut self.buffer[..want], at) {
                    Ok(0) => break,
                    Ok(got) => at += got as u64,
                    Err(Errno::INTR) => {}
                    // The filesystem has O_DIRECT, but not for this file.
                    Err(Errno::INVAL) if fcntl_getfl(&file.fd)?.contains(OFlags::DIRECT) => {
                        fcntl_setfl(&file.fd, fcntl_getfl(&file.fd)? - OFlags::DIRECT)?;
                    }
                    Err(errno) => {
                        control.read_failure(Operation::Read, errno, file.parent, file.name.to_bytes(), at);
                        errors += 1;
                        if errors == ERRORS_PER_FILE {
                            return Ok(());
                        }
                        at += want as u64;
                    }
                }
            }
        }
        Ok(())
    }
}
