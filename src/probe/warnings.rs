//! The warnings that a probe collects.

use std::collections::BTreeMap;
use virt_bmap_agent_protocol::record;
use virt_bmap_map::{Cause, FileOperation, Warning};

/// Most warnings of missing objects that are kept; further ones are only counted.
const MOST: usize = 1000;

/// The warnings of a run, for standard error, the map's header and the exit status.
#[derive(Clone, Debug, Default)]
pub struct Warnings {
    /// Warnings that make the map incomplete.
    incomplete: Vec<Warning>,
    /// How many more of these there were.
    omitted: u64,
    /// Warnings that do not.
    notes: Vec<Warning>,
    /// Inexact objects, by filesystem.
    not_exact: BTreeMap<String, u64>,
    /// Objects that were read where the overlay differs from the image, by filesystem.
    rewritten: BTreeMap<String, u64>,
}

impl Warnings {
    /// Adds a warning.
    pub fn push(&mut self, warning: Warning) {
        if !warning.is_incomplete() {
            self.notes.push(warning);
        } else if self.incomplete.len() < MOST {
            self.incomplete.push(warning);
        } else {
            self.omitted += 1;
        }
    }

    /// Adds a warning about a device.
    pub fn on_device(&mut self, device: &str, cause: Cause) {
        self.push(Warning::on_device(device, cause));
    }

    /// Adds a warning about a directory or file on a device.
    pub fn on_path(&mut self, device: &str, path: &[u8], cause: Cause) {
        self.push(Warning::on_path(device, path, cause));
    }

    /// Counts an inexact object of the filesystem on a device.
    pub(super) fn count_not_exact(&mut self, device: &str) {
        *self.not_exact.entry(device.to_owned()).or_default() += 1;
    }

    /// Counts a file of the filesystem on a device that was read where the overlay differs from the
    /// image.
    pub(super) fn count_rewritten(&mut self, device: &str) {
        *self.rewritten.entry(device.to_owned()).or_default() += 1;
    }

    /// Whether the map is complete.
    pub fn is_complete(&self) -> bool {
        self.incomplete.is_empty()
    }

    /// All warnings: first those that make the map incomplete, sorted by subject.
    pub fn list(&self) -> Vec<Warning> {
        let mut list = self.incomplete.clone();
        list.sort();
        if self.omitted > 0 {
            list.push(Warning::on_guest(Cause::MoreOmitted { count: self.omitted }));
        }
        list.extend(self.notes.iter().cloned());
        let counted = |(device, cause): (&String, Cause)| Warning::on_device(device, cause);
        let not_exact = self.not_exact.iter().map(|(device, &count)| (device, Cause::NotExact { count }));
        let rewritten = self.rewritten.iter().map(|(device, &count)| (device, Cause::Rewritten { count }));
        list.extend(not_exact.chain(rewritten).map(counted));
        list
    }
}

/// The warning's cause for a read failure of the agent. `is_file`: of a directory or file, not of a
/// whole device.
pub(super) fn cause_of(failure: &record::ReadFailure, is_file: bool) -> Cause {
    let operation = match failure.operation {
        record::Operation::Open => FileOperation::Open,
        record::Operation::Stat => FileOperation::Stat,
        record::Operation::List => FileOperation::List,
        record::Operation::Read => FileOperation::Read,
        record::Operation::Fiemap => FileOperation::Extents,
        record::Operation::Attributes => FileOperation::Attributes,
        record::Operation::Fsmap => FileOperation::SpaceMap,
        record::Operation::Loop => return Cause::DirectoryLoop,
    };
    let has_offset = !is_file || operation == FileOperation::Read;
    Cause::FileFailed {
        operation,
        errno: (failure.errno != 0).then_some(failure.errno),
        offset: has_offset.then_some(failure.offset),
    }
}
