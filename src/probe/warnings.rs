//! The warnings that a probe collects.

use std::collections::{BTreeMap, HashMap};
use std::mem::{Discriminant, discriminant};
use virt_bmap_agent_protocol::record;
use virt_bmap_map::{Cause, FileOperation, Subject, Warning};

/// Most warnings of one kind about what lies in one directory. Further ones are only counted.
const MOST: u64 = 1000;

/// Most warnings about paths. A hostile filesystem has any number of directories.
const MOST_PATHS: usize = 20_000;

/// The warnings of a run, for standard error, the map's header and the exit status.
#[derive(Clone, Debug, Default)]
pub struct Warnings {
    /// Warnings about devices, images and the guest that make the map incomplete. All are kept.
    incomplete: Vec<Warning>,
    /// The same about directories and files, by device and path: the first about each.
    paths: BTreeMap<Place, Cause>,
    /// How many of each kind there are in each directory.
    kept: HashMap<(Place, Discriminant<Cause>), u64>,
    /// How many more there were, by directory.
    omitted: BTreeMap<Place, u64>,
    /// How many more there were after [`MOST_PATHS`].
    omitted_paths: u64,
    /// Warnings that do not make the map incomplete.
    notes: Vec<Warning>,
    /// Inexact objects, by filesystem.
    not_exact: BTreeMap<String, u64>,
    /// Objects that were read where the overlay differs from the image, by filesystem.
    rewritten: BTreeMap<String, u64>,
}

/// A device, and a path in its filesystem.
type Place = (Vec<u8>, Vec<u8>);

impl Warnings {
    /// Adds a warning.
    pub fn push(&mut self, warning: Warning) {
        if !warning.is_incomplete() {
            self.notes.push(warning);
            return;
        }
        match warning {
            Warning { subject: Subject::Path { device, path }, cause } => {
                self.push_path((device, path), cause);
            }
            warning => self.incomplete.push(warning),
        }
    }

    fn push_path(&mut self, place: Place, cause: Cause) {
        if self.paths.contains_key(&place) {
            return;
        }
        if self.paths.len() == MOST_PATHS {
            self.omitted_paths += 1;
            return;
        }
        let directory = (place.0.clone(), parent(&place.1).to_vec());
        let kept = self.kept.entry((directory.clone(), discriminant(&cause))).or_default();
        if *kept < MOST {
            *kept += 1;
            self.paths.insert(place, cause);
        } else {
            *self.omitted.entry(directory).or_default() += 1;
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
        self.incomplete.is_empty() && self.paths.is_empty()
    }

    /// All warnings: first those that make the map incomplete, sorted by subject.
    pub fn list(&self) -> Vec<Warning> {
        let mut list = self.incomplete.clone();
        let of_path =
            |((device, path), cause): (&Place, &Cause)| Warning::on_path(device, path, cause.clone());
        list.extend(self.paths.iter().map(of_path));
        list.sort();
        list.extend(self.omitted.iter().map(|((device, directory), &count)| {
            Warning::on_path(device, directory, Cause::MoreOmitted { count })
        }));
        if self.omitted_paths > 0 {
            list.push(Warning::on_guest(Cause::MoreOmitted { count: self.omitted_paths }));
        }
        list.extend(self.notes.iter().cloned());
        let counted = |(device, cause): (&String, Cause)| Warning::on_device(device, cause);
        let not_exact = self.not_exact.iter().map(|(device, &count)| (device, Cause::NotExact { count }));
        let rewritten = self.rewritten.iter().map(|(device, &count)| (device, Cause::Rewritten { count }));
        list.extend(not_exact.chain(rewritten).map(counted));
        list
    }
}

/// The directory that a path lies in.
fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) | None => b"/",
        Some(slash) => &path[..slash],
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(operation: FileOperation) -> Cause {
        Cause::FileFailed { operation, errno: Some(5), offset: None }
    }

    #[test]
    fn the_limit_counts_for_each_directory_and_kind_and_never_for_devices() {
        let mut warnings = Warnings::default();
        for number in 0..MOST + 7 {
            let path = format!("/many/{number}");
            warnings.on_path("/dev/sda1", path.as_bytes(), failed(FileOperation::Open));
        }
        warnings.on_path("/dev/sda1", b"/many/x", Cause::DirectoryLoop);
        warnings.on_path("/dev/sda1", b"/few/a", failed(FileOperation::Open));
        warnings.on_path("/dev/sda2", b"/many/a", failed(FileOperation::Open));
        for number in 0..2 * MOST {
            warnings.on_device(&format!("/dev/sda{number}"), Cause::UnknownContent);
        }
        let list = warnings.list();
        assert_eq!(list.len() as u64, MOST + 1 + 3 + 2 * MOST);
        let more = Warning::on_path("/dev/sda1", b"/many", Cause::MoreOmitted { count: 7 });
        assert_eq!(list.last(), Some(&more));
    }

    #[test]
    fn several_messages_of_one_file_are_one() {
        let mut warnings = Warnings::default();
        for operation in [FileOperation::Read, FileOperation::Attributes] {
            warnings.on_path("/dev/sda1", b"/a", failed(operation));
        }
        assert_eq!(warnings.list(), [Warning::on_path("/dev/sda1", b"/a", failed(FileOperation::Read))]);
        assert!(!warnings.is_complete());
    }

    #[test]
    fn any_number_of_directories_is_bounded() {
        let mut warnings = Warnings::default();
        for number in 0..=MOST_PATHS {
            let path = format!("/{number}/a");
            warnings.on_path("/dev/sda1", path.as_bytes(), Cause::DirectoryLoop);
        }
        let list = warnings.list();
        assert_eq!(list.len(), MOST_PATHS + 1);
        assert_eq!(list.last(), Some(&Warning::on_guest(Cause::MoreOmitted { count: 1 })));
    }
}
