//! What is sent is what arrives.

use super::strategies::{record, reply, report, task};
use proptest::collection::vec;
use proptest::prelude::*;
use virt_bmap_agent_protocol::codec::{decode_area, encode_area};
use virt_bmap_agent_protocol::inventory::{self, Report};
use virt_bmap_agent_protocol::{REPLY_SIZE, Record, Reply, Task, VERSION};

proptest! {
    #[test]
    fn records_arrive_in_pieces_of_any_size(records in vec(record(), 1..9), piece in 1usize..2000) {
        let mut stream = Vec::new();
        records.iter().for_each(|record| record.encode(&mut stream));
        let mut seen = Vec::new();
        let mut buffer = Vec::new();
        for bytes in stream.chunks(piece) {
            buffer.extend_from_slice(bytes);
            while let Some((record, used)) = Record::decode(&buffer).unwrap() {
                seen.push(record);
                buffer.drain(..used);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(seen, records);
    }

    #[test]
    fn replies_arrive(reply in reply()) {
        let area = encode_area(&reply).unwrap();
        prop_assert!(area.len() <= REPLY_SIZE);
        prop_assert_eq!(decode_area::<Reply>(&area), Ok(reply));
    }

    #[test]
    fn tasks_arrive(task in task()) {
        let area = encode_area(&task).unwrap();
        prop_assert_eq!(decode_area::<Task>(&area), Ok(task));
    }

    #[test]
    fn reports_arrive(reports in vec(report(), 0..5)) {
        let text: String = reports.iter().map(|report| format!("{report}\n")).collect();
        prop_assert_eq!(inventory::parse(&text), Ok(reports.clone()));
        for report in reports {
            prop_assert_eq!(Report::parse(&report.to_string()), report);
        }
    }
}

#[test]
fn the_bytes_of_a_message_change_only_with_the_version() {
    let mut bytes = Vec::new();
    Record::Tag { id: 300, reset: true }.encode(&mut bytes);
    Record::Link { id: 5, parent: 4, name: b"ab".to_vec() }.encode(&mut bytes);
    let tag = [4, 0, 0, 0, 7, 0xac, 2, 1];
    let link = [6, 0, 0, 0, 4, 5, 4, 2, b'a', b'b'];
    assert_eq!(bytes, [&tag[..], &link[..]].concat());
    let area = encode_area(&Reply { files: vec![3, 300] }).unwrap();
    assert_eq!(area, [&VERSION.to_le_bytes()[..], &[0, 0, 4, 0, 0, 0, 2, 3, 0xac, 2]].concat());
}
