//! A volume: its `$MFT`, and single files by the numbers of their records.

use crate::boot::{BOOT_SECTOR, Geometry};
use crate::file::{Assembly, Content, File, Stream};
use crate::list;
use crate::record::{Problem, Record, Reference};
use crate::runs::Run;
use crate::{OpenError, ReadAt};

/// Records of other files in a list of attributes after which the rest of it is not followed.
const MOST_FOREIGN: usize = 16;

/// Times that `$MFT` may turn out to be longer than its known part says.
const MOST_GROWTH: usize = 64;

/// An NTFS volume.
#[derive(Debug)]
pub struct Volume<R> {
    pub(crate) device: R,
    geometry: Geometry,
    /// The runs of `$MFT`.
    mft: Vec<Run>,
    /// Its records.
    records: u64,
}

impl<R: ReadAt> Volume<R> {
    /// Opens the volume on a device.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(device: R) -> Result<Self, OpenError> {
        let mut boot = [0; BOOT_SECTOR];
        device.read_at(&mut boot, 0)?;
        let geometry = Geometry::of(&boot)?;
        let mut volume = Self { device, geometry, mft: Vec::new(), records: 0 };
        let first = volume.find_mft(geometry.mft);
        first
            .or_else(|problem| volume.find_mft(geometry.mirror).map_err(|_| problem))
            .map_err(OpenError::Mft)?;
        Ok(volume)
    }

    /// Finds the records of `$MFT`, whose first record lies in this cluster.
    fn find_mft(&mut self, cluster: u64) -> Result<(), Problem> {
        let length = self.geometry.record.div_ceil(self.geometry.cluster);
        let is_inside = cluster.checked_add(length).is_some_and(|end| end <= self.geometry.clusters());
        if !is_inside {
            return Err(Problem::RunOutside);
        }
        self.mft = vec![Run { vcn: 0, lcn: Some(cluster), length }];
        self.records = 1;
        // The list of attributes of `$MFT` may name records in those parts of it that the records
        // before have described.
        for _ in 0..MOST_GROWTH {
            let file = self.file(0)?.ok_or(Problem::Record)?;
            let data = file.data().ok_or(Problem::Attribute)?;
            let records = data.initialized.min(data.size) / self.geometry.record;
            let is_known = self.mft == data.runs();
            self.mft = data.runs().to_vec();
            self.records = records;
            if is_known {
                return Ok(());
            }
        }
        Err(Problem::AttributeList)
    }

    /// Sizes and places that hold for the whole volume.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Number of records in `$MFT`, in use or not.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Where on the device a record lies; `None` if it is outside of `$MFT`, or in several pieces.
    pub fn place_of(&self, number: u64) -> Option<u64> {
        let size = self.geometry.record;
        let at = number.checked_mul(size).filter(|_| number < self.records)?;
        self.place(&self.mft, at).filter(|(_, held)| *held >= size).map(|(place, _)| place)
    }

    /// The device offset of a byte of an attribute, and how many bytes follow there in one piece.
    pub(crate) fn place(&self, runs: &[Run], at: u64) -> Option<(u64, u64)> {
        let cluster = self.geometry.cluster;
        let vcn = at / cluster;
        let run = runs.get(runs.partition_point(|run| run.end() <= vcn)).filter(|run| run.vcn <= vcn)?;
        let into = (vcn - run.vcn) * cluster + at % cluster;
        Some((run.lcn? * cluster + into, run.length * cluster - into))
    }

    /// Fills `bytes` with the content of runs from this byte on.
    pub(crate) fn read_runs(&self, runs: &[Run], mut at: u64, mut bytes: &mut [u8]) -> Option<()> {
        while !bytes.is_empty() {
            let (place, held) = self.place(runs, at)?;
            let length = usize::try_from(held).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at_mut(length);
            self.device.read_at(now, place).ok()?;
            at += length as u64;
            bytes = rest;
        }
        Some(())
    }

    /// The bytes of records from this one on, as far as `$MFT` goes.
    pub(crate) fn read_records(&self, number: u64, count: u64) -> Option<Vec<u8>> {
        let size = self.geometry.record;
        let count = count.min(self.records.checked_sub(number)?);
        let mut bytes = vec![0; usize::try_from(count.checked_mul(size)?).ok()?];
        self.read_runs(&self.mft, number.checked_mul(size)?, &mut bytes)?;
        Some(bytes)
    }

    fn record(&self, number: u64) -> Result<Option<Record>, Problem> {
        let bytes = self.read_records(number, 1).filter(|bytes| !bytes.is_empty());
        Record::of(bytes.ok_or(Problem::Unreadable)?)
    }

    /// The file whose first record has this number; `None` if the record is not in use, or belongs
    /// to another file.
    ///
    /// # Errors
    /// The [`Problem`] of a record that cannot be read at all.
    pub fn file(&self, number: u64) -> Result<Option<File>, Problem> {
        let base = self.record(number)?.filter(|record| record.base.is_none());
        Ok(base.map(|base| self.assemble(number, &base)))
    }

    /// The file whose first record has these bytes, as they are on the device; `None` if the record
    /// is not in use, or belongs to another file. [`File::number`] is 0.
    ///
    /// # Errors
    /// The [`Problem`] of a record that cannot be read at all.
    pub fn file_of(&self, record: Vec<u8>) -> Result<Option<File>, Problem> {
        let base = Record::of(record)?.filter(|record| record.base.is_none());
        Ok(base.map(|base| self.assemble(0, &base)))
    }

    /// Puts a file together from its first record and those that its list of attributes names.
    pub(crate) fn assemble(&self, number: u64, base: &Record) -> File {
        let mut assembly = Assembly::new(number, base, self.geometry.clusters(), self.geometry.cluster);
        let Some(list) = assembly.list() else { return assembly.finish() };
        let Some(list) = self.small_content(&list, list::LARGEST) else {
            assembly.problem(Problem::AttributeList);
            return assembly.finish();
        };
        let (records, problem) = list::records(&list);
        if let Some(problem) = problem {
            assembly.problem(problem);
        }
        let this = Reference { number, sequence: base.sequence };
        let mut foreign = 0;
        for reference in records.into_iter().filter(|reference| reference.number != number) {
            match self.record(reference.number) {
                Ok(Some(record)) if record.base == Some(this) && record.sequence == reference.sequence => {
                    assembly.add(reference.number, &record);
                }
                other => {
                    assembly.problem(other.err().unwrap_or(Problem::Extension));
                    foreign += 1;
                }
            }
            if foreign == MOST_FOREIGN {
                break;
            }
        }
        assembly.finish()
    }

    /// The content of an attribute of at most `most` bytes.
    pub(crate) fn small_content(&self, stream: &Stream, most: u64) -> Option<Vec<u8>> {
        match &stream.content {
            Content::Resident(value) => Some(value.clone()),
            Content::Runs(runs) => {
                let length = usize::try_from(stream.size.min(most)).ok()?;
                let mut bytes = vec![0; length];
                self.read_runs(runs, 0, &mut bytes)?;
                (stream.size <= most).then_some(bytes)
            }
        }
    }
}
