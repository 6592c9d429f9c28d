//! A map for a test: its objects by name, and their pieces with properties that the text map does
//! not have.

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The byte that [`Piece::corrupt`] writes.
pub const CORRUPT: u8 = 0x5a;

/// A map of some disks, and the output of the program.
pub struct Mapped {
    /// The images of its disks.
    pub images: Vec<PathBuf>,
    /// The lines of JSON, by `TYPE DEVICE PATH`.
    pub objects: BTreeMap<String, Value>,
    /// The warnings in the header, each with its subject and its cause.
    pub warnings: Vec<Value>,
    /// The text map.
    pub text: String,
    /// What the program wrote to standard error.
    pub stderr: String,
    /// Its exit status.
    pub code: i32,
}

impl Mapped {
    /// Maps disks with `options`.
    pub fn of(images: &[PathBuf], options: &[&str]) -> Self {
        let outs = ["-o", "out.jsonl", "-o", "out.bmap"].iter().chain(options).map(OsString::from);
        let run = super::sandbox::run(images.iter().map(|image| image.clone().into_os_string()).chain(outs));
        let lines = String::from_utf8(run.read("out.jsonl")).unwrap();
        let header: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        let objects = lines.lines().skip(1).map(|line| {
            let object: Value = serde_json::from_str(line).unwrap();
            let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
            (format!("{} {} {}", word("type"), word("device"), word("path")).trim_end().to_owned(), object)
        });
        Self {
            images: images.to_vec(),
            objects: objects.collect(),
            warnings: header["warnings"].as_array().unwrap().clone(),
            text: String::from_utf8(run.read("out.bmap")).unwrap(),
            stderr: run.stderr.clone(),
            code: run.code(),
        }
    }

    /// The pieces of an object, which is named by `TYPE DEVICE PATH`.
    pub fn pieces(&self, object: &str) -> Vec<Piece> {
        let object = self
            .objects
            .get(object)
            .unwrap_or_else(|| panic!("{object} is not in the map:\n{}", self.stderr));
        let pieces = object["ranges"].as_array().into_iter().flatten();
        pieces
            .map(|range| Piece {
                disk: range["disk"].as_u64().unwrap() as usize,
                start: range["start"].as_u64().unwrap(),
                end: range["end"].as_u64().unwrap(),
                offset: range["offset"].as_u64(),
                copy: range["copy"].as_u64().unwrap_or(0),
                is_parity: range["flags"].as_array().is_some_and(|flags| flags.contains(&"parity".into())),
            })
            .collect()
    }

    /// Bytes of a disk.
    pub fn read(&self, disk: usize, start: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        File::open(&self.images[disk - 1]).unwrap().read_exact_at(&mut bytes, start).unwrap();
        bytes
    }

    /// One copy of a file of `size` bytes in blocks of 4 KiB, assembled from the images.
    pub fn file(&self, object: &str, copy: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size.next_multiple_of(4096)];
        for piece in self.pieces(object).iter().filter(|piece| piece.copy == copy && !piece.is_parity) {
            let at = piece.offset.expect("a piece of a file without its offset") as usize;
            let part = self.read(piece.disk, piece.start, piece.end - piece.start);
            bytes[at..at + part.len()].copy_from_slice(&part);
        }
        bytes.truncate(size);
        bytes
    }

    /// The causes of kind `kind` in the warnings about a device.
    pub fn causes(&self, device: &str, kind: &str) -> Vec<&Value> {
        let warnings = self.warnings.iter().filter(|warning| warning["device"] == device);
        warnings.map(|warning| &warning["cause"]).filter(|cause| cause["kind"] == kind).collect()
    }

    /// The cause in the only warning of kind `kind` about a device. The program must have printed
    /// it too.
    #[track_caller]
    pub fn cause(&self, device: &str, kind: &str) -> &Value {
        let [cause] = self.causes(device, kind)[..] else {
            panic!("not one warning about {device} is {kind}: {:#?}", self.warnings)
        };
        let is_printed = self.warnings.iter().any(|warning| {
            let text = warning["text"].as_str().unwrap();
            warning["cause"] == *cause && warning["device"] == device && self.stderr.contains(text)
        });
        assert!(is_printed, "{cause} of {device} was not printed:\n{}", self.stderr);
        cause
    }
}

/// A piece of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The number of the disk, counted from 1.
    pub disk: usize,
    /// The first byte on the disk.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
    /// The offset in the file, if it is known.
    pub offset: Option<u64>,
    /// The number of the copy, or of the parity, counted from 0.
    pub copy: u64,
    /// Whether the piece is parity and not data.
    pub is_parity: bool,
}

impl Piece {
    /// Overwrites the piece in `image`, the image of its disk.
    pub fn corrupt(&self, image: &Path) {
        let disk = File::options().write(true).open(image).unwrap();
        disk.write_all_at(&vec![CORRUPT; (self.end - self.start) as usize], self.start).unwrap();
    }
}
