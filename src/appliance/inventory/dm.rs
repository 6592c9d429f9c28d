//! Tables of the device mapper.

use super::{DeviceKind, SECTOR};
use std::collections::BTreeMap;
use virt_bmap_agent_protocol::inventory::{DeviceNumber, device_number};

/// One line of a device-mapper table (`dmsetup(8)`), sectors turned into bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmTarget {
    /// Where on the mapped device it begins.
    pub start: u64,
    /// How many bytes it maps.
    pub length: u64,
    /// `linear`, `striped`, `crypt`, …
    pub kind: String,
    /// The rest of the line.
    pub arguments: Vec<String>,
}

impl DmTarget {
    /// The words of the line after its kind.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().map(String::as_str)
    }

    /// The devices that it names, which it is made of.
    pub fn devices(&self) -> impl Iterator<Item = DeviceNumber> {
        self.words().filter_map(device_number)
    }

    /// How many members a `raid` target lacks: its line has `-` in place of their devices.
    pub fn missing_members(&self) -> u64 {
        let parameters = self.arguments.get(1).and_then(|count| count.parse::<usize>().ok());
        let devices = parameters.and_then(|count| self.arguments.get(count.checked_add(3)?..));
        let pairs = devices.filter(|_| self.kind == "raid").unwrap_or_default().chunks_exact(2);
        pairs.filter(|pair| pair[1] == "-").count() as u64
    }
}

/// The device mapper's tables, by the name of the mapped device.
#[derive(Default)]
pub(super) struct DmTable(pub(super) BTreeMap<String, Vec<DmTarget>>);

impl DmTable {
    /// The mapped device of this name as a partition: one linear piece of another device.
    pub(super) fn partition(&self, name: &str) -> Option<DeviceKind> {
        let [target] = self.0.get(name)?.as_slice() else { return None };
        let mut words = target.words().filter(|_| target.kind == "linear");
        let of = device_number(words.next()?)?;
        Some(DeviceKind::Partition { of, start: words.next()?.parse::<u64>().ok()?.checked_mul(SECTOR)? })
    }

    /// Parses what `dmsetup table` prints: `NAME: START LENGTH KIND ARGUMENTS...`.
    pub(super) fn parse_all(text: &str) -> Self {
        let mut tables = BTreeMap::<String, Vec<DmTarget>>::new();
        for line in text.lines() {
            let Some((name, target)) = line.split_once(": ") else { continue };
            let mut words = target.split_whitespace();
            let mut sectors = || words.next()?.parse::<u64>().ok()?.checked_mul(SECTOR);
            let (Some(start), Some(length)) = (sectors(), sectors()) else { continue };
            let Some(kind) = words.next() else { continue };
            tables.entry(name.to_owned()).or_default().push(DmTarget {
                start,
                length,
                kind: kind.to_owned(),
                arguments: words.map(str::to_owned).collect(),
            });
        }
        Self(tables)
    }
}
