//! Requests and replies, according to the specification.

use super::memory::{Kind, Memory, commands};
use super::peer::{Chunk, Peer, header};
use bytes::Buf;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use virt_bmap_nbd::protocol::*;
use virt_bmap_nbd::{ConnectionError, Limits};

const SIZE: u32 = 1 << 20;

fn memory(kind: Kind) -> Arc<Memory> {
    Memory::new((0..SIZE).map(|at| (at % 251) as u8 + 1).collect(), kind)
}

fn flagged(flags: u16, command: u16, offset: u64, length: u32) -> RequestHeader {
    RequestHeader { flags, ..header(command, 5, offset, length) }
}

#[tokio::test]
async fn what_is_written_can_be_read() {
    for kind in Kind::ALL {
        let memory = memory(kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
        assert_eq!(peer.error_of(header(NBD_CMD_WRITE, 1, 10, 4), b"abcd").await, 0);
        assert_eq!(peer.error_of(flagged(1, NBD_CMD_WRITE, 13, 2), b"xy").await, 0);
        assert_eq!(peer.read(9, 7).await, [10, b'a', b'b', b'c', b'x', b'y', 16]);
        assert_eq!(peer.error_of(flagged(1, NBD_CMD_TRIM, 10, 1), &[]).await, 0);
        assert_eq!(peer.error_of(flagged(1 | 2, NBD_CMD_WRITE_ZEROES, 12, 1), &[]).await, 0);
        assert_eq!(peer.read(9, 7).await, [10, 0, b'b', 0, b'x', b'y', 16]);
        assert_eq!(peer.error_of(header(NBD_CMD_FLUSH, 1, 0, 0), &[]).await, 0);
        assert_eq!(
            memory.done(),
            [
                "write 10 4",
                "write 13 2 fua",
                "read 9 7",
                "trim 10 1 fua",
                "zero 12 1 Zeroing { fua: true, no_hole: true, fast: false }",
                "read 9 7",
                "flush",
            ]
        );
        use virt_bmap_nbd::Command::*;
        assert_eq!(commands(&memory.observed()), [Write, Write, Read, Trim, WriteZeroes, Read, Flush]);
        peer.request(header(NBD_CMD_DISC, 0, 0, 0), &[]).await;
        peer.end().await.unwrap();
    }
}

#[tokio::test]
async fn requests_of_all_sizes_up_to_the_largest_are_served() {
    let size = 2 * MAX_PAYLOAD;
    for kind in Kind::ALL {
        let memory = Memory::new(vec![0; size as usize], kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
        for length in [1, 4095, 65_508, 65_536, 65_537, 262_144, 262_145, MAX_PAYLOAD] {
            let offset = u64::from(size - length);
            let data: Vec<u8> = (0..length).map(|at| (at % 253) as u8).collect();
            assert_eq!(peer.error_of(header(NBD_CMD_WRITE, 1, offset, length), &data).await, 0);
            assert!(peer.read(offset, length).await == data, "{length}");
        }
    }
}

#[tokio::test]
async fn a_structured_read_is_data_or_a_hole() {
    for kind in Kind::ALL {
        let memory = memory(kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), true).await;
        let df = CommandFlags::DF.bits();
        for flags in [0, df] {
            peer.request(flagged(flags, NBD_CMD_READ, 3, 2), &[]).await;
            let data = b"\0\0\0\0\0\0\0\x03\x04\x05".to_vec();
            assert_eq!(peer.chunk().await, Chunk { kind: NBD_REPLY_TYPE_OFFSET_DATA, cookie: 5, data });
        }
        peer.request(flagged(0, NBD_CMD_TRIM, 0, 300_000), &[]).await;
        assert_eq!(peer.chunk().await.kind, NBD_REPLY_TYPE_NONE);
        for length in [512, 300_000] {
            peer.request(flagged(df, NBD_CMD_READ, 0, length), &[]).await;
            let data = [&[0; 8][..], &length.to_be_bytes()].concat();
            assert_eq!(peer.chunk().await, Chunk { kind: NBD_REPLY_TYPE_OFFSET_HOLE, cookie: 5, data });
        }
    }
}

/// Sends a structured read. Returns the assembled data of its chunks, or the error in the last
/// chunk, and the number of chunks.
async fn read_in_pieces(peer: &mut Peer, offset: u64, length: u32) -> (Result<Vec<u8>, u32>, usize) {
    peer.request(header(NBD_CMD_READ, 5, offset, length), &[]).await;
    pieces(peer, offset).await
}

async fn pieces(peer: &mut Peer, offset: u64) -> (Result<Vec<u8>, u32>, usize) {
    let mut whole = Vec::new();
    for count in 1.. {
        let (last, chunk) = peer.one_of_several_chunks().await;
        assert_eq!(chunk.cookie, 5);
        let mut data = &chunk.data[..];
        if chunk.kind == NBD_REPLY_TYPE_ERROR {
            assert!(last);
            return (Err(data.get_u32()), count);
        }
        assert_eq!(data.get_u64(), offset + whole.len() as u64);
        match chunk.kind {
            NBD_REPLY_TYPE_OFFSET_DATA => whole.extend_from_slice(data),
            NBD_REPLY_TYPE_OFFSET_HOLE => whole.resize(whole.len() + data.get_u32() as usize, 0),
            other => panic!("{other}"),
        }
        if last {
            return (Ok(whole), count);
        }
    }
    unreachable!()
}

#[tokio::test]
async fn a_large_structured_read_comes_in_pieces_that_fit_together() {
    for kind in Kind::ALL {
        let memory = memory(kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), true).await;
        peer.request(flagged(0, NBD_CMD_TRIM, 300_000, 300_000), &[]).await;
        peer.chunk().await;
        let (whole, count) = read_in_pieces(&mut peer, 3, SIZE - 3).await;
        assert!(whole.unwrap() == memory.bytes()[3..]);
        assert_eq!(count, if kind == Kind::BLOCKING { 1 } else { 4 });
        assert_eq!(memory.observed().len(), 2, "it is one request all the same");
    }
}

