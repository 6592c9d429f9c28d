//! Tags of the reparse points of Windows.

use std::fmt;
use std::str::FromStr;

/// The tag of a reparse point (`IO_REPARSE_TAG_*`): which program gives the object its meaning.
///
/// As text it is the number, and its name where that is known.
///
/// ```
/// use virt_bmap_map::ReparseTag;
///
/// assert_eq!(ReparseTag(0x8000_0017).to_string(), "0x80000017 WOF");
/// assert_eq!(ReparseTag(0x8000_0099).to_string(), "0x80000099");
/// assert_eq!("0x80000017 WOF".parse(), Ok(ReparseTag(0x8000_0017)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReparseTag(pub u32);

/// The names without `IO_REPARSE_TAG_` ("Reparse Tags" in the specification MS-FSCC, and
/// `ntifs.h`).
const NAMES: [(u32, &str); 30] = [
    (0x8000_0005, "DRIVE_EXTENDER"),
    (0x8000_0006, "HSM2"),
    (0x8000_0007, "SIS"),
    (0x8000_0008, "WIM"),
    (0x8000_0009, "CSV"),
    (0x8000_000a, "DFS"),
    (0x8000_000b, "FILTER_MANAGER"),
    (0x8000_0012, "DFSR"),
    (0x8000_0013, "DEDUP"),
    (0x8000_0014, "NFS"),
    (0x8000_0015, "FILE_PLACEHOLDER"),
    (0x8000_0016, "DFM"),
    (0x8000_0017, "WOF"),
    (0x8000_0018, "WCI"),
    (0x8000_001b, "APPEXECLINK"),
    (0x8000_001e, "STORAGE_SYNC"),
    (0x8000_0020, "UNHANDLED"),
    (0x8000_0021, "ONEDRIVE"),
    (0x8000_0023, "AF_UNIX"),
    (0x8000_0024, "LX_FIFO"),
    (0x8000_0025, "LX_CHR"),
    (0x8000_0026, "LX_BLK"),
    (0x9000_001c, "PROJFS"),
    (0x9000_1018, "WCI_1"),
    (0xa000_0003, "MOUNT_POINT"),
    (0xa000_000c, "SYMLINK"),
    (0xa000_0019, "GLOBAL_REPARSE"),
    (0xa000_001d, "LX_SYMLINK"),
    (0xa000_001f, "WCI_TOMBSTONE"),
    (0xc000_0004, "HSM"),
];

/// `IO_REPARSE_TAG_CLOUD`. The bits of [`CLOUD_VARIANT`] make its variants, `CLOUD_1` to `CLOUD_F`.
const CLOUD: u32 = 0x9000_001a;
const CLOUD_VARIANT: u32 = 0xf000;

impl fmt::Display for ReparseTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)?;
        if let Some((_, name)) = NAMES.iter().find(|(tag, _)| *tag == self.0) {
            return write!(f, " {name}");
        }
        match (self.0 & !CLOUD_VARIANT, (self.0 & CLOUD_VARIANT) >> 12) {
            (CLOUD, 0) => f.write_str(" CLOUD"),
            (CLOUD, variant) => write!(f, " CLOUD_{variant:X}"),
            _ => Ok(()),
        }
    }
}

/// Text that is no tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reparse tag is a number such as 0x80000017, and perhaps its name")]
pub struct NotATag;

/// Only the number counts.
impl FromStr for ReparseTag {
    type Err = NotATag;

    fn from_str(text: &str) -> Result<Self, NotATag> {
        let digits = text.split(' ').next().and_then(|number| number.strip_prefix("0x")).ok_or(NotATag)?;
        let is_hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u32::from_str_radix(digits, 16).ok().filter(|_| is_hexadecimal);
        number.map(Self).ok_or(NotATag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_they_are_written() {
        for (number, text) in [
            (0xa000_000c, "0xa000000c SYMLINK"),
            (0x9000_001a, "0x9000001a CLOUD"),
            (0x9000_f01a, "0x9000f01a CLOUD_F"),
            (0x9001_001a, "0x9001001a"),
            (7, "0x00000007"),
        ] {
            assert_eq!(ReparseTag(number).to_string(), text);
            assert_eq!(text.parse(), Ok(ReparseTag(number)));
        }
        for text in ["", "7", "0x", "0x+7", "0x1ffffffff", "WOF"] {
            assert_eq!(text.parse::<ReparseTag>(), Err(NotATag), "{text}");
        }
    }
}
