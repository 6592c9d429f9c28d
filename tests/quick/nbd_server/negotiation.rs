//! The negotiation of options, according to the specification.

use super::memory::{Kind, Memory};
use super::peer::{Peer, context_data, info_data, string};
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use virt_bmap_nbd::protocol::*;
use virt_bmap_nbd::{ConnectionError, Exports, Limits};

const SIZE: usize = 0x1_2345;

/// Two exports. The first is the default.
fn exports() -> Exports {
    Exports::new()
        .with("disk", Memory::new(vec![1; SIZE], Kind::READ_ONLY) as _)
        .unwrap()
        .with("Tüte", Memory::new(vec![2; 512], Kind::FAST) as _)
        .unwrap()
        .with_default("disk")
        .unwrap()
}

async fn greeted() -> Peer {
    let mut peer = Peer::connect(exports(), Limits::default());
    peer.greet(ClientFlags::all()).await;
    peer
}

const READ_ONLY: TransmissionFlags =
    TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::READ_ONLY).union(TransmissionFlags::CAN_MULTI_CONN);
const WRITABLE: TransmissionFlags = TransmissionFlags::HAS_FLAGS
    .union(TransmissionFlags::SEND_FLUSH)
    .union(TransmissionFlags::SEND_FUA)
    .union(TransmissionFlags::SEND_TRIM)
    .union(TransmissionFlags::SEND_WRITE_ZEROES)
    .union(TransmissionFlags::SEND_FAST_ZERO)
    .union(TransmissionFlags::CAN_MULTI_CONN);

fn export_info(size: usize, flags: TransmissionFlags) -> Vec<u8> {
    [&[0, 0], &(size as u64).to_be_bytes()[..], &flags.bits().to_be_bytes()].concat()
}

#[tokio::test]
async fn go_tells_size_and_flags_and_begins_transmission() {
    let mut peer = greeted().await;
    let replies = peer.ask(NBD_OPT_GO, &info_data("Tüte", &[])).await.unwrap();
    assert_eq!(replies, [export_info(512, WRITABLE)]);
    assert_eq!(peer.read(0, 3).await, [2, 2, 2]);
}

#[tokio::test]
async fn info_tells_what_is_asked_for_and_haggling_goes_on() {
    let mut peer = greeted().await;
    let all = [NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, 4711, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT];
    let replies = peer.ask(NBD_OPT_INFO, &info_data("", &all)).await.unwrap();
    assert_eq!(
        replies,
        [
            export_info(SIZE, READ_ONLY),
            b"\0\x01disk".to_vec(),
            b"\0\x02bytes in memory".to_vec(),
            b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec(),
        ]
    );
    assert_eq!(peer.ask(NBD_OPT_INFO, &info_data("nobody", &all)).await, Err(NBD_REP_ERR_UNKNOWN));
    peer.ask(NBD_OPT_GO, &info_data("", &[])).await.unwrap();
    assert_eq!(peer.read(1, 2).await, [1, 1]);
}

#[tokio::test]
async fn unfragmented_reads_are_offered_with_structured_replies_only() {
    let mut peer = greeted().await;
    assert_eq!(peer.ask(NBD_OPT_STRUCTURED_REPLY, &[]).await, Ok(vec![]));
    assert_eq!(peer.ask(NBD_OPT_STRUCTURED_REPLY, &[]).await, Ok(vec![]), "twice is as good as once");
    let replies = peer.ask(NBD_OPT_GO, &info_data("disk", &[])).await.unwrap();
    assert_eq!(replies, [export_info(SIZE, READ_ONLY | TransmissionFlags::SEND_DF)]);
}

