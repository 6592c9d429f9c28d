//! Whether the log says that the volume was unmounted (`RESTART_PAGE_HEADER` and `RESTART_AREA` of
//! `logfile.h` in ntfs-3g).

use crate::ReadAt;
use crate::fields::Fields as _;
use crate::fixup;
use crate::volume::Volume;

/// Number of the record of `$LogFile`.
const LOG_FILE: u64 = 2;

/// Bytes of a page of the log.
const PAGE: usize = 4096;

impl<R: ReadAt> Volume<R> {
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
