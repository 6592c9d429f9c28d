//! In which state Windows left the volume: marked as dirty (`VOLUME_INFORMATION` of `layout.h` in
//! ntfs-3g), with an open log (`RESTART_PAGE_HEADER` and `RESTART_AREA` of `logfile.h`), or
//! hibernated (`ntfs_volume_check_hiberfile` of `volume.c`).

use crate::ReadAt;
use crate::attribute::AttributeType;
use crate::fields::Fields as _;
use crate::file::Content;
use crate::fixup;
use crate::volume::Volume;

/// Number of the record of `$LogFile`.
const LOG_FILE: u64 = 2;

/// Number of the record of `$Volume`.
const VOLUME: u64 = 3;

/// Number of the record of the root directory.
const ROOT: u64 = 5;

/// The file to which Windows writes its memory, in the root directory.
const HIBERNATION_FILE: &[u8] = b"hiberfil.sys";

/// Bytes of a page of the log.
const PAGE: usize = 4096;

impl<R: ReadAt> Volume<R> {
    /// Whether the volume is marked as one that must be checked (`VOLUME_IS_DIRTY`).
    pub fn is_dirty(&self) -> bool {
        const DIRTY: u16 = 1;
        let Ok(Some(file)) = self.file(VOLUME) else { return false };
        match file.stream(AttributeType::VOLUME_INFORMATION).map(|stream| &stream.content) {
            Some(Content::Resident(value)) => value.le16(10).is_some_and(|flags| flags & DIRTY != 0),
            _ => false,
        }
    }

    /// Whether Windows hibernates, as it also does when it is shut down for a fast start: what it
    /// will write to the volume when it wakes up is in its memory.
    pub fn is_hibernated(&self) -> bool {
        let Ok(Some(root)) = self.file(ROOT) else { return false };
        let mut found = None;
        // The names in the sound part of a damaged index are names, too.
        let _ = self.entries(&root, |entry| {
            if entry.name.name.eq_ignore_ascii_case(HIBERNATION_FILE) {
                found = Some(entry.file.number);
            }
        });
        let Some(Ok(Some(file))) = found.map(|number| self.file(number)) else { return false };
        let mut magic = [0; 4];
        let is_read = file.data().and_then(|data| self.read_runs(data.runs(), 0, &mut magic)).is_some();
        is_read && magic.eq_ignore_ascii_case(b"hibr")
    }

    /// Whether the log may have changes that are not on the volume yet: Windows had mounted it, and
    /// did not unmount it.
    pub fn is_log_open(&self) -> bool {
        let Ok(Some(file)) = self.file(LOG_FILE) else { return false };
        let Some(data) = file.data() else { return false };
        let restart = |number: u64| {
            let mut page = vec![0; PAGE];
            self.read_runs(data.runs(), number * PAGE as u64, &mut page)?;
            Restart::of(page)
        };
        // There are two copies, which are written by turns.
        let newest = [restart(0), restart(1)].into_iter().flatten().max_by_key(|restart| restart.lsn);
        newest.is_some_and(|restart| restart.is_open)
    }
}

struct Restart {
    /// Log sequence number: when it was written.
    lsn: u64,
    is_open: bool,
}

impl Restart {
    /// `None` if it is no restart page: the log is new, or larger than usual.
    fn of(mut page: Vec<u8>) -> Option<Self> {
        const NO_CLIENT: u16 = 0xffff;
        const IS_CLEAN: u16 = 2;
        if !page.starts_with(b"RSTR") {
            return None;
        }
        fixup::undo(&mut page)?;
        // `restart_area_offset`
        let area = page.get(usize::from(page.le16(0x18)?)..)?;
        // `client_in_use_list` and `flags`
        let is_open = area.le16(0x0c)? != NO_CLIENT && area.le16(0x0e)? & IS_CLEAN == 0;
        Some(Self { lsn: area.le64(0)?, is_open })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(in_use: u16, flags: u16) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..4].copy_from_slice(b"RSTR");
        page[4] = 0x1e;
        page[6] = 9;
        page[0x18] = 0x30;
        page[0x3c..0x3e].copy_from_slice(&in_use.to_le_bytes());
        page[0x3e..0x40].copy_from_slice(&flags.to_le_bytes());
        page
    }

    #[test]
    fn a_log_is_open_while_a_client_uses_it() {
        let is_open = |page| Restart::of(page).map(|restart| restart.is_open);
        assert_eq!(is_open(page(0, 0)), Some(true));
        assert_eq!(is_open(page(0, 2)), Some(false));
        assert_eq!(is_open(page(0xffff, 0)), Some(false));
        assert_eq!(is_open(vec![0xff; PAGE]), None);
    }
}
