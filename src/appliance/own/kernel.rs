//! The kernel of our own appliance.
//!
//! A distribution's `vmlinuz` has a program for the BIOS, a decompressor and the compressed kernel
//! (`vmlinux`, an ELF file). qemu also starts an ELF file directly, at the entry that a note in it
//! gives ([PVH]: the boot protocol of Xen). Under emulation that saves several seconds.
//!
//! [PVH]: https://xenbits.xen.org/docs/unstable/misc/pvh.html

use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::io::{self, Read};

/// Most bytes of an unpacked kernel. Debian's have 60 MB.
const MOST_BYTES: u64 = 512 << 20;

/// The note with the physical address of the entry: `XEN_ELFNOTE_PHYS32_ENTRY` in
/// `include/xen/interface/elfnote.h`.
const PHYS32_ENTRY: u32 = 18;

/// Why a kernel is used as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// It does not have the header of x86's boot protocol (`Documentation/arch/x86/boot.rst`).
    #[error("it has no header of the x86 boot protocol 2.08 or later")]
    NoHeader,
    /// Its payload begins with none of the known signatures.
    #[error("its compression is unknown (it begins with {0:02x?})")]
    UnknownCompression([u8; 6]),
    /// The payload cannot be decompressed.
    #[error("it cannot be unpacked")]
    Broken(#[source] io::Error),
    /// The payload is not an ELF file with the note.
    #[error("it has no PVH entry")]
    NoEntry,
}

/// The ELF file in a `vmlinuz`.
///
/// # Errors
/// [`UnpackError`]: qemu cannot start the payload directly.
pub(super) fn unpack(vmlinuz: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let vmlinux = decompress(payload(vmlinuz).ok_or(UnpackError::NoHeader)?)?;
    if has_entry(&vmlinux) { Ok(vmlinux) } else { Err(UnpackError::NoEntry) }
}

/// The compressed kernel: `payload_offset` and `payload_length` of the header.
fn payload(vmlinuz: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_le_bytes(*vmlinuz.get(at..)?.first_chunk()?) as usize);
    if vmlinuz.get(0x202..0x206)? != b"HdrS" || number(0x206)? & 0xffff < 0x208 {
        return None;
    }
    // 0 means 4, and the boot sector comes on top.
    let sectors = match vmlinuz.get(0x1f1)? {
        0 => 4,
        count => usize::from(*count),
    };
    let start = ((sectors + 1) * 512).checked_add(number(0x248)?)?;
    vmlinuz.get(start..start.checked_add(number(0x24c)?)?)
}

/// Decompresses a payload. After it come four bytes with its length, which no format minds.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let signature: [u8; 6] = payload.first_chunk().copied().unwrap_or_default();
    match signature {
        [0x1f, 0x8b, ..] => whole(flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => whole(lzma_rust2::XzReader::new(payload, false)),
        [0x5d, 0, 0, ..] => whole(
            lzma_rust2::LzmaReader::new_mem_limit(payload, u32::MAX, None).map_err(UnpackError::Broken)?,
        ),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            whole(zstd::Decoder::with_buffer(payload).map_err(UnpackError::Broken)?.single_frame())
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4(payload),
        other => Err(UnpackError::UnknownCompression(other)),
    }
}

fn whole(reader: impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    reader.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(UnpackError::Broken)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(UnpackError::Broken(io::Error::other("it has more than 512 MiB")));
    }
    Ok(bytes)
}

/// lz4's legacy frame, which the kernel's build uses: blocks of up to 8 MiB, each after its
/// compressed length (`lz4_Frame_format.md`, "Legacy frame").
fn lz4(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    const BLOCK: usize = 8 << 20;
    let broken = |what: &str| UnpackError::Broken(io::Error::other(what.to_owned()));
    let mut bytes = Vec::new();
    let mut rest = &payload[4..];
    let mut block = vec![0; BLOCK];
    loop {
        // The last four bytes are the length of the whole kernel.
        let Some((length, after)) = rest.split_first_chunk().filter(|(_, after)| !after.is_empty()) else {
            return Ok(bytes);
        };
        let length = u32::from_le_bytes(*length) as usize;
        let compressed = after.get(..length).ok_or_else(|| broken("a block is cut off"))?;
        let written = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| UnpackError::Broken(io::Error::other(error)))?;
        bytes.extend_from_slice(&block[..written]);
        if bytes.len() as u64 > MOST_BYTES {
            return Err(broken("it has more than 512 MiB"));
        }
        rest = &after[length..];
    }
}

