//! Where RAID puts data, copies and parity.
//!
//! Two drivers of the kernel share these rules: md (`drivers/md/raid*.c`) and the device mapper's
//! `raid` target, which uses md's code. A *row* is a chunk of each member at the same place.

/// How an array spreads its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// No redundancy: chunks go round.
    Raid0,
    /// Every member holds everything.
    Raid1,
    /// One parity chunk in each row.
    Raid5(Rotation),
    /// Two parity chunks in each row.
    Raid6(Rotation),
    /// Copies of each chunk, side by side and at a distance.
    Raid10 {
        /// Copies in the same row or the next.
        near: u64,
        /// Copies in other parts of the members.
        far: u64,
        /// Far copies lie in the next row, not in the members' other halves.
        offset: bool,
    },
}

/// Where the parity of a row is, and where its data begins (`ALGORITHM_*` of `drivers/md/raid5.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotation {
    /// Parity goes from the last member to the first, data begins at the first.
    LeftAsymmetric,
    /// Parity goes from the first member to the last, data begins at the first.
    RightAsymmetric,
    /// Parity goes from the last member to the first, data begins behind it.
    LeftSymmetric,
    /// Parity goes from the first member to the last, data begins behind it.
    RightSymmetric,
    /// Parity first.
    First,
    /// Parity last.
    Last,
}

impl Rotation {
    /// md's number, the same for RAID 5 and 6 in its own layouts.
    pub(super) fn from_md(layout: u64) -> Option<Self> {
        [
            Self::LeftAsymmetric,
            Self::RightAsymmetric,
            Self::LeftSymmetric,
            Self::RightSymmetric,
            Self::First,
            Self::Last,
        ]
        .get(usize::try_from(layout).ok()?)
        .copied()
    }

    /// The member that has the first chunk of parity of a row; a second one is behind it, going
    /// round.
    fn parity(self, row: u64, disks: u64, parities: u64) -> u64 {
        let turn = row % disks;
        match self {
            Self::LeftAsymmetric | Self::LeftSymmetric => disks - 1 - turn,
            Self::RightAsymmetric | Self::RightSymmetric => turn,
            Self::First => 0,
            Self::Last => disks - parities,
        }
    }
}

impl Level {
    /// By md's names and numbers.
    pub(super) fn from_md(level: &str, layout: u64, disks: u64) -> Option<Self> {
        Some(match level {
            "raid0" => Self::Raid0,
            "raid1" => Self::Raid1,
            // RAID 4 keeps its parity on the last member.
            "raid4" => Self::Raid5(Rotation::Last),
            "raid5" => Self::Raid5(Rotation::from_md(layout)?),
            "raid6" => Self::Raid6(Rotation::from_md(layout)?),
            "raid10" => {
                let (near, far) = (layout & 0xff, (layout >> 8) & 0xff);
                // Bit 17 and above: far sets, which group the members in ways of their own. Near
                // and far copies together do not occur: mdadm makes no such array.
                if near.min(far) != 1 || near.max(far) > disks || layout >> 17 != 0 {
                    return None;
                }
                Self::Raid10 { near, far, offset: layout & 0x1_0000 != 0 }
            }
            _ => return None,
        })
    }

    /// By the device mapper's names (`Documentation/admin-guide/device-mapper/dm-raid.rst`).
    pub(super) fn from_dm(kind: &str, disks: u64) -> Option<Self> {
        Some(match kind {
            "raid0" | "raid0_meta" => Self::Raid0,
            "raid1" => Self::Raid1,
            "raid4" | "raid5_n" => Self::Raid5(Rotation::Last),
            "raid5_la" => Self::Raid5(Rotation::LeftAsymmetric),
            "raid5_ra" => Self::Raid5(Rotation::RightAsymmetric),
            "raid5_ls" => Self::Raid5(Rotation::LeftSymmetric),
            "raid5_rs" => Self::Raid5(Rotation::RightSymmetric),
            // Data lies as in md's layouts; only the order in which Q is computed differs.
            "raid6_zr" => Self::Raid6(Rotation::RightAsymmetric),
            "raid10" if disks >= 2 => Self::Raid10 { near: 2, far: 1, offset: false },
            _ => return None,
        })
    }

    /// Whether every byte is on every member, so that there are no chunks.
    pub(super) fn is_mirror(self) -> bool {
        self == Self::Raid1
    }

    /// The members and their chunks (counted from 0) that hold the array's chunk `number`, first
    /// the one that is read by preference. `disks` members have `rows` chunks each.
    pub(super) fn places(self, number: u64, disks: u64, rows: u64) -> Vec<(u64, u64)> {
        match self {
            Self::Raid0 => vec![(number % disks, number / disks)],
            Self::Raid1 => (0..disks).map(|member| (member, number)).collect(),
            Self::Raid5(rotation) => vec![striped(rotation, number, disks, 1)],
            Self::Raid6(rotation) => vec![striped(rotation, number, disks, 2)],
            Self::Raid10 { near, far, offset } => raid10(near, far, offset, number, disks, rows),
        }
    }

    /// How many chunks of parity each row has.
    pub(super) fn parity_count(self) -> u64 {
        match self {
            Self::Raid0 | Self::Raid1 | Self::Raid10 { .. } => 0,
            Self::Raid5(_) => 1,
            Self::Raid6(_) => 2,
        }
    }

    /// The members and their chunks that hold the parity of the array's chunk `number`.
    pub(super) fn parities(self, number: u64, disks: u64) -> Vec<(u64, u64)> {
        let (Self::Raid5(rotation) | Self::Raid6(rotation)) = self else { return Vec::new() };
        let count = self.parity_count();
        let row = number / (disks - count);
        let first = rotation.parity(row, disks, count);
        (0..count).map(|parity| ((first + parity) % disks, row)).collect()
    }
}

