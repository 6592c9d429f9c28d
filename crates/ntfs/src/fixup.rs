//! Fixups: the last two bytes of every 512 of a record or an index block are replaced by a number
//! that changes with each write, so that a torn write shows. The bytes themselves are in the
//! *update sequence array* (`NTFS_RECORD` of `layout.h`).

use crate::fields::Fields as _;

/// Distance of the fixups, whatever the size of sectors is (`NTFS_BLOCK_SIZE`).
const STRIDE: usize = 512;

/// Puts the bytes back in their places; `None` if the number differs somewhere, or the array does
/// not fit.
pub(crate) fn undo(record: &mut [u8]) -> Option<()> {
    let array = usize::from(record.le16(4)?);
    let count = usize::from(record.le16(6)?);
    if !record.len().is_multiple_of(STRIDE) || count != record.len() / STRIDE + 1 {
        return None;
    }
    let number: [u8; 2] = record.array(array)?;
    // The array lies before its first fixup.
    if array + 2 * count > STRIDE - 2 {
        return None;
    }
    for place in 1..count {
        let end = place * STRIDE;
        let saved: [u8; 2] = record.array(array + 2 * place)?;
        let fixed = record.get_mut(end - 2..end)?;
        if *fixed != number {
            return None;
        }
        fixed.copy_from_slice(&saved);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_put_back_and_torn_records_are_noticed() {
        let mut record = vec![0u8; 1024];
        record[4] = 0x30;
        record[6] = 3;
        record[0x30..0x36].copy_from_slice(&[7, 7, 1, 2, 3, 4]);
        record[510..512].copy_from_slice(&[7, 7]);
        record[1022..1024].copy_from_slice(&[7, 7]);
        let mut torn = record.clone();
        torn[1023] = 8;
        assert_eq!(undo(&mut torn), None);
        assert_eq!(undo(&mut record), Some(()));
        assert_eq!((&record[510..512], &record[1022..]), (&[1, 2][..], &[3, 4][..]));
        for (at, byte) in [(6, 2), (6, 4), (4, 0xfc), (5, 0x40)] {
            let mut bad = record.clone();
            bad[at] = byte;
            assert_eq!(undo(&mut bad), None, "{at}");
        }
        assert_eq!(undo(&mut []), None);
    }
}