/// A part that has left the cache before its turn comes is read by a blocking thread.
#[tokio::test]
async fn the_rest_of_a_large_read_may_have_to_wait_or_fail() {
    let memory = memory(Kind::CACHED);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), true).await;
    memory.cache(300_000);
    let (whole, count) = read_in_pieces(&mut peer, 0, SIZE).await;
    assert!(whole.unwrap() == memory.bytes());
    assert_eq!(count, 2);
    assert_eq!(memory.done(), ["read 0 262144", "read 262144 786432"]);
    memory.break_from(300_000);
    assert_eq!(read_in_pieces(&mut peer, 0, SIZE).await, (Err(NBD_EIO), 2));
    assert_eq!(read_in_pieces(&mut peer, 0, 262_145).await.0.unwrap().len(), 262_145);
}

/// The last chunk arrives last, even if the chunk before it, a hole, waits behind other replies.
#[tokio::test]
async fn the_rest_of_a_large_read_comes_after_its_beginning() {
    let memory = memory(Kind::CACHED);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), true).await;
    peer.request(flagged(0, NBD_CMD_TRIM, 0, 262_144), &[]).await;
    peer.chunk().await;
    memory.cache(462_144);
    // The reply is a little longer than the stream holds, so a part of it is sent and the rest
    // waits.
    peer.request(header(NBD_CMD_READ, 1, 262_144, 80_000), &[]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    peer.request(header(NBD_CMD_READ, 5, 0, SIZE), &[]).await;
    let ready = async {
        while memory.done().len() < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.unwrap();
    assert_eq!(peer.chunk().await.cookie, 1);
    let (whole, count) = pieces(&mut peer, 0).await;
    assert!(whole.unwrap() == memory.bytes());
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_server_that_stops_sends_the_rest_of_a_large_read() {
    let memory = Memory::new(vec![7; 8 << 20], Kind::CACHED);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), true).await;
    peer.request(header(NBD_CMD_READ, 5, 0, 8 << 20), &[]).await;
    let (mut last, first) = peer.one_of_several_chunks().await;
    assert!(!last);
    let mut length = first.data.len() - 8;
    peer.stop = tokio::sync::oneshot::channel().0;
    while !last {
        let chunk;
        (last, chunk) = peer.one_of_several_chunks().await;
        length += chunk.data.len() - 8;
    }
    assert_eq!(length, 8 << 20);
    peer.end().await.unwrap();
}

#[tokio::test]
async fn block_status_tells_the_extents() {
    for kind in Kind::ALL {
        let memory = memory(kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), true).await;
        peer.request(flagged(0, NBD_CMD_TRIM, 1024, 1024), &[]).await;
        assert_eq!(peer.chunk().await.kind, NBD_REPLY_TYPE_NONE);
        let one = CommandFlags::REQ_ONE.bits();
        for (flags, extents) in [
            (0, &b"\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\x03\0\0\0\x01\0\0\0\0"[..]),
            (one, &b"\0\0\x02\0\0\0\0\0"[..]),
        ] {
            peer.request(flagged(flags, NBD_CMD_BLOCK_STATUS, 512, 1024 + 512 + 1), &[]).await;
            let data = [b"\0\0\0\x01", extents].concat();
            assert_eq!(peer.chunk().await, Chunk { kind: NBD_REPLY_TYPE_BLOCK_STATUS, cookie: 5, data });
        }
    }
}