/// The one place of a data chunk where each row has `parities` chunks of parity.
fn striped(rotation: Rotation, number: u64, disks: u64, parities: u64) -> (u64, u64) {
    let data = disks - parities;
    let (row, index) = (number / data, number % data);
    let parity = rotation.parity(row, disks, parities);
    let member = match rotation {
        Rotation::LeftSymmetric | Rotation::RightSymmetric => (parity + parities + index) % disks,
        Rotation::First => parities + index,
        Rotation::Last => index,
        Rotation::LeftAsymmetric | Rotation::RightAsymmetric => {
            // Data fills the members that hold no parity, in order. Parity that goes round the end
            // takes the first member, too.
            let wrapped = (parity + parities).saturating_sub(disks);
            if index + wrapped < parity { index + wrapped } else { index + parities }
        }
    };
    (member, row)
}

/// `__raid10_find_phys` in `drivers/md/raid10.c`.
fn raid10(near: u64, far: u64, offset: bool, number: u64, disks: u64, rows: u64) -> Vec<(u64, u64)> {
    let first = number * near;
    let (mut row, start) = (first / disks, first % disks);
    // With far copies in the next row, rows of data are `far` apart.
    if offset {
        row *= far;
    }
    let stride = if offset { 1 } else { rows / far };
    let mut places = Vec::new();
    for copy in 0..near {
        let (member, row) = ((start + copy) % disks, row + (start + copy) / disks);
        for distance in 0..far {
            places.push(((member + distance) % disks, row + distance * stride));
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(level: Level, disks: u64, count: u64) -> Vec<u64> {
        (0..count).map(|number| level.places(number, disks, 1000)[0].0).collect()
    }

    /// The tables of md(4) and of the SNIA's DDF specification.
    #[test]
    fn parity_goes_round() {
        let raid5 = |rotation| members(Level::Raid5(rotation), 3, 6);
        assert_eq!(raid5(Rotation::LeftSymmetric), [0, 1, 2, 0, 1, 2]);
        assert_eq!(raid5(Rotation::LeftAsymmetric), [0, 1, 0, 2, 1, 2]);
        assert_eq!(raid5(Rotation::RightSymmetric), [1, 2, 2, 0, 0, 1]);
        assert_eq!(raid5(Rotation::RightAsymmetric), [1, 2, 0, 2, 0, 1]);
        assert_eq!(raid5(Rotation::First), [1, 2, 1, 2, 1, 2]);
        assert_eq!(raid5(Rotation::Last), [0, 1, 0, 1, 0, 1]);
        let raid6 = |rotation| members(Level::Raid6(rotation), 4, 8);
        // Row 0: P on member 3, Q on 0; row 1: P on 2, Q on 3; …
        assert_eq!(raid6(Rotation::LeftSymmetric), [1, 2, 0, 1, 3, 0, 2, 3]);
        assert_eq!(raid6(Rotation::LeftAsymmetric), [1, 2, 0, 1, 0, 3, 2, 3]);
        assert_eq!(raid6(Rotation::RightAsymmetric), [2, 3, 0, 3, 0, 1, 1, 2]);
    }

    #[test]
    fn copies_of_raid10() {
        let places = |layout, disks, number| {
            Level::from_md("raid10", layout, disks).unwrap().places(number, disks, 100)
        };
        // near 2 on four and on three members
        assert_eq!(places(0x102, 4, 1), [(2, 0), (3, 0)]);
        assert_eq!(places(0x102, 3, 1), [(2, 0), (0, 1)]);
        // far 2: the second copy one member on, in the other half
        assert_eq!(places(0x201, 4, 5), [(1, 1), (2, 51)]);
        assert_eq!(places(0x201, 4, 3), [(3, 0), (0, 50)]);
        // offset 2: the second copy in the next row
        assert_eq!(places(0x1_0201, 4, 5), [(1, 2), (2, 3)]);
        assert_eq!(Level::from_md("raid10", 0x2_0201, 4), None);
    }

    #[test]
    fn no_two_chunks_share_a_place() {
        let levels = [
            (Level::Raid0, 3),
            (Level::Raid5(Rotation::LeftSymmetric), 5),
            (Level::Raid5(Rotation::RightAsymmetric), 4),
            (Level::Raid6(Rotation::LeftAsymmetric), 6),
            (Level::Raid6(Rotation::RightSymmetric), 5),
            (Level::Raid6(Rotation::RightAsymmetric), 5),
            (Level::Raid6(Rotation::First), 5),
            (Level::Raid10 { near: 2, far: 1, offset: false }, 5),
            (Level::Raid10 { near: 1, far: 3, offset: false }, 4),
            (Level::Raid10 { near: 1, far: 2, offset: true }, 3),
            (Level::Raid10 { near: 3, far: 1, offset: false }, 4),
        ];
        for (level, disks) in levels {
            let mut seen = std::collections::HashSet::new();
            for number in 0..60 {
                for place in level.places(number, disks, 900) {
                    assert!(place.0 < disks && seen.insert(place), "{level:?}: {number} at {place:?}");
                }
            }
            // Nor does parity lie where data do; data and parity fill each row.
            let whole_rows = 60 / (disks - level.parity_count());
            for number in 0..60 {
                for place in level.parities(number, disks) {
                    assert!(place.0 < disks && !seen.contains(&place), "{level:?}: {number} at {place:?}");
                }
            }
            if level.parity_count() > 0 {
                for number in 0..60 {
                    seen.extend(level.parities(number, disks));
                }
                let full = seen.iter().filter(|(_, row)| *row < whole_rows).count();
                assert_eq!(full as u64, whole_rows * disks, "{level:?}");
            }
        }
    }
}
