//! The address space of a btrfs: its chunks, each with a profile (`struct btrfs_chunk` of
//! `linux/btrfs_tree.h`; `__btrfs_map_block` in `fs/btrfs/volumes.c`).

use super::{Builder, Layout};
use crate::appliance::DeviceNumber;
use std::collections::HashMap;
use std::sync::Arc;
use virt_bmap_agent_protocol::record::{Chunk, Member};

/// `BTRFS_BLOCK_GROUP_*`
const RAID0: u64 = 1 << 3;
const RAID10: u64 = 1 << 6;
const RAID5: u64 = 1 << 7;
const RAID6: u64 = 1 << 8;
/// All profiles whose devices all hold the same bytes.
const MIRRORS: u64 = 1 << 4 | 1 << 5 | 1 << 9 | 1 << 10;
const PROFILES: u64 = RAID0 | RAID10 | RAID5 | RAID6 | MIRRORS;

/// The layout of the address space, on devices with the layouts `below`. Missing devices have the
/// number 0:0; bytes that only they hold are on no disk. `None` if the layout of a device is
/// unknown, or the chunks are invalid.
pub fn address_space(
    members: &[Member],
    chunks: &[Chunk],
    below: &HashMap<DeviceNumber, Arc<Layout>>,
) -> Option<Layout> {
    let mut devices: HashMap<u64, Option<&Layout>> = HashMap::new();
    for member in members {
        let number = (member.major, member.minor);
        let layout = if number == (0, 0) { None } else { Some(below.get(&number)?.as_ref()) };
        devices.insert(member.id, layout);
    }
    let mut builder = Builder::default();
    let mut end = 0;
    for chunk in chunks {
        if chunk.start < end || chunk.length == 0 {
            return None;
        }
        end = chunk.start.checked_add(chunk.length)?;
        map(&mut builder, chunk, &devices)?;
    }
    (end > 0).then(|| builder.finish())
}

fn map(builder: &mut Builder, chunk: &Chunk, devices: &HashMap<u64, Option<&Layout>>) -> Option<()> {
    let count = chunk.stripes.len() as u64;
    let profile = chunk.profile & PROFILES;
    if count == 0 || profile.count_ones() > 1 {
        return None;
    }
    if profile & !MIRRORS == 0 {
        let copies = (0..count).map(|stripe| (stripe, 0));
        return put(builder, chunk, devices, (0, chunk.length), copies, &[]);
    }
    let stripe_length = Some(chunk.stripe_length).filter(|length| *length >= 512)?;
    let sub_stripes = if profile == RAID10 { u64::from(chunk.sub_stripes) } else { 1 };
    let parities = match profile {
        RAID5 => 1,
        RAID6 => 2,
        _ => 0,
    };
    let columns = count.checked_sub(parities)?.checked_div(sub_stripes).filter(|columns| *columns > 0)?;
    if columns == 1 && parities == 0 {
        // All stripes touch, so one segment for each copy is enough.
        return put(builder, chunk, devices, (0, chunk.length), (0..sub_stripes).map(|copy| (copy, 0)), &[]);
    }
    let mut done = 0;
    while done < chunk.length {
        builder.count_chunk()?;
        let number = done / stripe_length;
        let (row, column) = (number / columns, number % columns);
        let length = stripe_length.min(chunk.length - done);
        // Parity follows the data, and all places move on by one with each row.
        let turn = if parities > 0 { row % count } else { 0 };
        let place = |index: u64| ((index + turn) % count, row.saturating_mul(stripe_length));
        let copies = (0..sub_stripes).map(|copy| place(column * sub_stripes + copy));
        let parity: Vec<_> = (0..parities).map(|parity| place(columns + parity)).collect();
        put(builder, chunk, devices, (done, length), copies, &parity)?;
        done += length;
    }
    Some(())
}

