//! Entry points of the fuzz targets for the agent's protocol: one for each direction, and one for
//! the device inventory. The tests with random input call them as well.
//!
//! Nothing may panic, and an accepted message must be within the limits and round-trip.
#![allow(dead_code, unreachable_pub, reason = "each target uses one of the entries")]

use virt_bmap_agent_protocol::codec::{Message, decode, decode_area, encode_area};
use virt_bmap_agent_protocol::inventory::{self, Report, ReportError};
use virt_bmap_agent_protocol::{Record, Reply, Task, frame};

/// The input is a stream of records, in one frame if it is short enough.
pub fn agent_to_host(input: &[u8]) {
    let _ = frame::open(input, 0);
    if input.len() <= frame::ROOM {
        let frame = frame::of(7, input);
        assert_eq!(frame::open(&frame, 7), Ok(input));
        assert!(frame::open(&frame, 8).is_err());
    }
    let mut rest = input;
    while let Ok(Some((record, used))) = Record::decode(rest) {
        assert!(record.check().is_ok(), "{record:?}");
        let mut sent = Vec::new();
        record.encode(&mut sent);
        assert!(sent.len() <= used, "a record that grows: {record:?}");
        let received = Record::decode(&sent).expect("a record that was accepted before");
        assert_eq!(received, Some((record, sent.len())));
        rest = &rest[used..];
    }
}

/// The first byte of the input chooses the message and whether it has a header; the agent reads the
/// rest from the control disk.
pub fn host_to_agent(input: &[u8]) {
    let Some((&choice, bytes)) = input.split_first() else { return };
    match choice % 4 {
        0 => round_trip(decode::<Task>(bytes).ok()),
        1 => round_trip(decode_area::<Task>(bytes).ok()),
        2 => round_trip(decode::<Reply>(bytes).ok()),
        _ => round_trip(decode_area::<Reply>(bytes).ok()),
    }
}

fn round_trip<M: Message + PartialEq + std::fmt::Debug>(message: Option<M>) {
    let Some(message) = message else { return };
    assert!(message.check().is_ok(), "{message:?}");
    let area = encode_area(&message).expect("a message that was accepted before");
    assert_eq!(decode_area::<M>(&area), Ok(message));
}

/// The input is what the agent prints.
pub fn device_inventory(input: &[u8]) {
    for report in inventory::parse(&String::from_utf8_lossy(input)).unwrap_or_default() {
        if report.result == Err(ReportError::Malformed) {
            continue;
        }
        assert_eq!(Report::parse(&report.to_string()), report);
    }
}
