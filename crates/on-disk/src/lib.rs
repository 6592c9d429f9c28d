//! Structures of filesystems whose kernel drivers do not say where directories and tables lie.
//!
//! The host names the parts of a volume by them, and the agent computes the place of directories.
//! Everything here takes bytes of a volume that may be hostile: nothing panics, and a field that
//! contradicts another makes the answer `None`.

pub mod exfat;
pub mod fat;
pub mod hfsplus;
pub mod iso9660;
pub mod udf;

/// Reads bytes of a volume, given their offset and number; `None` if that fails, or lies beyond
/// the end.
pub type Read<'a> = &'a dyn Fn(u64, u64) -> Option<Vec<u8>>;

/// Unsigned integers of on-disk structures; `None` past the end.
pub trait Fields {
    /// The `N` bytes at an offset.
    fn bytes_at<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// One byte.
    fn u8_at(&self, at: usize) -> Option<u8> {
        self.bytes_at::<1>(at).map(|[byte]| byte)
    }
    /// Two bytes, the lowest first.
    fn le16(&self, at: usize) -> Option<u16> {
        self.bytes_at(at).map(u16::from_le_bytes)
    }
    /// Four bytes, the lowest first.
    fn le32(&self, at: usize) -> Option<u32> {
        self.bytes_at(at).map(u32::from_le_bytes)
    }
    /// Eight bytes, the lowest first.
    fn le64(&self, at: usize) -> Option<u64> {
        self.bytes_at(at).map(u64::from_le_bytes)
    }
    /// Two bytes, the highest first.
    fn be16(&self, at: usize) -> Option<u16> {
        self.bytes_at(at).map(u16::from_be_bytes)
    }
    /// Four bytes, the highest first.
    fn be32(&self, at: usize) -> Option<u32> {
        self.bytes_at(at).map(u32::from_be_bytes)
    }
    /// Eight bytes, the highest first.
    fn be64(&self, at: usize) -> Option<u64> {
        self.bytes_at(at).map(u64::from_be_bytes)
    }
}

impl Fields for [u8] {
    fn bytes_at<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk::<N>().copied()
    }
}

/// A reader of these bytes.
#[cfg(test)]
pub(crate) fn reader(disk: &[u8]) -> impl Fn(u64, u64) -> Option<Vec<u8>> {
    let disk = disk.to_vec();
    move |at, length| Some(disk.get(at as usize..)?.get(..length as usize)?.to_vec())
}
