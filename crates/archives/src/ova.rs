//! The disks of an appliance (OVA): a tar archive with an OVF description and the disks' files.
//!
//! DMTF's DSP0243, "Open Virtualization Format Specification" 1.1.1, 5.3: the archive is in the
//! format of POSIX, and the description is its first file.

use crate::ReadAt;
pub use crate::tar::Member;
use crate::{ovf, tar};
use std::io;

/// Longest description, in bytes.
const MOST_XML: u64 = 4 << 20;

/// An appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ova {
    /// Its disks that have a file, in the order of the description.
    pub disks: Vec<Member>,
    /// How many virtual machines it has.
    pub systems: usize,
}

/// Why an archive is not used as an appliance.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OvaError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// There is no header where one should be.
    #[error("it is damaged: there is no header of a file at {offset:#x}")]
    NoHeader {
        /// Where.
        offset: u64,
    },
    /// A file reaches past the end.
    #[error("it is cut off: the file of {size} bytes after {offset:#x} reaches past its end")]
    Truncated {
        /// Where the file's header is.
        offset: u64,
        /// The size that the header gives.
        size: u64,
    },
    /// It has too many files.
    #[error("it has more than {limit} files, which no appliance has")]
    TooMany {
        /// Most files that are listed.
        limit: usize,
    },
    /// A name or an extended header is too long.
    #[error("the name of one of its files is too long")]
    LongName,
    /// A name is not UTF-8.
    #[error("the name of one of its files is no text")]
    NotText,
    /// An extended header breaks its rules.
    #[error("it is damaged: an extended header has records that cannot be read")]
    BadExtension,
    /// A name leads out of the archive.
    #[error("it has a file with the name {name:?}, which leads elsewhere")]
    BadName {
        /// The name.
        name: String,
    },
    /// Two files have the same name.
    #[error("it has the file {name:?} twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// A member is a link, a device, or something else that an appliance does not have.
    #[error("{name:?} in it is no plain file")]
    NoFile {
        /// The name.
        name: String,
    },
    /// A member is stored with its holes left out.
    #[error("it has sparse files, so the disks are not in it as they are")]
    Sparse,
    /// It has no description, or several.
    #[error("it has {count} descriptions (.ovf), and an appliance has one")]
    Descriptions {
        /// How many.
        count: usize,
    },
    /// The description is too long.
    #[error("its description has {size} bytes, and at most {limit} are read")]
    LongDescription {
        /// Its size.
        size: u64,
        /// Most bytes that are read.
        limit: u64,
    },
    /// The description cannot be read.
    #[error("its description (.ovf) cannot be read: {reason}")]
    BadXml {
        /// Why.
        reason: String,
    },
    /// A disk's file is compressed as a whole.
    #[error("its disk {name:?} is compressed ({kind})")]
    Compressed {
        /// The file.
        name: String,
        /// The description's word for the compression.
        kind: String,
    },
    /// A disk's file is in pieces.
    #[error("its disk {name:?} is in pieces")]
    Chunks {
        /// The file.
        name: String,
    },
    /// A disk needs another one below it.
    #[error("one of its disks needs another one as its parent")]
    Parent,
    /// A disk's file is not in the archive.
    #[error("its disk {name:?} is not in it")]
    Missing {
        /// The file, as the description names it.
        name: String,
    },
    /// It has no disks.
    #[error("its description names no disk that has a file")]
    NoDisk,
}

/// Whether a file that begins with these 512 bytes is a tar archive.
pub fn is_tar(head: &[u8]) -> bool {
    tar::is_header(head)
}

/// Finds the disks of an appliance.
///
/// # Errors
/// [`OvaError`]
pub fn read(archive: &dyn ReadAt) -> Result<Ova, OvaError> {
    let members = tar::members(archive)?;
    let is_ovf =
        |member: &&Member| member.name.len() > 4 && member.name.to_ascii_lowercase().ends_with(".ovf");
    let descriptions: Vec<&Member> = members.iter().filter(is_ovf).collect();
    let &[description] = &descriptions[..] else {
        return Err(OvaError::Descriptions { count: descriptions.len() });
    };
    let size = description.size;
    if size > MOST_XML {
        return Err(OvaError::LongDescription { size, limit: MOST_XML });
    }
    let mut text = vec![0; size as usize];
    archive.read_at(&mut text, description.offset)?;
    let envelope = ovf::read(&text)?;
    // Names are relative to the description.
    let directory = description.name.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut disks = Vec::new();
    for name in envelope.disks {
        let found = [name.clone(), decoded(&name)].into_iter().find_map(|name| {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            members.iter().find(|member| member.name == path)
        });
        disks.push(found.ok_or(OvaError::Missing { name })?.clone());
    }
    if disks.is_empty() {
        return Err(OvaError::NoDisk);
    }
    Ok(Ova { disks, systems: envelope.systems })
}

