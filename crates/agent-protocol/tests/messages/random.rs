//! Random bytes, damaged messages, and the corpora of the fuzz targets.

use super::fuzz;
use super::strategies::{record, reply, report, task};
use proptest::collection::vec;
use proptest::prelude::*;
use virt_bmap_agent_protocol::codec::encode_area;
use virt_bmap_testutil::corpus::replay;

/// Changes some bytes and cuts off the end.
fn damage(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8)], keep: prop::sample::Index) -> Vec<u8> {
    for (at, byte) in changes {
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
    }
    let keep = keep.index(bytes.len() + 1);
    if keep > bytes.len() / 2 {
        bytes.truncate(keep);
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    vec(any::<(prop::sample::Index, u8)>(), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..600)) {
        fuzz::agent_to_host(&bytes);
        fuzz::host_to_agent(&bytes);
        fuzz::device_inventory(&bytes);
    }

}

proptest! {
    #[test]
    fn damaged_records(records in vec(record(), 1..4), changes in changes(), keep in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        fuzz::agent_to_host(&damage(bytes, &changes, keep));
    }

    #[test]
    fn damaged_messages_to_the_agent(
        task in task(),
        reply in reply(),
        changes in changes(),
        keep in any::<prop::sample::Index>(),
    ) {
        let messages = [(1, encode_area(&task).unwrap()), (3, encode_area(&reply).unwrap())];
        for (choice, area) in messages {
            let damaged = damage(area, &changes, keep);
            fuzz::host_to_agent(&[&[choice], &damaged[..]].concat());
            fuzz::host_to_agent(&[&[choice - 1], damaged.get(8..).unwrap_or_default()].concat());
        }
    }

    #[test]
    fn damaged_inventories(
        reports in vec(report(), 1..4),
        changes in changes(),
        keep in any::<prop::sample::Index>(),
    ) {
        let text: String = reports.iter().map(|report| format!("{report}\n")).collect();
        fuzz::device_inventory(&damage(text.into_bytes(), &changes, keep));
    }
}

#[test]
fn corpus_of_records() {
    replay("agent_to_host", fuzz::agent_to_host);
}

#[test]
fn corpus_of_messages_to_the_agent() {
    replay("host_to_agent", fuzz::host_to_agent);
}

#[test]
fn corpus_of_inventories() {
    replay("device_inventory", fuzz::device_inventory);
}
