//! The known image formats, by qemu's names.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident = $driver:literal,)*) => {
        /// An image format.
        ///
        /// Written and read as the name of qemu's block driver for it. The list is closed, so that
        /// a stated format can never name one of qemu's protocol drivers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ImageFormat {
            $($(#[$doc])* $name,)*
        }

        impl ImageFormat {
            /// All formats.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Name of qemu's block driver.
            pub fn driver(self) -> &'static str {
                match self {
                    $(Self::$name => $driver,)*
                }
            }
        }
    };
}

formats! {
    /// Only the bytes of the disk: a raw image or a block device.
    Raw = "raw",
    /// qemu's format.
    Qcow2 = "qcow2",
    /// qemu's first copy-on-write format.
    Qcow = "qcow",
    /// qemu's short-lived enhanced disk.
    Qed = "qed",
    /// VMware, all kinds.
    Vmdk = "vmdk",
    /// VirtualBox.
    Vdi = "vdi",
    /// Virtual PC, and Hyper-V's older `.vhd`.
    Vpc = "vpc",
    /// Hyper-V.
    Vhdx = "vhdx",
    /// Parallels.
    Parallels = "parallels",
    /// macOS disk images.
    Dmg = "dmg",
    /// Bochs.
    Bochs = "bochs",
    /// Compressed loop, of live CDs.
    Cloop = "cloop",
    /// A disk that qemu encrypts with LUKS. Only where it is stated: a raw disk that a guest
    /// encrypts looks the same.
    Luks = "luks",
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.driver())
    }
}

/// The name of a format is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown image format {name:?}; known are {}", known())]
pub struct UnknownFormat {
    /// The name.
    pub name: String,
}

fn known() -> String {
    ImageFormat::ALL.iter().map(|format| format.driver()).collect::<Vec<_>>().join(", ")
}

impl FromStr for ImageFormat {
    type Err = UnknownFormat;

    /// Accepts qemu's name, or `vhd` for [`ImageFormat::Vpc`].
    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let wanted = if name == "vhd" { "vpc" } else { name };
        let found = Self::ALL.iter().find(|format| format.driver() == wanted);
        found.copied().ok_or_else(|| UnknownFormat { name: name.to_owned() })
    }
}

/// The format that the name of a file promises.
pub(super) fn format_by_name(path: &Path) -> Option<ImageFormat> {
    match suffix(path)?.as_str() {
        "qcow" | "raw" | "luks" => None,
        name => name.parse().ok(),
    }
}

/// What follows the last dot of a file's name, in small letters, without the suffix of a
/// compression after it.
pub(super) fn suffix(path: &Path) -> Option<String> {
    let last = |path: &Path| Some(path.extension()?.to_str()?.to_ascii_lowercase());
    let suffix = last(path)?;
    let is_compressed = matches!(&*suffix, "gz" | "xz" | "zst" | "bz2");
    if is_compressed { last(path.file_stem()?.as_ref()) } else { Some(suffix) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_formats_are_a_closed_list() {
        for format in ImageFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(*format));
        }
        assert_eq!("vhd".parse(), Ok(ImageFormat::Vpc));
        for driver in ["nbd", "file", "json:", "blkdebug", "", "RAW"] {
            assert!(driver.parse::<ImageFormat>().is_err(), "{driver}");
        }
    }

    #[test]
    fn a_suffix_promises_a_format() {
        assert_eq!(format_by_name("a.VMDK".as_ref()), Some(ImageFormat::Vmdk));
        assert_eq!(format_by_name("a.vhd".as_ref()), Some(ImageFormat::Vpc));
        assert_eq!(format_by_name("a.vhd.gz".as_ref()), Some(ImageFormat::Vpc));
        assert_eq!(format_by_name("a.gz".as_ref()), None);
        assert_eq!(format_by_name("a.raw".as_ref()), None);
        assert_eq!(format_by_name("a".as_ref()), None);
    }
}
