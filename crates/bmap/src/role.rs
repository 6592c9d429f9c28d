//! What the bytes of a piece are to their object, where they are not just its data.

bitflags::bitflags! {
    /// In what a piece is more than plain data of its object, or less.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct PieceFlags: u8 {
        /// Allocated, but not yet written: reads as zeros, and the bytes on the disk are none of
        /// the object's.
        const UNWRITTEN = 1;
        /// Parity that protects the object's data, and perhaps that of others.
        const PARITY = 1 << 1;
        /// The object's data in another form: compressed, encrypted, packed together with others'.
        /// Bytes do not stand for one another one to one, and the file offset is that of the first.
        const ENCODED = 1 << 2;
        /// The bytes lie in metadata, such as the object's inode.
        const INLINE = 1 << 3;
    }
}

impl PieceFlags {
    /// What each flag is called in the formats.
    pub const NAMES: [(Self, &'static str); 4] = [
        (Self::UNWRITTEN, "unwritten"),
        (Self::PARITY, "parity"),
        (Self::ENCODED, "encoded"),
        (Self::INLINE, "inline"),
    ];

    /// The names of those that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, name)| name)
    }

    /// The flag of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(flag, _)| flag)
    }
}

/// What the bytes of a piece are to their object. By default they are its data, in the first or
/// only copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role {
    /// Which copy this is, where a mirror or its like keeps several: 0 is the first.
    pub copy: u8,
    /// The rest.
    pub flags: PieceFlags,
}

impl Role {
    /// Plain data, in the copy of this number.
    pub fn copy(copy: u8) -> Self {
        Self { copy, ..Self::default() }
    }

    /// Whether the object's data can be made of the bytes: it cannot of what was never written, nor
    /// of parity alone.
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
