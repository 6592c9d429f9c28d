//! Attributes: each is content with a type and, perhaps, a name (`ATTR_RECORD` of `layout.h`).

use crate::fields::Fields as _;
use crate::record::Problem;

/// The type of an attribute (`ATTR_TYPES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeType(pub u32);

impl AttributeType {
    /// `$STANDARD_INFORMATION`: times.
    pub const STANDARD_INFORMATION: Self = Self(0x10);
    /// `$ATTRIBUTE_LIST`: where the attributes of a file are that do not fit its first record.
    pub const ATTRIBUTE_LIST: Self = Self(0x20);
    /// `$FILE_NAME`: a name and the directory that has it.
    pub const FILE_NAME: Self = Self(0x30);
    /// `$OBJECT_ID`
    pub const OBJECT_ID: Self = Self(0x40);
    /// `$SECURITY_DESCRIPTOR`
    pub const SECURITY_DESCRIPTOR: Self = Self(0x50);
    /// `$VOLUME_INFORMATION`
    pub const VOLUME_INFORMATION: Self = Self(0x70);
    /// `$DATA`: the data of a file, or a named stream.
    pub const DATA: Self = Self(0x80);
    /// `$INDEX_ROOT`: the root of an index, such as the entries of a small directory.
    pub const INDEX_ROOT: Self = Self(0x90);
    /// `$INDEX_ALLOCATION`: the blocks of an index.
    pub const INDEX_ALLOCATION: Self = Self(0xa0);
    /// `$BITMAP`: which blocks of an index, or records of `$MFT`, are in use.
    pub const BITMAP: Self = Self(0xb0);
    /// `$REPARSE_POINT`
    pub const REPARSE_POINT: Self = Self(0xc0);
    /// `$EA`: extended attributes of OS/2 and of the Windows Subsystem for Linux.
    pub const EA: Self = Self(0xe0);
    /// `$LOGGED_UTILITY_STREAM`: such as the keys of an encrypted file.
    pub const LOGGED_UTILITY_STREAM: Self = Self(0x100);
}

/// How the content of an attribute is stored (`ATTR_FLAGS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u16);

impl Flags {
    pub(crate) fn is_compressed(self) -> bool {
        const COMPRESSION_MASK: u16 = 0x00ff;
        self.0 & COMPRESSION_MASK != 0
    }

    pub(crate) fn is_encrypted(self) -> bool {
        self.0 & 0x4000 != 0
    }

    pub(crate) fn is_sparse(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

/// An attribute, or a part of one, in a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: AttributeType,
    /// In UTF-16.
    pub(crate) name: &'a [u8],
    pub(crate) flags: Flags,
    pub(crate) body: Body<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    Resident(&'a [u8]),
    NonResident(NonResident<'a>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct NonResident<'a> {
    /// The clusters of this part: the first, and the one after the last.
    pub(crate) vcn: u64,
    pub(crate) end: u64,
    /// Valid in the first part alone.
    pub(crate) allocated: u64,
    pub(crate) size: u64,
    pub(crate) initialized: u64,
    pub(crate) pairs: &'a [u8],
}

/// The attributes of a record, given as the bytes of all of them. After a damaged one there is no
/// other.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, Problem>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        const END: u32 = 0xffff_ffff;
        let bytes = rest.take()?;
        match bytes.le32(0) {
            Some(END) | None => None,
            Some(kind) => match attribute(bytes, AttributeType(kind)) {
                Some((attribute, after)) => {
                    rest = Some(after);
                    Some(Ok(attribute))
                }
                None => Some(Err(Problem::Attribute)),
            },
        }
    })
}

fn attribute(bytes: &[u8], kind: AttributeType) -> Option<(Attribute<'_>, &[u8])> {
    let length = usize::try_from(bytes.le32(4)?).ok()?;
    if length < 24 || length % 8 != 0 {
        return None;
    }
    let (whole, after) = bytes.split_at_checked(length)?;
    let (name_length, name_at) = (usize::from(whole.byte(9)?), usize::from(whole.le16(10)?));
    let name = if name_length == 0 { &[][..] } else { whole.get(name_at..)?.get(..2 * name_length)? };
    let body = if whole.byte(8)? == 0 {
        let (length, at) = (usize::try_from(whole.le32(16)?).ok()?, usize::from(whole.le16(20)?));
        Body::Resident(whole.get(at..)?.get(..length)?)
    } else {
        // `highest_vcn` is -1 if nothing is allocated.
        let (vcn, end) = (whole.le64(16)?, whole.le64(24)?.wrapping_add(1));
        if vcn > end || i64::try_from(end).is_err() {
            return None;
        }
        Body::NonResident(NonResident {
            vcn,
            end,
            allocated: whole.le64(40)?,
            size: whole.le64(48)?,
            initialized: whole.le64(56)?,
            pairs: whole.get(usize::from(whole.le16(32)?)..)?,
        })
    };
    Some((Attribute { kind, name, flags: Flags(whole.le16(12)?), body }, after))
}