/// A reference without its escapes: it is a URI (RFC 3986, 2.1).
fn decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped =
            behind.get(..2).filter(|_| byte == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &behind[2..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A member with a header whose checksum is right.
    fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        sum(&mut header);
        header.extend_from_slice(content);
        header.resize(header.len().next_multiple_of(512), 0);
        header
    }

    fn sum(header: &mut [u8]) {
        header[148..156].fill(b' ');
        let sum: u64 = header[..512].iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn ovf(files: &str, disks: &str) -> Vec<u8> {
        format!(
            "<?xml version=\"1.0\"?><Envelope xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\
             <References>{files}</References><DiskSection>{disks}</DiskSection><VirtualSystem/></Envelope>"
        )
        .into_bytes()
    }

    const FILES: &str =
        "<File ovf:id=\"f1\" ovf:href=\"b.vmdk\"/><File ovf:id=\"f2\" ovf:href=\"a%20.vmdk\"/>";
    const DISKS: &str = "<Disk ovf:fileRef=\"f2\"/><Disk ovf:capacity=\"1\"/><Disk ovf:fileRef=\"f1\"/>";

    fn appliance() -> Vec<u8> {
        [
            member("x.ovf", b'0', &ovf(FILES, DISKS)),
            member("./b.vmdk", b'0', &[1; 700]),
            member("a .vmdk", 0, &[2; 5]),
            vec![0; 1024],
        ]
        .concat()
    }

    fn read(archive: &[u8]) -> Result<Ova, OvaError> {
        super::read(&archive.to_vec())
    }

    #[test]
    fn disks_are_in_the_order_of_the_description() {
        let archive = appliance();
        let ova = read(&archive).unwrap();
        assert_eq!((ova.systems, ova.disks.len()), (1, 2));
        for (disk, (name, byte, size)) in ova.disks.iter().zip([("a .vmdk", 2, 5), ("b.vmdk", 1, 700)]) {
            assert_eq!((&*disk.name, disk.size), (name, size));
            let bytes = &archive[disk.offset as usize..][..size as usize];
            assert!(bytes.iter().all(|other| *other == byte));
        }
        assert!(read(&archive[..archive.len() - 1024]).is_ok(), "no end of the archive");
    }

    #[test]
    fn hostile_archives_are_refused() {
        use OvaError::*;
        let with = |files: &str, disks: &str, more: &[Vec<u8>]| {
            let archive = [vec![member("x.ovf", b'0', &ovf(files, disks))], more.to_vec()].concat().concat();
            read(&archive).unwrap_err()
        };
        let (file, disk) = ("<File ovf:id=\"f\" ovf:href=\"d\"/>", "<Disk ovf:fileRef=\"f\"/>");
        let d = member("d", b'0', b"1");
        assert!(matches!(with(file, disk, &[]), Missing { .. }));
        assert!(matches!(with(file, disk, &[d.clone(), d.clone()]), Twice { .. }));
        assert!(matches!(with(file, disk, &[member("../d", b'0', b"1")]), BadName { .. }));
        assert!(matches!(with(file, disk, &[member("/d", b'0', b"1")]), BadName { .. }));
        assert!(matches!(with(file, disk, &[member("d", b'2', b"")]), NoFile { .. }));
        assert!(matches!(with(file, disk, &[member("d", b'S', b"1")]), NoFile { .. }));
        assert!(matches!(with(file, disk, &[member("y.ovf", b'0', b"")]), Descriptions { count: 2 }));
        assert!(matches!(with(file, disk, &[vec![7; 512]]), NoHeader { .. }));
        assert!(matches!(with(file, "", std::slice::from_ref(&d)), NoDisk));
        assert!(matches!(with(file, "<Disk ovf:fileRef=\"g\"/>", std::slice::from_ref(&d)), BadXml { .. }));
        assert!(matches!(with(file, "<Disk ovf:fileRef=\"f\" ovf:parentRef=\"g\"/>", &[]), Parent));
        assert!(matches!(with("<File ovf:id=\"f\"", disk, &[]), BadXml { .. }));
        let gzip = "<File ovf:id=\"f\" ovf:href=\"d\" ovf:compression=\"gzip\"/>";
        assert!(matches!(with(gzip, disk, std::slice::from_ref(&d)), Compressed { .. }));
        let chunks = "<File ovf:id=\"f\" ovf:href=\"d\" ovf:chunkSize=\"1\"/>";
        assert!(matches!(with(chunks, disk, &[d]), Chunks { .. }));
        assert!(matches!(with(file, disk, &[member("p", b'x', b"22 GNU.sparse.major=1\n")]), Sparse));

        // A member that says to be longer than the archive, in octal and in base 256.
        for size in [&b"77777777777"[..], b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", b"\xff"] {
            let mut d = member("d", b'0', b"1");
            d[124..124 + size.len()].copy_from_slice(size);
            sum(&mut d);
            let error = with(file, disk, &[d]);
            assert!(matches!(error, Truncated { .. } | NoHeader { .. }), "{error}");
        }
        let many = member("d", b'5', b"").repeat(5000);
        assert!(matches!(read(&many).unwrap_err(), TooMany { .. }));
        let cut = appliance();
        assert!(matches!(read(&cut[..2100]).unwrap_err(), Truncated { .. }));
    }

    #[test]
    fn long_names_and_sizes_come_from_extended_headers() {
        let long = format!("{}/d", "x".repeat(200));
        let file = format!("<File ovf:id=\"f\" ovf:href=\"{long}\"/>");
        let disk = "<Disk ovf:fileRef=\"f\"/>";
        let path = format!("path={long}\n");
        let record = format!("{} {path}10 size=3\n", path.len() + 4);
        for name in [member("p", b'x', record.as_bytes()), member("p", b'L', long.as_bytes())] {
            let archive =
                [member("x.ovf", b'0', &ovf(&file, disk)), name, member("short", b'0', b"abc")].concat();
            let ova = read(&archive).unwrap();
            assert_eq!((&*ova.disks[0].name, ova.disks[0].size), (&*long, 3));
        }
    }

    proptest! {
        /// Whatever is in an archive: disks within it, or a refusal.
        #[test]
        fn no_archive_makes_it_panic(
            changes in prop::collection::vec((0usize..3000, any::<u8>()), 0..12),
            cut in 1usize..4000,
        ) {
            let mut archive = appliance();
            let length = archive.len();
            for (at, byte) in changes {
                archive[at % length] = byte;
            }
            archive.truncate(cut);
            if let Ok(ova) = read(&archive) {
                for disk in ova.disks {
                    prop_assert!(disk.offset + disk.size <= archive.len() as u64);
                }
            }
        }
    }
}
