//! A file: its attributes, put together from all of its records.

use crate::attribute::{Attribute, AttributeType, Body, Flags, NonResident, attributes};
use crate::fields::Fields as _;
use crate::name::{self, Name};
use crate::record::{Problem, Record};
use crate::runs::{Run, runs};
use std::collections::BTreeSet;

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Number of its record in `$MFT`.
    pub number: u64,
    /// How often the record has been used.
    pub sequence: u16,
    /// Number of its names; a short name of DOS counts, too.
    pub links: u16,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Its names.
    pub names: Vec<Name>,
    /// When its data was last modified, and when its record was: nanoseconds since 1970.
    pub times: Option<(i64, i64)>,
    /// The tag of its reparse point.
    pub reparse: Option<u32>,
    /// Its attributes, each once; the first of equal type and name counts.
    pub streams: Vec<Stream>,
    /// What is wrong with it.
    pub problems: BTreeSet<Problem>,
}

/// An attribute of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its type.
    pub kind: AttributeType,
    /// Its name, in UTF-8; mostly empty.
    pub name: Vec<u8>,
    /// Whether it is compressed.
    pub is_compressed: bool,
    /// Whether it is encrypted.
    pub is_encrypted: bool,
    /// Whether it is sparse.
    pub is_sparse: bool,
    /// The record that holds its content, if that is resident.
    pub record: u64,
    /// Size of its content in bytes.
    pub size: u64,
    /// Bytes that have been written: beyond them, clusters are allocated and read as zeroes.
    pub initialized: u64,
    /// Where its content is.
    pub content: Content,
}

/// Where the content of a [`Stream`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In a record of the file: this.
    Resident(Vec<u8>),
    /// In clusters. The runs ascend; what none of them has is missing, which is a problem.
    Runs(Vec<Run>),
}

impl Stream {
    /// Its runs; none if it is resident.
    pub fn runs(&self) -> &[Run] {
        match &self.content {
            Content::Resident(_) => &[],
            Content::Runs(runs) => runs,
        }
    }

    /// Clusters that it has on the volume.
    pub fn clusters(&self) -> u64 {
        let held = self.runs().iter().filter(|run| run.lcn.is_some());
        held.fold(0, |sum, run| sum.saturating_add(run.length))
    }
}

impl File {
    /// The attribute of this type without a name.
    pub fn stream(&self, kind: AttributeType) -> Option<&Stream> {
        self.named(kind, b"")
    }

    /// The attribute of this type and name.
    pub fn named(&self, kind: AttributeType, name: &[u8]) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.kind == kind && stream.name == name)
    }

    /// Its unnamed data.
    pub fn data(&self) -> Option<&Stream> {
        self.stream(AttributeType::DATA)
    }
}

/// A file that is being put together.
pub(crate) struct Assembly {
    file: File,
    /// The parts of the non-resident attributes, in the order of the streams.
    parts: Vec<Vec<Part>>,
    clusters: u64,
    cluster: u64,
}

struct Part {
    vcn: u64,
    end: u64,
    runs: Vec<Run>,
    /// In the first part: the allocated size.
    allocated: u64,
    size: u64,
    initialized: u64,
    flags: Flags,
}

impl Assembly {
    /// Begins with the first record of a file. `clusters`: of the volume, each of `cluster` bytes.
    pub(crate) fn new(number: u64, base: &Record, clusters: u64, cluster: u64) -> Self {
        let file = File {
            number,
            sequence: base.sequence,
            links: base.links,
            is_directory: base.is_directory,
            names: Vec::new(),
            times: None,
            reparse: None,
            streams: Vec::new(),
            problems: BTreeSet::new(),
        };
        let mut this = Self { file, parts: Vec::new(), clusters, cluster };
        this.add(number, base);
        this
    }

    pub(crate) fn problem(&mut self, problem: Problem) {
        self.file.problems.insert(problem);
    }

    /// Adds the attributes of a record.
    pub(crate) fn add(&mut self, number: u64, record: &Record) {
        for attribute in attributes(record.attributes()) {
            match attribute {
                Ok(attribute) => self.attribute(number, &attribute),
                Err(problem) => self.problem(problem),
            }
        }
    }

