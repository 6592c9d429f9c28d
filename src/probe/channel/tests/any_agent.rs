//! Agents that send anything.

use super::*;

/// A record that a confused or hostile agent may send: small numbers, so that many of them are
/// those of objects.
fn record_of(kind: u8, id: u32, number: u64) -> Record {
    let (parent, start, length) = ((number % 7) as u32, number.wrapping_mul(4096), 4096 << (number % 5));
    let ids = (1..=id).collect();
    let name = format!("n{number}").into_bytes();
    let kinds = [ObjectKind::Directory, ObjectKind::File, ObjectKind::Symlink];
    match kind % 20 {
        0..=5 => object(id, parent, kinds[(number % 3) as usize], &name, length),
        6..=8 => extents(id, start, length),
        9 | 10 => {
            Record::Tag { id: if number.is_multiple_of(3) { 0 } else { id }, reset: number.is_multiple_of(2) }
        }
        11 => Record::BatchEnd,
        12 => Record::Series { ids },
        13 => Record::SelectFiles { ids },
        14 => Record::Listing { ids },
        15 => Record::Link { id, parent, name },
        16 => {
            Record::Space { purpose: BlockPurpose::Free, parts: vec![(start, length), (number, id.into())] }
        }
        17 => Record::ReadFailure(record::ReadFailure {
            operation: Operation::Read,
            errno: id as i32,
            parent,
            name,
            offset: number,
        }),
        18 => {
            [Record::Encrypted { id }, Record::Shared { id }, Record::Packed][(number % 3) as usize].clone()
        }
        _ => Record::Unsure { id },
    }
}

proptest::proptest! {
    #[test]
    fn any_records_leave_the_channel_consistent(
        said in proptest::collection::vec(proptest::arbitrary::any::<(u8, u8, u8)>(), 0..60),
        sample in 0u32..3,
    ) {
        let sample = std::num::NonZeroU32::new(sample).map(|one_in| Sample { one_in, seed: 1 });
        let mut agent = Agent::walking_in(WalkContext { sample, ..WalkContext::default() });
        let mut next = 2;
        for (kind, id, number) in said {
            // Objects get the number that is due, otherwise the walk would end at once.
            let is_object = kind % 20 < 6 && id > 9;
            let id = if is_object { next } else { u32::from(id) % (next + 1) };
            if agent.say(&[record_of(kind, id, number.into())]).is_err() {
                break;
            }
            next += u32::from(kind % 20 < 6);
            agent.read(u64::from(number) * 4096, u64::from(number) * 4096 + 8192);
        }
        let _ = agent.channel.end();
        let _ = agent.lines();
    }
}
