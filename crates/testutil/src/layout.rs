//! Where the volumes of a fixture lie on its disk, according to `sfdisk` and `lvs`.

use super::ranges::{Range, normalise};
use super::tools;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A partition or logical volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its name in the appliance: `/dev/sda2`, `/dev/vg0/root`.
    pub device: String,
    /// Where its bytes lie, in the order of the volume.
    pub segments: Vec<Segment>,
}

/// A piece of a volume that is contiguous on the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// The first byte on the volume.
    pub volume: u64,
    /// The first byte on the disk.
    pub disk: u64,
    /// The number of bytes.
    pub length: u64,
}

impl Volume {
    /// A volume in one piece.
    pub fn contiguous(device: &str, disk: u64, length: u64) -> Self {
        Self { device: device.to_owned(), segments: vec![Segment { volume: 0, disk, length }] }
    }

    /// The bytes of the disk that the volume owns.
    pub fn on_disk(&self) -> Vec<Range> {
        normalise(self.segments.iter().map(|s| s.disk..s.disk + s.length))
    }

    /// The places on the disk of ranges of the volume.
    pub fn to_disk(&self, ranges: &[Range]) -> Vec<Range> {
        normalise(ranges.iter().flat_map(|range| {
            self.segments.iter().map(move |s| {
                let start = range.start.max(s.volume);
                let end = range.end.min(s.volume + s.length).max(start);
                start - s.volume.min(start) + s.disk..end - s.volume.min(end) + s.disk
            })
        }))
    }

    /// Copies the volume's content from the raw image `disk` to the sparse file `flat`.
    pub fn extract(&self, disk: &Path, flat: &Path) {
        let source = File::open(disk).unwrap();
        let target = File::create_new(flat).unwrap();
        let zeroes = [0; 1 << 16];
        let mut buffer = [0; 1 << 16];
        for segment in &self.segments {
            for done in (0..segment.length).step_by(buffer.len()) {
                let part = &mut buffer[..((segment.length - done) as usize).min(1 << 16)];
                source.read_exact_at(part, segment.disk + done).unwrap();
                if *part != zeroes[..part.len()] {
                    target.write_all_at(part, segment.volume + done).unwrap();
                }
            }
        }
        let last = self.segments.last().unwrap();
        target.set_len(last.volume + last.length).unwrap();
        (&target).flush().unwrap();
    }
}

/// The partitions of the raw image `disk`, as `sfdisk` reads them. In the appliance the disk is
/// called `device`.
pub fn partitions(disk: &Path, device: &str) -> Vec<Volume> {
    #[derive(Deserialize)]
    struct Answer {
        partitiontable: Table,
    }
    #[derive(Deserialize)]
    struct Table {
        sectorsize: Option<u64>,
        partitions: Vec<Partition>,
    }
    #[derive(Deserialize)]
    struct Partition {
        node: String,
        start: u64,
        size: u64,
    }
    let json = tools::run("sfdisk", [OsStr::new("--json"), disk.as_os_str()]);
    let table = serde_json::from_slice::<Answer>(&json).unwrap().partitiontable;
    let sector = table.sectorsize.unwrap_or(512);
    let prefix = disk.to_str().unwrap();
    table
        .partitions
        .iter()
        .map(|p| {
            let number = p.node.strip_prefix(prefix).unwrap().trim_start_matches('p');
            Volume::contiguous(&format!("{device}{number}"), p.start * sector, p.size * sector)
        })
        .collect()
}

/// The commands with which the appliance lists its physical and logical volumes, for
/// [`logical_volumes`].
pub const LVS: &str = "lvm pvs --noheadings --units b --nosuffix -o vg_name,pv_name,pe_start,vg_extent_size | sed s/^/PV/; \
    lvm lvs --segments --noheadings --units b --nosuffix -o vg_name,lv_name,seg_start,seg_size,seg_pe_ranges | sed s/^/LV/";

/// The linear logical volumes in `report`, which [`LVS`] printed. `disk_offset` returns the first
/// byte on the disk of the device of a physical volume.
pub fn logical_volumes(report: &str, disk_offset: impl Fn(&str) -> u64) -> Vec<Volume> {
    let fields = |kind: &str| -> Vec<Vec<String>> {
        let lines = report.lines().filter_map(|l| l.strip_prefix(kind).map(str::to_owned));
        lines.map(|l| l.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let pvs = fields("PV");
    let mut volumes: Vec<Volume> = Vec::new();
    for lv in fields("LV") {
        let [vg, name, start, size, places] = lv.as_slice() else { panic!("not a linear segment: {lv:?}") };
        // The form is PV:FIRST-LAST, counted in extents.
        let (pv, extents) = places.split_once(':').unwrap();
        let first: u64 = extents.split_once('-').unwrap().0.parse().unwrap();
        let pv = pvs.iter().find(|line| line[1] == pv).unwrap();
        let (data, extent): (u64, u64) = (pv[2].parse().unwrap(), pv[3].parse().unwrap());
        let segment = Segment {
            volume: start.parse().unwrap(),
            disk: disk_offset(&pv[1]) + data + first * extent,
            length: size.parse().unwrap(),
        };
        let device = format!("/dev/{vg}/{name}");
        match volumes.iter_mut().find(|v| v.device == device) {
            Some(volume) => volume.segments.push(segment),
            None => volumes.push(Volume { device, segments: vec![segment] }),
        }
    }
    for volume in &mut volumes {
        volume.segments.sort_by_key(|s| s.volume);
    }
    volumes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_over_two_segments_is_found_in_both() {
        let volume = Volume {
            device: "/dev/vg/lv".into(),
            segments: vec![
                Segment { volume: 0, disk: 1000, length: 100 },
                Segment { volume: 100, disk: 5000, length: 50 },
            ],
        };
        assert_eq!(volume.to_disk(&[90..110]), [1090..1100, 5000..5010]);
        assert_eq!(volume.to_disk(&[0..10]), [1000..1010]);
        assert_eq!(volume.to_disk(&[120..150]), [5020..5050]);
        assert_eq!(volume.on_disk(), [1000..1100, 5000..5050]);
    }

    #[test]
    fn a_report_of_lvs_gives_the_segments() {
        let report = "PV  vg /dev/sda2 1048576 4194304\nLV  vg b 0 8388608 /dev/sda2:2-3\nLV  vg a 0 4194304 /dev/sda2:0-0\nLV  vg a 4194304 4194304 /dev/sda2:4-4\n";
        let volumes = logical_volumes(report, |device| if device == "/dev/sda2" { 7 } else { panic!() });
        assert_eq!(volumes[0].on_disk(), [7 + 9437184..7 + 17825792]);
        assert_eq!(volumes[1].device, "/dev/vg/a");
        assert_eq!(volumes[1].to_disk(&[4194304..4194305]), [7 + 17825792..7 + 17825793]);
    }
}
