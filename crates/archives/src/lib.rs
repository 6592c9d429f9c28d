#![doc = include_str!("../README.md")]

pub mod ewf;
pub mod ova;
mod ovf;
mod tar;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes that can be read at any offset.
pub trait ReadAt {
    /// Their number.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The system's error, or [`UnexpectedEof`](io::ErrorKind::UnexpectedEof).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file with its size.
#[derive(Debug)]
pub struct SizedFile {
    /// The file.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
}

impl ReadAt for SizedFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