#[tokio::test]
async fn export_name_tells_size_and_flags_and_124_zeroes() {
    for (flags, zeroes) in
        [(ClientFlags::all(), 0), (ClientFlags::FIXED_NEWSTYLE, 124), (ClientFlags::empty(), 124)]
    {
        let mut peer = Peer::connect(exports(), Limits::default());
        peer.greet(flags).await;
        peer.send_option(NBD_OPT_EXPORT_NAME, b"").await;
        let mut answer = vec![0; 10 + zeroes];
        peer.stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..10], export_info(SIZE, READ_ONLY)[2..]);
        assert!(answer[10..].iter().all(|&byte| byte == 0));
        assert_eq!(peer.read(SIZE as u64 - 1, 1).await, [1], "transmission has begun");
    }
}

#[tokio::test]
async fn list_names_and_describes_all_exports() {
    let mut peer = greeted().await;
    let entry = |name: &str| [string(name.as_bytes()), b"bytes in memory".to_vec()].concat();
    assert_eq!(peer.ask(NBD_OPT_LIST, &[]).await, Ok(vec![entry("Tüte"), entry("disk")]));
    assert_eq!(peer.ask(NBD_OPT_LIST, b"x").await, Err(NBD_REP_ERR_INVALID));
}

#[tokio::test]
async fn abort_is_acknowledged() {
    let mut peer = greeted().await;
    assert_eq!(peer.ask(NBD_OPT_ABORT, b"whatever").await, Ok(vec![]));
    peer.end().await.unwrap();
}

/// The server skips the data of every option that it does not know.
#[tokio::test]
async fn options_that_are_not_for_this_server_are_refused_and_haggling_goes_on() {
    let mut peer = greeted().await;
    for option in [0, NBD_OPT_PEEK_EXPORT, NBD_OPT_STARTTLS, NBD_OPT_EXTENDED_HEADERS, 12, 0x4e42, u32::MAX] {
        for data in [&b""[..], b"IHAVEOPT", &[7; 64 << 10]] {
            assert_eq!(peer.ask(option, data).await, Err(NBD_REP_ERR_UNSUP), "{option}");
        }
    }
    assert_eq!(peer.ask(NBD_OPT_STRUCTURED_REPLY, b"x").await, Err(NBD_REP_ERR_INVALID));
    peer.ask(NBD_OPT_GO, &info_data("", &[])).await.unwrap();
}

#[tokio::test]
async fn malformed_options_are_refused_and_haggling_goes_on() {
    let mut peer = greeted().await;
    let good = info_data("disk", &[3, 1]);
    for option in [NBD_OPT_INFO, NBD_OPT_GO] {
        for end in 0..good.len() {
            assert_eq!(peer.ask(option, &good[..end]).await, Err(NBD_REP_ERR_INVALID), "cut at {end}");
        }
        assert_eq!(peer.ask(option, &[&good[..], b"x"].concat()).await, Err(NBD_REP_ERR_INVALID));
        assert_eq!(peer.ask(option, b"\xff\xff\xff\xff\0\0").await, Err(NBD_REP_ERR_TOO_BIG));
        assert_eq!(peer.ask(option, b"\0\0\0\x02\xc3\x28\0\0").await, Err(NBD_REP_ERR_INVALID), "not UTF-8");
        assert_eq!(peer.ask(option, &info_data("di\0sk", &[])).await, Err(NBD_REP_ERR_INVALID), "NUL");
        assert_eq!(peer.ask(option, &info_data(&"x".repeat(4096), &[])).await, Err(NBD_REP_ERR_UNKNOWN));
        assert_eq!(peer.ask(option, &info_data(&"x".repeat(4097), &[])).await, Err(NBD_REP_ERR_TOO_BIG));
    }
    peer.ask(NBD_OPT_GO, &good).await.unwrap();
}