#[tokio::test]
async fn bad_requests_are_refused_and_the_connection_lives_on() {
    let end = u64::from(SIZE);
    let (fua, no_hole, df, one, fast) = (1, 2, 4, 8, 16);
    let refused = [
        // The range is outside of the disk.
        (NBD_EINVAL, flagged(0, NBD_CMD_READ, end, 1)),
        (NBD_EINVAL, flagged(0, NBD_CMD_READ, end - 1, 2)),
        (NBD_EINVAL, flagged(0, NBD_CMD_READ, u64::MAX, 1)),
        (NBD_EINVAL, flagged(0, NBD_CMD_READ, u64::MAX, u32::MAX)),
        (NBD_ENOSPC, flagged(0, NBD_CMD_WRITE, end, 1)),
        (NBD_ENOSPC, flagged(0, NBD_CMD_WRITE, u64::MAX - 1, 3)),
        (NBD_ENOSPC, flagged(0, NBD_CMD_WRITE_ZEROES, end - 1, u32::MAX)),
        (NBD_ENOSPC, flagged(0, NBD_CMD_WRITE_ZEROES, u64::MAX, 1)),
        (NBD_EINVAL, flagged(0, NBD_CMD_TRIM, end - 1, 2)),
        (NBD_EINVAL, flagged(0, NBD_CMD_TRIM, u64::MAX, u32::MAX)),
        // The length is 0.
        (NBD_EINVAL, flagged(0, NBD_CMD_READ, 0, 0)),
        (NBD_EINVAL, flagged(0, NBD_CMD_WRITE, 0, 0)),
        (NBD_EINVAL, flagged(0, NBD_CMD_TRIM, 0, 0)),
        (NBD_EINVAL, flagged(0, NBD_CMD_WRITE_ZEROES, 0, 0)),
        // A reserved field is not 0.
        (NBD_EINVAL, flagged(0, NBD_CMD_FLUSH, 1, 0)),
        (NBD_EINVAL, flagged(0, NBD_CMD_FLUSH, 0, 1)),
        // The flag does not fit the command.
        (NBD_EINVAL, flagged(df, NBD_CMD_READ, 0, 1)),
        (NBD_EINVAL, flagged(no_hole, NBD_CMD_READ, 0, 1)),
        (NBD_EINVAL, flagged(no_hole, NBD_CMD_WRITE, 0, 1)),
        (NBD_EINVAL, flagged(fast, NBD_CMD_WRITE, 0, 1)),
        (NBD_EINVAL, flagged(one, NBD_CMD_TRIM, 0, 1)),
        (NBD_EINVAL, flagged(df, NBD_CMD_WRITE_ZEROES, 0, 1)),
        (NBD_EINVAL, flagged(no_hole, NBD_CMD_FLUSH, 0, 0)),
        (NBD_EINVAL, flagged(32, NBD_CMD_WRITE, 0, 1)),
        (NBD_EINVAL, flagged(0x8000, NBD_CMD_READ, 0, 1)),
        // The command is unknown or not supported.
        (NBD_EINVAL, flagged(0, NBD_CMD_CACHE, 0, 1)),
        (NBD_EINVAL, flagged(0, NBD_CMD_RESIZE, 0, 1)),
        (NBD_EINVAL, flagged(0, NBD_CMD_BLOCK_STATUS, 0, 1)),
        (NBD_EINVAL, flagged(0, 4711, 0, 0)),
        // There is no fast way to do it.
        (NBD_ENOTSUP, flagged(no_hole | fast, NBD_CMD_WRITE_ZEROES, 0, 1)),
    ];
    let served = [
        flagged(fua, NBD_CMD_FLUSH, 0, 0),
        flagged(fua, NBD_CMD_WRITE, end - 1, 1),
        flagged(fua | fast, NBD_CMD_WRITE_ZEROES, 0, SIZE),
    ];
    for kind in Kind::ALL {
        let memory = memory(kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
        for (error, header) in refused {
            let data = if header.command == NBD_CMD_WRITE { vec![0; header.length as usize] } else { vec![] };
            let answer = peer.error_of(header, &data).await;
            assert_eq!(error_name(answer), error_name(error), "{header:?}");
        }
        for header in served {
            let data = if header.command == NBD_CMD_WRITE { &b"x"[..] } else { &[] };
            assert_eq!(peer.error_of(header, data).await, 0, "{header:?}");
        }
        assert_eq!(peer.read(0, 1).await, [0]);
        assert_eq!(memory.done().len(), 4 + 1, "no other reached the export");
    }
}

#[tokio::test]
async fn structured_errors_say_what_is_wrong() {
    let mut peer = Peer::transmission(memory(Kind::FAST).exports(), Limits::default(), true).await;
    peer.request(header(NBD_CMD_READ, 5, u64::from(SIZE), 1), &[]).await;
    let data = b"\0\0\0\x16\0\x1apast the end of the export".to_vec();
    assert_eq!(peer.chunk().await, Chunk { kind: NBD_REPLY_TYPE_ERROR, cookie: 5, data });
    for (flags, command) in [(16, NBD_CMD_BLOCK_STATUS), (1 << 8, NBD_CMD_READ), (8, NBD_CMD_READ)] {
        peer.request(flagged(flags, command, 0, 1), &[]).await;
        assert_eq!(peer.chunk().await.data[..4], NBD_EINVAL.to_be_bytes());
    }
    for offset in [u64::from(SIZE), u64::MAX] {
        peer.request(header(NBD_CMD_BLOCK_STATUS, 5, offset, 1), &[]).await;
        assert_eq!(peer.chunk().await.data[..4], NBD_EINVAL.to_be_bytes());
    }
    peer.request(header(NBD_CMD_BLOCK_STATUS, 5, 0, 0), &[]).await;
    assert_eq!(peer.chunk().await.data[..4], NBD_EINVAL.to_be_bytes());
}

#[tokio::test]
async fn too_large_payloads_are_refused_and_skipped() {
    let memory = Memory::new(vec![1; 3 * MAX_PAYLOAD as usize], Kind::CACHED);
    let too_large = MAX_PAYLOAD + 1;
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
    assert_eq!(peer.error_of(header(NBD_CMD_READ, 1, 0, too_large), &[]).await, NBD_EINVAL);
    let data = vec![9; too_large as usize];
    assert_eq!(peer.error_of(header(NBD_CMD_WRITE, 1, 0, too_large), &data).await, NBD_EINVAL);
    assert_eq!(peer.read(0, 1).await, [1]);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), true).await;
    for (flags, error) in [(CommandFlags::empty(), NBD_EINVAL), (CommandFlags::DF, NBD_EOVERFLOW)] {
        peer.request(flagged(flags.bits(), NBD_CMD_READ, 0, too_large), &[]).await;
        assert_eq!(peer.chunk().await.data[..4], error.to_be_bytes());
    }
}