/// Whether qemu can start this ELF file.
fn has_entry(vmlinux: &[u8]) -> bool {
    let notes = || -> object::read::Result<bool> {
        let header = FileHeader64::<object::Endianness>::parse(vmlinux)?;
        let endian = header.endian()?;
        for segment in header.program_headers(endian, vmlinux)? {
            let Some(mut notes) = segment.notes(endian, vmlinux)? else { continue };
            while let Some(note) = notes.next()? {
                if note.name() == b"Xen" && note.n_type(endian).0 == PHYS32_ENTRY {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    notes().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// An ELF file with nothing but a note (elf(5)).
    fn vmlinux(owner: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut file = vec![0_u8; 64 + 56];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        // Executable, x86-64, version 1.
        file[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        // Program headers: where, how large, how many; the size of the header itself before.
        file[32] = 64;
        file[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
        let note =
            [&4_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &kind.to_le_bytes(), owner, &[0; 4]].concat();
        let header = &mut file[64..];
        header[0] = 4; // PT_NOTE
        header[8] = 120; // its place in the file
        header[32] = note.len() as u8;
        header[48] = 4; // alignment
        file.extend(note);
        // So that there is something to compress.
        file.extend((0..200_000_u32).flat_map(|number| (number / 7).to_le_bytes()));
        file
    }

    /// A `vmlinuz` with this payload (`Documentation/arch/x86/boot.rst`).
    fn vmlinuz(payload: &[u8]) -> Vec<u8> {
        const SECTORS: usize = 3;
        let mut file = vec![0_u8; (SECTORS + 1) * 512];
        file[0x1f1] = SECTORS as u8;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend([0x90; 16]);
        file.extend(payload);
        file.extend([0x90; 100]);
        file
    }

    /// What another program makes of `input`, and the length that the kernel's build adds.
    fn compressed(command: &[&str], input: &[u8]) -> Option<Vec<u8>> {
        let started =
            Command::new(command[0]).args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none(), "{command:?}: {error}");
                eprintln!("SKIPPED: {command:?}: {error}");
                return None;
            }
        };
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let length = input.len() as u32;
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "{command:?}");
        Some([output.stdout, length.to_le_bytes().to_vec()].concat())
    }

    /// The commands are those of the kernel's build (`scripts/Makefile.lib`).
    #[test]
    fn each_compression_is_unpacked() {
        let kernel = vmlinux(b"Xen\0", PHYS32_ENTRY);
        let commands: [&[&str]; 5] = [
            &["gzip", "-n", "-9"],
            &["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"],
            &["lzma", "-9"],
            &["zstd", "-q", "-22", "--ultra", "-c"],
            &["lz4", "-l", "-9", "-", "-"],
        ];
        for command in commands {
            let Some(payload) = compressed(command, &kernel) else { continue };
            let unpacked =
                unpack(&vmlinuz(&payload)).unwrap_or_else(|error| panic!("{command:?}: {error:?}"));
            assert!(unpacked == kernel, "{command:?}: {} bytes of {}", unpacked.len(), kernel.len());
        }
    }

    #[test]
    fn what_qemu_cannot_start_is_left_as_it_is() {
        let other = vmlinux(b"GNU\0", 3);
        if let Some(payload) = compressed(&["gzip"], &other) {
            assert!(matches!(unpack(&vmlinuz(&payload)), Err(UnpackError::NoEntry)));
            // The end is missing.
            let error = unpack(&vmlinuz(&payload[..payload.len() / 2])).unwrap_err();
            assert!(matches!(error, UnpackError::Broken(_)), "{error}");
        }
        let unknown = unpack(&vmlinuz(b"\x89LZO\0\0 and so on"));
        assert!(matches!(unknown, Err(UnpackError::UnknownCompression(_))), "{unknown:?}");
        // An Image of arm64, an ELF file, a file that is cut off, a payload beyond the end.
        let mut beyond = vmlinuz(b"\x1f\x8b");
        beyond[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        for file in [b"MZ\0\x91".to_vec(), other, Vec::new(), vmlinuz(b"")[..0x230].to_vec(), beyond] {
            assert!(matches!(unpack(&file), Err(UnpackError::NoHeader)));
        }
    }
}