#[tokio::test]
async fn metadata_contexts_are_listed() {
    let mut peer = greeted().await;
    let list = |queries: &[&str]| context_data("disk", queries);
    assert_eq!(
        peer.ask(NBD_OPT_LIST_META_CONTEXT, &list(&[])).await,
        Err(NBD_REP_ERR_INVALID),
        "before structured replies"
    );
    peer.ask(NBD_OPT_STRUCTURED_REPLY, &[]).await.unwrap();
    let found = Ok(vec![b"\0\0\0\0base:allocation".to_vec()]);
    for queries in [&[][..], &["base:"], &["base:allocation"], &["qemu:x", "base:allocation", "base:"]] {
        assert_eq!(peer.ask(NBD_OPT_LIST_META_CONTEXT, &list(queries)).await, found, "{queries:?}");
    }
    for queries in [&["base"][..], &["base:alloc"], &["qemu:"], &[""]] {
        assert_eq!(peer.ask(NBD_OPT_LIST_META_CONTEXT, &list(queries)).await, Ok(vec![]), "{queries:?}");
    }
    let unknown = context_data("nobody", &["base:allocation"]);
    assert_eq!(peer.ask(NBD_OPT_LIST_META_CONTEXT, &unknown).await, Err(NBD_REP_ERR_UNKNOWN));
    let good = list(&["base:", "base:allocation"]);
    for end in 0..good.len() {
        let cut = peer.ask(NBD_OPT_LIST_META_CONTEXT, &good[..end]).await;
        assert_eq!(cut, Err(NBD_REP_ERR_INVALID), "cut at {end}");
    }
    let long = [&good[..], b"x"].concat();
    assert_eq!(peer.ask(NBD_OPT_LIST_META_CONTEXT, &long).await, Err(NBD_REP_ERR_INVALID));
    let many = list(&["base:"; 65]);
    assert_eq!(peer.ask(NBD_OPT_LIST_META_CONTEXT, &many).await, Err(NBD_REP_ERR_TOO_BIG));
}

/// Whether block status works after these options. The last one is `NBD_OPT_GO`.
async fn block_status_after(options: &[(u32, Vec<u8>)]) -> bool {
    let mut peer = greeted().await;
    peer.ask(NBD_OPT_STRUCTURED_REPLY, &[]).await.unwrap();
    for (option, data) in options {
        peer.ask(*option, data).await.ok();
    }
    peer.request(super::peer::header(NBD_CMD_BLOCK_STATUS, 1, 0, 512), &[]).await;
    peer.chunk().await.kind == NBD_REPLY_TYPE_BLOCK_STATUS
}

#[tokio::test]
async fn block_status_wants_the_context_chosen_last_and_for_the_same_export() {
    let set = |name: &str, query: &str| (NBD_OPT_SET_META_CONTEXT, context_data(name, &[query]));
    let go = |name: &str| (NBD_OPT_GO, info_data(name, &[]));
    assert!(block_status_after(&[set("disk", "base:allocation"), go("disk")]).await);
    assert!(block_status_after(&[set("", "base:allocation"), go("disk")]).await, "two names of one export");
    assert!(!block_status_after(&[go("disk")]).await);
    assert!(!block_status_after(&[set("disk", "base:"), go("disk")]).await, "not a context");
    assert!(!block_status_after(&[set("disk", "base:allocation"), set("disk", "x:y"), go("disk")]).await);
    assert!(!block_status_after(&[set("disk", "base:allocation"), set("nobody", "x:y"), go("disk")]).await);
    assert!(!block_status_after(&[set("disk", "base:allocation"), go("Tüte")]).await);
    let none = (NBD_OPT_SET_META_CONTEXT, context_data("disk", &[]));
    assert!(!block_status_after(&[set("disk", "base:allocation"), none, go("disk")]).await);
}

#[tokio::test]
async fn without_a_default_the_empty_name_is_unknown() {
    let exports = Exports::new().with("disk", Memory::new(vec![1; 512], Kind::FAST) as Arc<_>).unwrap();
    let mut peer = Peer::connect(exports, Limits::default());
    peer.greet(ClientFlags::all()).await;
    assert_eq!(peer.ask(NBD_OPT_GO, &info_data("", &[])).await, Err(NBD_REP_ERR_UNKNOWN));
    peer.send_option(NBD_OPT_EXPORT_NAME, b"").await;
    assert!(matches!(peer.end().await, Err(ConnectionError::UnknownExport { name }) if name.is_empty()));
}
