//! What could not be examined, or not for certain: for standard error, the map's header and the exit
//! status.

use crate::bmap::BuildError;
use crate::bmap::escape::Printable;
use std::collections::BTreeMap;
use virt_bmap_agent::record;

/// One thing that could not be examined. All text is fit for a terminal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// What it is about: a device, or a device and a path.
    pub place: String,
    /// What is wrong, and what can be done about it.
    pub what: String,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl Trouble {
    /// A trouble with a device.
    pub fn new(device: &str, what: impl std::fmt::Display) -> Self {
        Self { place: Printable(device.as_bytes()).to_string(), what: what.to_string() }
    }

    /// A trouble with a path on a device.
    pub fn at(device: &str, path: &[u8], what: impl std::fmt::Display) -> Self {
        let place = format!("{} {}", Printable(device.as_bytes()), Printable(path));
        Self { place, what: what.to_string() }
    }

    pub(super) fn unmappable(device: &str, path: &[u8], error: &BuildError) -> Self {
        // The path itself is what is too long.
        let shown = &path[path.len().saturating_sub(64)..];
        Self::at(device, shown, error)
    }

    pub(super) fn of_agent(device: &str, path: Option<&[u8]>, trouble: &record::Trouble) -> Self {
        let mut what = format!("cannot {}", trouble.operation.verb());
        what = match path {
            None => format!("{what} it at byte {}", trouble.offset),
            Some(_) if trouble.operation == record::Operation::Read => {
                format!("{what} it at byte {}", trouble.offset)
            }
            Some(_) => format!("{what} it"),
        };
        if trouble.operation == record::Operation::Loop {
            what = "this directory was visited before: the file system is damaged".into();
        } else if trouble.errno != 0 {
            what = format!("{what}: {}", std::io::Error::from_raw_os_error(trouble.errno));
        }
        match path {
            None => Self::new(device, what),
            Some(path) => Self::at(device, path, what),
        }
    }
}

/// Most troubles that are kept; those beyond are counted.
const MOST: usize = 1000;

/// All that could not be examined, and all that is worth a warning.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    list: Vec<Trouble>,
    dropped: u64,
    /// Objects that were not read where the kernel says that they lie, by file system.
    inexact: BTreeMap<String, u64>,
    /// Objects that were read where something had been written since the image was opened, by file system.
    changed: BTreeMap<String, u64>,
    /// Worth saying, but nothing is missing from the map.
    warnings: Vec<Trouble>,
}

impl Troubles {
    /// Adds what could not be examined.
    pub fn push(&mut self, trouble: Trouble) {
        if self.list.len() < MOST { self.list.push(trouble) } else { self.dropped += 1 }
    }

    /// Adds what is worth saying.
    pub fn warn(&mut self, warning: Trouble) {
        self.warnings.push(warning);
    }

    pub(super) fn inexact(&mut self, device: &str) {
        *self.inexact.entry(device.to_owned()).or_default() += 1;
    }

    pub(super) fn changed(&mut self, device: &str) {
        *self.changed.entry(device.to_owned()).or_default() += 1;
    }

    /// Whether all was examined.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What could not be examined.
    pub fn unexamined(&self) -> Vec<Trouble> {
        let mut list = self.list.clone();
        list.sort();
        if self.dropped > 0 {
            list.push(Trouble { place: "and more".into(), what: format!("{} like these", self.dropped) });
        }
        list
    }

    /// What is worth saying all the same.
    pub fn warnings(&self) -> Vec<Trouble> {
        let inexact = self.inexact.iter().map(|(device, count)| {
            Trouble::new(
                device,
                format!("{count} objects were not read exactly where the kernel says they lie"),
            )
        });
        let changed = self.changed.iter().map(|(device, count)| {
            Trouble::new(
                device,
                format!("{count} files were read where the image holds something else: blocks were moved or replayed meanwhile"),
            )
        });
        self.warnings.iter().cloned().chain(inexact).chain(changed).collect()
    }
}