#[tokio::test]
async fn a_read_only_export_cannot_be_written() {
    let memory = memory(Kind::READ_ONLY);
    let before = memory.bytes();
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
    assert_eq!(peer.error_of(header(NBD_CMD_WRITE, 1, 0, 4), b"abcd").await, NBD_EPERM);
    assert_eq!(peer.error_of(header(NBD_CMD_TRIM, 1, 0, 4), &[]).await, NBD_EPERM);
    assert_eq!(peer.error_of(header(NBD_CMD_WRITE_ZEROES, 1, 0, 4), &[]).await, NBD_EPERM);
    assert_eq!(peer.error_of(flagged(1, NBD_CMD_READ, 0, 4), &[]).await, NBD_EINVAL, "FUA was not offered");
    assert_eq!(peer.read(0, 2).await, [1, 2]);
    assert_eq!(memory.bytes(), before);
    assert_eq!(memory.observed().len(), 1);
}

#[tokio::test]
async fn an_export_s_errors_reach_the_client() {
    for kind in Kind::ALL {
        let memory = memory(kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
        for (error, wanted) in [(ErrorKind::StorageFull, NBD_ENOSPC), (ErrorKind::Other, NBD_EIO)] {
            memory.fail(Some(error));
            for command in [NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
                assert_eq!(peer.error_of(header(command, 1, 0, 1), &[]).await, wanted);
            }
            assert_eq!(peer.error_of(header(NBD_CMD_WRITE, 1, 0, 1), b"x").await, wanted);
            assert_eq!(peer.error_of(header(NBD_CMD_FLUSH, 1, 0, 0), &[]).await, wanted);
        }
        memory.fail(None);
        assert_eq!(peer.read(0, 1).await, [1]);
    }
}

#[tokio::test]
async fn an_export_that_panics_costs_only_its_connection() {
    let memory = memory(Kind::BLOCKING);
    let server = Arc::new(virt_bmap_nbd::Server::new(memory.exports(), Limits::default()));
    let mut other = Peer::connect_to(&server);
    other.begin_transmission(false).await;
    let mut peer = Peer::connect_to(&server);
    peer.begin_transmission(false).await;
    memory.panic();
    peer.request(header(NBD_CMD_READ, 1, 0, 1), &[]).await;
    assert!(matches!(peer.end().await, Err(ConnectionError::Export(_))));
    assert_eq!(other.error_of(header(NBD_CMD_CACHE, 1, 0, 1), &[]).await, NBD_EINVAL, "still there");
}

#[tokio::test]
async fn a_slow_request_does_not_hold_up_the_others() {
    let memory = memory(Kind::BLOCKING);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
    memory.hold();
    peer.request(header(NBD_CMD_WRITE, 1, 0, 4), b"abcd").await;
    peer.request(header(NBD_CMD_READ, 2, 8, 1), &[]).await;
    memory.wait_for_running(2).await;
    assert_eq!(peer.error_of(header(NBD_CMD_READ, 3, u64::MAX, 1), &[]).await, NBD_EINVAL);
    memory.release();
    let mut cookies = [0; 2];
    for cookie in &mut cookies {
        let (error, of) = peer.simple_reply().await;
        assert_eq!(error, 0);
        if of == 2 {
            assert_eq!(peer.take().await, [9]);
        }
        *cookie = of;
    }
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    let observed: Vec<u64> = memory.observed().iter().map(|request| request.cookie).collect();
    assert_eq!(observed, [1, 2], "in the order of arrival");
}

#[tokio::test]
async fn so_many_requests_run_at_a_time_and_no_more() {
    let memory = memory(Kind::BLOCKING);
    let limits = Limits { requests_per_connection: 3, ..Limits::default() };
    let mut peer = Peer::transmission(memory.exports(), limits, false).await;
    memory.hold();
    for cookie in 0..10 {
        peer.request(header(NBD_CMD_TRIM, cookie, cookie * 512, 512), &[]).await;
    }
    memory.wait_for_running(3).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(memory.running.load(Ordering::SeqCst), 3);
    memory.release();
    for _ in 0..10 {
        assert_eq!(peer.simple_reply().await.0, 0);
    }
}

#[tokio::test]
async fn a_disconnect_waits_for_the_requests_before_it() {
    let memory = memory(Kind::BLOCKING);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
    memory.hold();
    peer.request(header(NBD_CMD_WRITE, 1, 0, 4), b"abcd").await;
    peer.request(header(NBD_CMD_DISC, 2, 0, 0), &[]).await;
    peer.request(header(NBD_CMD_WRITE, 3, 0, 4), b"late").await;
    memory.wait_for_running(1).await;
    memory.release();
    assert_eq!(peer.simple_reply().await, (0, 1));
    peer.end().await.unwrap();
    assert_eq!(memory.bytes()[..4], *b"abcd");
}

/// `nc` does this, and so do clients that leave without a disconnect request.
#[tokio::test]
async fn a_client_that_only_closes_its_half_gets_its_replies() {
    let mut peer = Peer::transmission(memory(Kind::BLOCKING).exports(), Limits::default(), false).await;
    peer.request(header(NBD_CMD_TRIM, 1, 0, 4), &[]).await;
    peer.stream.shutdown().await.unwrap();
    assert_eq!(peer.simple_reply().await, (0, 1));
    peer.end().await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_answers_what_is_in_flight() {
    let memory = memory(Kind::BLOCKING);
    let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
    memory.hold();
    peer.request(header(NBD_CMD_WRITE, 1, 0, 4), b"abcd").await;
    memory.wait_for_running(1).await;
    drop(peer.stop);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!peer.ended.is_finished());
    memory.release();
    peer.stop = tokio::sync::oneshot::channel().0;
    assert_eq!(peer.simple_reply().await, (0, 1));
    peer.end().await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_does_not_wait_for_ever() {
    let memory = memory(Kind::BLOCKING);
    let limits = Limits { grace: Duration::from_millis(50), ..Limits::default() };
    let mut peer = Peer::transmission(memory.exports(), limits, false).await;
    memory.hold();
    peer.request(header(NBD_CMD_READ, 1, 0, 4), &[]).await;
    memory.wait_for_running(1).await;
    drop(peer.stop);
    assert!(matches!(peer.ended.await.unwrap(), Err(ConnectionError::Grace { .. })));
    memory.release();
}

#[tokio::test]
async fn a_server_that_stops_drops_those_in_their_handshake() {
    let mut peer = Peer::connect(memory(Kind::FAST).exports(), Limits::default());
    peer.greet(ClientFlags::all()).await;
    drop(peer.stop);
    peer.ended.await.unwrap().unwrap();
}
