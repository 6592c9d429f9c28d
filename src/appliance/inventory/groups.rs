//! Volume groups of LVM: those that cannot be read, and those that share a name.

use super::{Appliance, CallError};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// The group of a physical volume, in a report of LVM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Row {
    #[serde(rename = "pv_name")]
    volume: String,
    #[serde(rename = "vg_name")]
    group: String,
    #[serde(rename = "vg_uuid")]
    uuid: String,
}

/// The groups in a report of `lvm pvs` (`--reportformat json`, lvmreport(7)). LVM prints messages to
/// standard output as well, and reports nothing of a volume that it does not recognise any more.
fn rows(printed: &str) -> Vec<Row> {
    #[derive(Deserialize)]
    struct Printed {
        report: Vec<Report>,
    }
    #[derive(Deserialize)]
    struct Report {
        pv: Vec<Row>,
    }
    let start = printed.find('{').map_or("", |at| &printed[at..]);
    let printed = serde_json::Deserializer::from_str(start).into_iter::<Printed>().next();
    let reports = printed.and_then(Result::ok).map(|printed| printed.report).unwrap_or_default();
    let rows = reports.into_iter().flat_map(|report| report.pv);
    rows.filter(|row| !row.group.is_empty() && row.group != "[unknown]").collect()
}

impl Appliance {
    fn groups(&self) -> Result<Vec<Row>, CallError> {
        let command = "lvm pvs --reportformat json -o pv_name,vg_name,vg_uuid 2>/dev/null || true";
        Ok(rows(&self.shell(command)?))
    }

    /// The physical volumes that have a group, by the kernel's names.
    pub(super) fn grouped_volumes(&self) -> Result<BTreeSet<String>, CallError> {
        Ok(self.groups()?.into_iter().map(|row| row.volume).collect())
    }

    /// Gives groups that share a name names of their own, but for the first, and activates them.
    /// `nodes` are the kernel's names of the devices, in the order of the disks. Returns the old
    /// names by the new ones. The names on the disks stay: the overlay takes the writes.
    pub(super) fn tell_groups_apart(&self, nodes: &[&str]) -> Result<BTreeMap<String, String>, CallError> {
        let renamed = new_names(self.groups()?, nodes);
        for (uuid, (_, new)) in &renamed {
            // The names are LVM's own, of letters, digits and `+_.-`; so are UUIDs.
            self.shell(&format!("DM_DISABLE_UDEV=1 lvm vgrename {uuid} {new} >/dev/null 2>&1 || true"))?;
        }
        if !renamed.is_empty() {
            self.shell("DM_DISABLE_UDEV=1 lvm vgchange -aay --sysinit >/dev/null 2>&1 || true")?;
        }
        Ok(renamed.into_values().map(|(old, new)| (new, old)).collect())
    }
}

/// The groups that need another name, by UUID: the old and the new name.
fn new_names(mut rows: Vec<Row>, nodes: &[&str]) -> BTreeMap<String, (String, String)> {
    rows.sort_by_key(|row| nodes.iter().position(|node| *node == row.volume));
    let is_safe = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "+_.-".contains(c));
    let mut names: BTreeSet<String> = rows.iter().map(|row| row.group.clone()).collect();
    let mut first = BTreeMap::<String, String>::new();
    let mut renamed = BTreeMap::new();
    for Row { group, uuid, .. } in rows {
        let owner = first.entry(group.clone()).or_insert_with(|| uuid.clone());
        if *owner == uuid || renamed.contains_key(&uuid) || !is_safe(&group) || !is_safe(&uuid) {
            continue;
        }
        let new = (2..).map(|number: u32| format!("{group}-{number}")).find(|new| !names.contains(new));
        let Some(new) = new else { continue };
        names.insert(new.clone());
        renamed.insert(uuid, (group, new));
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(volume: &str, group: &str, uuid: &str) -> Row {
        Row { volume: volume.into(), group: group.into(), uuid: uuid.into() }
    }

    #[test]
    fn the_group_of_a_physical_volume_is_in_the_report() {
        let report = |pv: &str| {
            rows(&format!("  Retrying metadata scan.\n  {{ \"report\": [ {{ \"pv\": [{pv}] }} ] }}\n"))
        };
        assert_eq!(
            report(r#"{"pv_name":"/dev/sda1","vg_name":"vg0","vg_uuid":"u"}"#),
            [row("/dev/sda1", "vg0", "u")]
        );
        for name in ["", "[unknown]"] {
            let pv = format!(r#"{{"pv_name":"/dev/sda1","vg_name":"{name}","vg_uuid":""}}"#);
            assert_eq!(report(&pv), []);
        }
        for printed in ["", "  WARNING: wrong checksum\n", "{"] {
            assert_eq!(rows(printed), []);
        }
    }

    #[test]
    fn groups_of_one_name_get_names_in_the_order_of_the_disks() {
        let all = vec![
            row("/dev/sdc", "rl", "c"),
            row("/dev/sdb", "rl", "b"),
            row("/dev/sda", "rl", "a"),
            row("/dev/sdd", "rl", "b"),
            row("/dev/sde", "rl-2", "e"),
            row("/dev/sdf", "a;b", "f"),
            row("/dev/sdg", "a;b", "g"),
        ];
        let nodes = ["/dev/sda", "/dev/sdb", "/dev/sdc", "/dev/sdd", "/dev/sde"];
        let renamed: Vec<_> = new_names(all, &nodes).into_iter().collect();
        let pair = |uuid: &str, new: &str| (uuid.to_owned(), ("rl".to_owned(), new.to_owned()));
        assert_eq!(renamed, [pair("b", "rl-3"), pair("c", "rl-4")]);
    }
}