    fn attribute(&mut self, record: u64, attribute: &Attribute<'_>) {
        let name = name::decode(attribute.name);
        match attribute.body {
            Body::Resident(value) if attribute.kind == AttributeType::FILE_NAME => match Name::of(value) {
                Some(name) => self.file.names.push(name),
                None => self.problem(Problem::Attribute),
            },
            Body::Resident(value) => {
                match attribute.kind {
                    AttributeType::REPARSE_POINT => self.file.reparse = value.le32(0).or(Some(0)),
                    AttributeType::STANDARD_INFORMATION => {
                        self.file.times = time(value, 8).zip(time(value, 16));
                    }
                    _ => {}
                }
                if self.file.named(attribute.kind, &name).is_some() {
                    return self.problem(Problem::Parts);
                }
                let size = value.len() as u64;
                self.push(attribute.kind, name, Content::Resident(value.to_vec()));
                if let Some(stream) = self.file.streams.last_mut() {
                    (stream.size, stream.initialized, stream.record) = (size, size, record);
                    stream.is_compressed = attribute.flags.is_compressed();
                    stream.is_encrypted = attribute.flags.is_encrypted();
                    stream.is_sparse = attribute.flags.is_sparse();
                }
            }
            Body::NonResident(part) => {
                let is_same = |stream: &Stream| stream.kind == attribute.kind && stream.name == name;
                let known = self.file.streams.iter().position(is_same);
                let index =
                    known.unwrap_or_else(|| self.push(attribute.kind, name, Content::Runs(Vec::new())));
                let part = self.part(part, attribute.flags);
                if let Some(parts) = self.parts.get_mut(index) {
                    parts.push(part);
                }
            }
        }
    }

    fn push(&mut self, kind: AttributeType, name: Vec<u8>, content: Content) -> usize {
        self.file.streams.push(Stream {
            kind,
            name,
            is_compressed: false,
            is_encrypted: false,
            is_sparse: false,
            record: self.file.number,
            size: 0,
            initialized: 0,
            content,
        });
        self.parts.push(Vec::new());
        self.parts.len() - 1
    }

    fn part(&mut self, part: NonResident<'_>, flags: Flags) -> Part {
        let NonResident { vcn, end, allocated, size, initialized, pairs } = part;
        let (runs, problem) = runs(pairs, vcn, self.clusters);
        self.file.problems.extend(problem);
        if problem.is_none() && runs.last().map_or(vcn, Run::end) != end {
            self.problem(Problem::RunList);
        }
        Part { vcn, end, runs, allocated, size, initialized, flags }
    }

    /// The bytes of the list of attributes, if that lies in the first record, or its runs.
    pub(crate) fn list(&mut self) -> Option<Stream> {
        let index =
            self.file.streams.iter().position(|stream| stream.kind == AttributeType::ATTRIBUTE_LIST)?;
        self.join(index);
        self.file.streams.get(index).cloned()
    }

    /// The file, when all of its records have been added.
    pub(crate) fn finish(mut self) -> File {
        for index in 0..self.parts.len() {
            self.join(index);
        }
        self.file
    }

    /// Joins the parts of an attribute. The first part has its sizes.
    fn join(&mut self, index: usize) {
        let (Some(parts), Some(stream)) = (self.parts.get_mut(index), self.file.streams.get_mut(index))
        else {
            return;
        };
        let mut parts = std::mem::take(parts);
        if parts.is_empty() {
            return;
        }
        let mut is_sound = matches!(stream.content, Content::Runs(_));
        parts.sort_by_key(|part| part.vcn);
        let mut next = stream.runs().last().map_or(0, Run::end);
        let mut whole = stream.runs().to_vec();
        let mut allocated = None;
        for part in parts {
            if part.vcn == 0 {
                allocated = Some(part.allocated);
                (stream.size, stream.initialized) = (part.size, part.initialized);
                stream.is_compressed = part.flags.is_compressed();
                stream.is_encrypted = part.flags.is_encrypted();
                stream.is_sparse = part.flags.is_sparse();
            }
            is_sound &= part.vcn == next;
            next = next.max(part.end);
            let after = whole.last().map_or(0, Run::end);
            whole.extend(part.runs.into_iter().filter(|run| run.vcn >= after));
        }
        is_sound &= allocated.is_some_and(|allocated| next.checked_mul(self.cluster) == Some(allocated));
        is_sound &= stream.initialized <= stream.size;
        if matches!(stream.content, Content::Runs(_)) {
            stream.content = Content::Runs(whole);
        }
        if !is_sound {
            self.problem(Problem::Parts);
        }
    }
}

/// A time at this place of `$STANDARD_INFORMATION`, which counts tenths of microseconds since 1601,
/// in nanoseconds since 1970.
fn time(value: &[u8], at: usize) -> Option<i64> {
    const FROM_1601_TO_1970: i64 = 116_444_736_000_000_000;
    let tenths = value.le64(at)?.cast_signed().saturating_sub(FROM_1601_TO_1970);
    Some(tenths.saturating_mul(100))
}
