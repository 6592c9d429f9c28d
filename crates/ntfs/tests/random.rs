//! Random records, as the fuzz target makes them of its input.

#[path = "../../../fuzz/ntfs.rs"]
mod ntfs;

use proptest::prelude::*;

/// An attribute whose header makes sense, with any body: most random bytes are none.
fn attribute() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(vec![0x20u8, 0x30, 0x80, 0x90, 0xa0, 0xb0, 0xc0]);
    (kinds, any::<bool>(), prop::collection::vec(any::<u8>(), 64..200), 0u8..3).prop_map(
        |(kind, is_resident, body, name)| {
            let length = body.len().next_multiple_of(8);
            let mut attribute =
                vec![kind, 0, 0, 0, length as u8, 0, 0, 0, u8::from(!is_resident), name, 16, 0];
            attribute.extend([0, 0, 0, 0]);
            if is_resident {
                attribute.extend([(length - 24) as u8, 0, 0, 0, 24, 0, 0, 0]);
            } else {
                attribute.extend([0; 8]);
                attribute.extend(u64::from(body[0]).to_le_bytes());
                attribute.extend([0x40, 0, 0, 0, 0, 0, 0, 0]);
            }
            let at = attribute.len();
            attribute.extend(&body[at.min(body.len())..]);
            attribute.resize(length, 0);
            attribute
        },
    )
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(attribute(), 0..5), 0u8..4, prop::option::of(0u8..8)).prop_map(
        |(attributes, flags, base)| {
            let attributes = attributes.concat();
            let mut record = vec![0; 1024];
            record[0x14] = 0x38;
            record[0x16] = flags;
            let end = (0x38 + attributes.len()).min(1024);
            record[0x18..0x1a].copy_from_slice(&(end as u16).to_le_bytes());
            record[0x20] = base.unwrap_or(0);
            record[0x38..end].copy_from_slice(&attributes[..end - 0x38]);
            record
        },
    )
}

#[test]
fn the_volume_around_the_records_is_sound() {
    assert_eq!(ntfs::volume(&[]), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..4096)) {
        ntfs::volume(&data);
    }

    #[test]
    fn random_records_are_survived(records in prop::collection::vec(record(), 0..10)) {
        ntfs::volume(&records.concat());
    }
}
