//! What the bytes of a piece are to their object: data, a copy, parity, …

bitflags::bitflags! {
    /// In what way a piece is not plain data of its object.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct PieceFlags: u8 {
        /// Allocated and never written: it reads as zeroes, and the bytes on the disk do not belong
        /// to the object's data.
        const UNWRITTEN = 1;
        /// Parity that protects the object's data, and perhaps that of others.
        const PARITY = 1 << 1;
        /// The object's data in another form: compressed, encrypted, or packed together with data
        /// of others. Bytes on the disk do not correspond one to one to bytes of the file; the file
        /// offset is that of the first.
        const ENCODED = 1 << 2;
        /// The bytes lie in metadata, such as the object's inode.
        const INLINE = 1 << 3;
    }
}

impl PieceFlags {
    /// The name of each flag in the formats.
    pub const NAMES: [(Self, &'static str); 4] = [
        (Self::UNWRITTEN, "unwritten"),
        (Self::PARITY, "parity"),
        (Self::ENCODED, "encoded"),
        (Self::INLINE, "inline"),
    ];

    /// The names of the flags that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, name)| name)
    }

    /// The flag of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(flag, _)| flag)
    }
}

/// What the bytes of a piece are to their object. The default is its data, in the first or only
/// copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role {
    /// Number of the copy, if there are several as in a mirror: 0 is the first.
    pub copy: u8,
    /// All else.
    pub flags: PieceFlags,
}

impl Role {
    /// Plain data, in the copy with this number.
    pub fn copy(copy: u8) -> Self {
        Self { copy, ..Self::default() }
    }

    /// Whether the bytes hold data of the object. Unwritten bytes and parity do not.
    pub fn holds_data(self) -> bool {
        !self.flags.intersects(PieceFlags::UNWRITTEN | PieceFlags::PARITY)
    }
}

impl From<PieceFlags> for Role {
    /// The first or only copy, with these flags.
    fn from(flags: PieceFlags) -> Self {
        Self { copy: 0, flags }
    }
}
