//! Names: UTF-16 on the disk, bytes here.

use crate::fields::Fields as _;
use crate::record::Reference;

/// The rules of which a name is one (`FILE_NAME_TYPE_FLAGS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Case-sensitive, every character but `/` and zero.
    Posix,
    /// A long name of Windows.
    Win32,
    /// The short name of a file that has a long one, too.
    Dos,
    /// A long name of Windows that is short enough for DOS.
    Win32AndDos,
}

/// A name of a file in a directory (`FILE_NAME_ATTR`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The directory.
    pub parent: Reference,
    /// The rules that it follows.
    pub namespace: Namespace,
    /// The name, in UTF-8 as [`decode`] makes it.
    pub name: Vec<u8>,
}

impl Name {
    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let namespace = match value.byte(0x41)? {
            0 => Namespace::Posix,
            1 => Namespace::Win32,
            2 => Namespace::Dos,
            3 => Namespace::Win32AndDos,
            _ => return None,
        };
        let name = value.get(0x42..)?.get(..2 * usize::from(value.byte(0x40)?))?;
        Some(Self { parent: value.le64(0)?.into(), namespace, name: decode(name) })
    }
}

/// UTF-16 as UTF-8. A surrogate without its other half becomes three bytes of its own, as ntfs-3g
/// shows it (`utf16_to_utf8` with `ALLOW_BROKEN_UNICODE`).
pub(crate) fn decode(utf16: &[u8]) -> Vec<u8> {
    let units = utf16.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let mut bytes = Vec::with_capacity(utf16.len());
    for unit in char::decode_utf16(units) {
        match unit {
            Ok(character) => bytes.extend(character.encode_utf8(&mut [0; 4]).bytes()),
            Err(lone) => {
                let unit = lone.unpaired_surrogate();
                let six_bits = |shift: u32| 0x80 | (unit >> shift & 0x3f) as u8;
                bytes.extend([0xe0 | (unit >> 12) as u8, six_bits(6), six_bits(0)]);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_utf8_and_lone_surrogates_are_kept_apart() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        assert_eq!(decode(&utf16("Grüße 🦀")), "Grüße 🦀".as_bytes());
        assert_eq!(decode(&[0x00, 0xd8, b'a', 0]), [0xed, 0xa0, 0x80, b'a']);
        assert_eq!(decode(&[]), []);
    }
}
