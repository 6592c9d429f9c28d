//! Records of `$MFT`: the header, and what can be wrong with a file (`MFT_RECORD` of `layout.h`).

use crate::fields::Fields as _;
use crate::fixup;

/// What is wrong with a file or its records. What a problem does not concern is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Problem {
    /// A record cannot be read, or lies outside of `$MFT`.
    #[error("a record that cannot be read")]
    Unreadable,
    /// A record is none, or was written only in part.
    #[error("a damaged record")]
    Record,
    /// An attribute exceeds its record, or its header makes no sense.
    #[error("a damaged attribute")]
    Attribute,
    /// A run list makes no sense.
    #[error("a damaged run list")]
    RunList,
    /// A run lies outside of the volume.
    #[error("a run outside of the volume")]
    RunOutside,
    /// The parts of an attribute do not follow each other, or do not have its allocated size.
    #[error("an attribute with missing or overlapping parts")]
    Parts,
    /// The list of attributes makes no sense.
    #[error("a damaged list of attributes")]
    AttributeList,
    /// The list of attributes names a record that is not one of this file.
    #[error("a list of attributes with records of other files")]
    Extension,
    /// An index of file names makes no sense.
    #[error("a damaged directory index")]
    Index,
}

/// A reference to a record (`MFT_REF`): its number, and how often it had been used then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Number of the record in `$MFT`.
    pub number: u64,
    /// Its sequence number.
    pub sequence: u16,
}

impl From<u64> for Reference {
    fn from(raw: u64) -> Self {
        Self { number: raw & 0xffff_ffff_ffff, sequence: (raw >> 48) as u16 }
    }
}

/// A record whose fixups have been undone.
#[derive(Debug)]
pub(crate) struct Record {
    bytes: Vec<u8>,
    pub(crate) sequence: u16,
    pub(crate) links: u16,
    pub(crate) is_directory: bool,
    /// The record of the file whose attributes are continued here.
    pub(crate) base: Option<Reference>,
    attributes: usize,
    end: usize,
}

impl Record {
    /// Reads a record; `None` if it is not in use.
    pub(crate) fn of(mut bytes: Vec<u8>) -> Result<Option<Self>, Problem> {
        const IN_USE: u16 = 1;
        const IS_DIRECTORY: u16 = 2;
        match bytes.get(..4) {
            Some(b"FILE") => {}
            // It was never used.
            Some(&[0, 0, 0, 0]) => return Ok(None),
            _ => return Err(Problem::Record),
        }
        // The flags are read first: damage of a record that is not in use is of no interest.
        let flags = bytes.le16(0x16).ok_or(Problem::Record)?;
        if flags & IN_USE == 0 {
            return Ok(None);
        }
        fixup::undo(&mut bytes).ok_or(Problem::Record)?;
        Self::in_use(bytes, flags & IS_DIRECTORY != 0).ok_or(Problem::Record).map(Some)
    }

    fn in_use(bytes: Vec<u8>, is_directory: bool) -> Option<Self> {
        let base = Some(bytes.le64(0x20)?).filter(|base| *base != 0).map(Reference::from);
        let attributes = usize::from(bytes.le16(0x14)?);
        // `bytes_in_use`
        let end = usize::try_from(bytes.le32(0x18)?).ok()?;
        let (sequence, links) = (bytes.le16(0x10)?, bytes.le16(0x12)?);
        let is_sound = attributes >= 0x2a && attributes <= end && end <= bytes.len();
        is_sound.then_some(Self { bytes, sequence, links, is_directory, base, attributes, end })
    }

    /// The bytes of its attributes.
    pub(crate) fn attributes(&self) -> &[u8] {
        self.bytes.get(self.attributes..self.end).unwrap_or_default()
    }
}