/// Maps a run of a chunk (start and length) to its stripes, each given as its number and the offset
/// in it.
fn put(
    builder: &mut Builder,
    chunk: &Chunk,
    devices: &HashMap<u64, Option<&Layout>>,
    (at, length): (u64, u64),
    copies: impl Iterator<Item = (u64, u64)>,
    parities: &[(u64, u64)],
) -> Option<()> {
    let place = |(stripe, within): (u64, u64)| -> Option<(Option<&Layout>, u64)> {
        let (device, offset) = chunk.stripes.get(usize::try_from(stripe).ok()?)?;
        Some((*devices.get(device)?, offset.checked_add(within)?))
    };
    let mut copy = 0;
    for stripe in copies {
        if let (Some(below), from) = place(stripe)? {
            copy += builder.map(chunk.start + at, length, below, from, copy)?;
        }
    }
    for (number, stripe) in parities.iter().enumerate() {
        if let (Some(below), from) = place(*stripe)? {
            builder.protect(chunk.start + at, length, below, from, number)?;
        }
    }
    builder.is_partial |= copy == 0;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt_bmap_ranges::Range;

    const K64: u64 = 64 << 10;

    /// Disk, offset and copy of the first byte of each stripe.
    fn places(
        profile: u64,
        sub_stripes: u16,
        devices: u64,
        missing: Option<u64>,
        stripes: u64,
    ) -> Vec<Vec<(u16, u64, u8)>> {
        let number = |id: u64| if missing == Some(id) { (0, 0) } else { (8, 16 * id as u32) };
        let members: Vec<Member> =
            (1..=devices).map(|id| Member { id, major: number(id).0, minor: number(id).1 }).collect();
        let below = (1..=devices)
            .map(|id| ((8, 16 * id as u32), Arc::new(Layout::of_disk(id as u16, 1 << 30))))
            .collect();
        let chunk = Chunk {
            start: 1 << 40,
            length: stripes * K64,
            stripe_length: K64,
            profile,
            sub_stripes,
            stripes: (1..=devices).map(|id| (id, 1 << 20)).collect(),
        };
        let layout = address_space(&members, &[chunk], &below).unwrap();
        let of = |stripe: u64| {
            let at = (1 << 40) + stripe * K64;
            layout
                .part(Range::new(at, at + 1))
                .unwrap()
                .iter()
                .map(|s| (s.disk, s.start.0 - (1 << 20), s.copy))
                .collect()
        };
        (0..stripes).map(of).collect()
    }

    #[test]
    fn each_profile_has_its_places() {
        assert_eq!(places(1, 1, 1, None, 2), [[(1, 0, 0)], [(1, K64, 0)]]);
        assert_eq!(places(1 | 1 << 4, 1, 2, None, 1), [[(1, 0, 0), (2, 0, 1)]]);
        assert_eq!(places(1 | 1 << 9, 1, 3, None, 1), [[(1, 0, 0), (2, 0, 1), (3, 0, 2)]]);
        assert_eq!(places(1 | RAID0, 1, 2, None, 3), [[(1, 0, 0)], [(2, 0, 0)], [(1, K64, 0)]]);
        assert_eq!(places(1 | RAID0, 1, 1, None, 2), [[(1, 0, 0)], [(1, K64, 0)]]);
        let one_column = places(1 | RAID10, 2, 2, None, 2);
        assert_eq!(one_column, [[(1, 0, 0), (2, 0, 1)], [(1, K64, 0), (2, K64, 1)]]);
        assert_eq!(
            places(1 | RAID10, 2, 4, None, 3),
            [[(1, 0, 0), (2, 0, 1)], [(3, 0, 0), (4, 0, 1)], [(1, K64, 0), (2, K64, 1)]]
        );
        assert_eq!(
            places(1 | RAID5, 1, 3, None, 4),
            [[(1, 0, 0)], [(2, 0, 0)], [(2, K64, 0)], [(3, K64, 0)]]
        );
    }

    #[test]
    fn chunks_of_a_missing_device_are_nowhere() {
        assert_eq!(places(1 | 1 << 4, 1, 2, Some(1), 1), [[(2, 0, 0)]]);
        assert_eq!(places(1 | RAID5, 1, 3, Some(2), 2), [vec![(1, 0, 0)], vec![]]);
    }

    /// The stripes of missing devices become no segments, and would be counted for ever.
    #[test]
    fn a_chunk_with_more_stripes_than_any_disk_holds_is_refused() {
        let members = [Member { id: 1, major: 0, minor: 0 }];
        for (profile, stripe_length) in [(RAID0, 512), (RAID5, 512), (RAID6, 512), (RAID10, 512)] {
            let chunk = Chunk {
                start: 0,
                length: u64::MAX,
                stripe_length,
                profile,
                sub_stripes: 2,
                stripes: vec![(1, 0); 4],
            };
            assert!(address_space(&members, &[chunk], &HashMap::new()).is_none(), "{profile:#x}");
        }
    }

    #[test]
    fn invalid_chunks_are_refused() {
        let members = [Member { id: 1, major: 8, minor: 16 }];
        let below = HashMap::from([((8, 16), Arc::new(Layout::of_disk(1, 1 << 30)))]);
        let good = Chunk {
            start: 0,
            length: 1 << 20,
            stripe_length: K64,
            profile: 1,
            sub_stripes: 1,
            stripes: vec![(1, 0)],
        };
        let known = |chunks: &[Chunk]| address_space(&members, chunks, &below).is_some();
        assert!(known(std::slice::from_ref(&good)));
        for bad in [
            Chunk { length: 0, ..good.clone() },
            Chunk { start: u64::MAX, ..good.clone() },
            Chunk { stripes: vec![], ..good.clone() },
            Chunk { stripes: vec![(2, 0)], ..good.clone() },
            Chunk { stripes: vec![(1, 1 << 30)], ..good.clone() },
            Chunk { profile: RAID0 | RAID10, ..good.clone() },
            Chunk { profile: RAID0, stripe_length: 0, ..good.clone() },
            Chunk { profile: RAID10, sub_stripes: 0, ..good.clone() },
            Chunk { profile: RAID5, ..good.clone() },
            Chunk { profile: RAID0, length: 1 << 60, ..good.clone() },
        ] {
            assert!(!known(std::slice::from_ref(&bad)), "{bad:?}");
        }
        assert!(!known(&[good.clone(), good]));
        assert!(!known(&[]));
    }
}
