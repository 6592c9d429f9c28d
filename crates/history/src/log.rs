//! Reads the log of a recorded history. Its input is hostile: every length is checked against the
//! file and the disks, and only identities, which are bounded, are allocated by a stated length.

use super::format::{HEADER, Kind, MAGIC, MOST_DISKS, MOST_IDENTITY, RECORD, RecordHeader, VERSION, number};
use super::pieces::{Place, on_disk};
use std::io::{self, Read, Seek, SeekFrom};
use std::time::Duration;
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// Why a log cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It does not begin as a log does.
    #[error("it is no recorded history")]
    NoHistory,
    /// Another version of this program wrote it.
    #[error("it is a history of version {0}, and only version {VERSION} is known")]
    Version(u32),
    /// It is damaged.
    #[error("the record at byte {offset} is damaged: {what}")]
    Damaged {
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It is the history of other disks.
    #[error("it is the history of another base: {what}")]
    AnotherBase {
        /// The difference.
        what: String,
    },
    /// The guest's writes are in too many pieces.
    #[error("the guest wrote more pieces than can be kept in memory")]
    TooManyPieces,
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// With the end of the trace.
    Whole,
    /// Before the end of the trace: it had reached its limit, or could not be written.
    CutShort,
    /// Without an end: whoever wrote it was killed, or still writes. The rest of a record that is
    /// not whole is left out.
    BrokenOff,
}

/// A disk of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedDisk {
    /// Its size in bytes.
    pub size: u64,
    /// By which its base is known again.
    pub identity: Vec<u8>,
}

/// A record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// What was done.
    pub kind: Kind,
    /// Whether it was durable before it was answered.
    pub is_fua: bool,
    /// Number of the disk, from 1; 0 if it is of no disk.
    pub disk: u16,
    /// When, since the history began.
    pub time: Duration,
    /// The bytes; empty unless they are changed.
    pub range: DiskRange,
    /// Where the data of a write begins in the log.
    pub data: u64,
}

/// Reads the records of a log.
#[derive(Debug)]
pub struct LogReader<R> {
    input: R,
    /// Number of bytes that the log has.
    size: u64,
    /// Where the next record begins.
    at: u64,
    time: Duration,
    disks: Vec<LoggedDisk>,
    end: Option<LogEnd>,
}

impl<R: Read + Seek> LogReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(mut input: R) -> Result<Self, LogError> {
        let size = input.seek(SeekFrom::End(0))?;
        input.seek(SeekFrom::Start(0))?;
        let mut header = [0; HEADER];
        fill(&mut input, &mut header)?;
        let [.., v0, v1, v2, v3, n0, n1, n2, n3] = header;
        if header[..8] != MAGIC || size > Place::MOST {
            return Err(LogError::NoHistory);
        }
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(LogError::Version(version));
        }
        let count = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
        if count > MOST_DISKS {
            return Err(LogError::NoHistory);
        }
        let mut at = HEADER as u64;
        let mut disks = Vec::new();
        for _ in 0..count {
            let mut fields = [0; 12];
            fill(&mut input, &mut fields)?;
            let [.., l0, l1, l2, l3] = fields;
            let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            if length > MOST_IDENTITY || length as u64 > size - at {
                return Err(LogError::NoHistory);
            }
            let mut identity = vec![0; length];
            fill(&mut input, &mut identity)?;
            disks.push(LoggedDisk { size: number(&fields), identity });
            at += (fields.len() + length) as u64;
        }
        Ok(Self { input, size, at, time: Duration::ZERO, disks, end: None })
    }

    /// The disks.
    pub fn disks(&self) -> &[LoggedDisk] {
        &self.disks
    }

    /// How the log ends, when all records have been read.
    pub fn end(&self) -> Option<LogEnd> {
        self.end
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// [`LogError`]. There is no next record afterwards.
    pub fn next_record(&mut self) -> Result<Option<LogRecord>, LogError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let outcome = self.read_record();
        if !matches!(outcome, Ok(Some(_))) {
            self.end.get_or_insert(LogEnd::BrokenOff);
        }
        outcome
    }

    fn read_record(&mut self) -> Result<Option<LogRecord>, LogError> {
        let offset = self.at;
        let damaged = |what| Err(LogError::Damaged { offset, what });
        if self.size - offset < RECORD as u64 {
            return Ok(None);
        }
        let mut bytes = [0; RECORD];
        self.input.read_exact(&mut bytes)?;
        if bytes == [0; RECORD] {
            // Space was given to the file, and the host crashed before it was filled.
            return Ok(None);
        }
        let Some(header) = RecordHeader::decode(&bytes) else { return damaged("its kind is unknown") };
        let RecordHeader { kind, is_fua, disk, time, .. } = header;
        if time < self.time {
            return damaged("its time is before that of the record before it");
        }
        let data = offset + RECORD as u64;
        let range = if kind.is_change() {
            let size = disk.checked_sub(1).and_then(|disk| self.disks.get(usize::from(disk)));
            let Some(size) = size.map(|disk| disk.size) else { return damaged("there is no such disk") };
            match on_disk(DiskOffset(header.offset), header.length, size) {
                Some(range) if !range.is_empty() => range,
                _ => return damaged("its range is not on the disk"),
            }
        } else {
            let most = if kind == Kind::Flush { self.disks.len() } else { 0 };
            if usize::from(disk) > most || header.offset != 0 || header.length != 0 || is_fua {
                return damaged("it has no range");
            }
            DiskRange::new(0, 0)
        };
        let length = if kind == Kind::Write { range.len() } else { 0 };
        if length > self.size - data {
            return Ok(None);
        }
        // A length that does not fit in 63 bits is longer than any file.
        self.input.seek_relative(length as i64)?;
        self.at = data + length;
        self.time = time;
        match kind {
            Kind::End => self.end = Some(LogEnd::Whole),
            Kind::CutShort => self.end = Some(LogEnd::CutShort),
            _ => {}
        }
        Ok(Some(LogRecord { kind, is_fua, disk, time, range, data }))
    }
}

/// Fills `buf`; a log that is too short is none.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> Result<(), LogError> {
    input.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => LogError::NoHistory,
        _ => error.into(),
    })
}
