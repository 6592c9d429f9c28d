//! Hostile clients. Each test has one misbehaviour. The server must close the connection or keep
//! its limits, and go on to serve others.

use super::memory::{Kind, Memory};
use super::peer::{Peer, header, info_data};
use bytes::BufMut;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use virt_bmap_nbd::protocol::*;
use virt_bmap_nbd::{ConnectionError, Limits, Server};

const SIZE: usize = 1 << 20;

fn memory(kind: Kind) -> Arc<Memory> {
    Memory::new(vec![1; SIZE], kind)
}

async fn greeted() -> Peer {
    let mut peer = Peer::connect(memory(Kind::FAST).exports(), Limits::default());
    peer.greet(ClientFlags::all()).await;
    peer
}

async fn in_transmission(kind: Kind, limits: Limits) -> Peer {
    Peer::transmission(memory(kind).exports(), limits, false).await
}

#[tokio::test]
async fn unknown_client_flags() {
    let mut peer = Peer::connect(memory(Kind::FAST).exports(), Limits::default());
    let _: [u8; 18] = peer.take().await;
    peer.send(&[0, 0, 0, 7]).await;
    assert!(matches!(peer.end().await, Err(ConnectionError::ClientFlags { flags: 7 })));
}

#[tokio::test]
async fn an_option_without_magic() {
    let mut peer = greeted().await;
    peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(matches!(peer.end().await, Err(ConnectionError::OptionMagic { .. })));
}

#[tokio::test]
async fn a_giant_option() {
    let mut peer = greeted().await;
    let mut wire = Vec::new();
    OptionHeader { option: NBD_OPT_GO, length: u32::MAX }.encode(&mut wire);
    peer.send(&wire).await;
    assert!(matches!(peer.end().await, Err(ConnectionError::OptionLength { length: u32::MAX, .. })));
}

#[tokio::test]
async fn options_without_end() {
    let mut peer = greeted().await;
    for _ in 0..1024 {
        peer.ask(NBD_OPT_LIST, &[]).await.unwrap();
    }
    assert!(matches!(peer.end().await, Err(ConnectionError::TooManyOptions { limit: 1024 })));
}

#[tokio::test]
async fn an_export_name_that_is_not_utf_8() {
    let mut peer = greeted().await;
    peer.send_option(NBD_OPT_EXPORT_NAME, b"disk\xff").await;
    assert!(matches!(peer.end().await, Err(ConnectionError::UnknownExport { .. })));
}

#[tokio::test]
async fn an_export_name_longer_than_any() {
    let mut peer = greeted().await;
    peer.send_option(NBD_OPT_EXPORT_NAME, &[b'x'; 64 << 10]).await;
    assert!(matches!(peer.end().await, Err(ConnectionError::UnknownExport { .. })));
}

/// The client vanishes after each byte of a handshake.
#[tokio::test]
async fn vanishing_in_the_handshake() {
    let mut handshake = ClientFlags::all().bits().to_be_bytes().to_vec();
    let go = info_data("disk", &[NBD_INFO_BLOCK_SIZE]);
    OptionHeader { option: NBD_OPT_GO, length: go.len() as u32 }.encode(&mut handshake);
    handshake.put_slice(&go);
    for end in 0..handshake.len() {
        let mut peer = Peer::connect(memory(Kind::FAST).exports(), Limits::default());
        let _: [u8; 18] = peer.take().await;
        peer.send(&handshake[..end]).await;
        assert!(matches!(peer.vanish().await, Err(ConnectionError::Vanished)), "after {end} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_of_handshake_a_second() {
    let limits = Limits { handshake: Duration::from_secs(10), ..Limits::default() };
    let mut peer = Peer::connect(memory(Kind::FAST).exports(), limits);
    peer.greet(ClientFlags::all()).await;
    for byte in b"IHAVEOPT" {
        peer.send(&[*byte]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let waited = tokio::time::Instant::now();
    assert!(matches!(peer.end().await, Err(ConnectionError::HandshakeTimeout { .. })));
    assert_eq!(waited.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn a_request_without_magic() {
    let mut peer = in_transmission(Kind::FAST, Limits::default()).await;
    peer.send(&[0x25; 28]).await;
    assert!(matches!(peer.end().await, Err(ConnectionError::RequestMagic { magic: 0x2525_2525 })));
}

#[tokio::test]
async fn a_write_of_4_gib() {
    for offset in [0, u64::MAX] {
        let mut peer = in_transmission(Kind::FAST, Limits::default()).await;
        peer.request(header(NBD_CMD_WRITE, 1, offset, u32::MAX), &[]).await;
        assert!(matches!(peer.end().await, Err(ConnectionError::WriteLength { length: u32::MAX })));
    }
}

#[tokio::test]
async fn vanishing_in_the_middle_of_a_write() {
    for kind in Kind::ALL {
        for sent in [0, 1, 99_999] {
            let memory = memory(kind);
            let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
            peer.request(header(NBD_CMD_WRITE, 1, 0, 100_000), &vec![2; sent]).await;
            assert!(matches!(peer.vanish().await, Err(ConnectionError::Vanished)));
            assert!(memory.observed().is_empty() && memory.done().is_empty(), "a write that never was");
        }
    }
}

#[tokio::test]
async fn vanishing_in_the_middle_of_a_request() {
    let mut peer = in_transmission(Kind::FAST, Limits::default()).await;
    peer.send(&NBD_REQUEST_MAGIC.to_be_bytes()).await;
    assert!(matches!(peer.vanish().await, Err(ConnectionError::Vanished)));
}

#[tokio::test]
async fn vanishing_in_the_middle_of_a_skipped_write() {
    let mut peer = in_transmission(Kind::READ_ONLY, Limits::default()).await;
    peer.request(header(NBD_CMD_WRITE, 1, 0, 100), &[2; 99]).await;
    assert!(matches!(peer.vanish().await, Err(ConnectionError::Vanished)));
}

#[tokio::test]
async fn vanishing_in_the_middle_of_reads() {
    for kind in Kind::ALL {
        let memory = memory(kind);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
        for cookie in 0..20 {
            peer.request(header(NBD_CMD_READ, cookie, 0, 100_000), &[]).await;
        }
        let _: [u8; 7] = peer.take().await;
        assert!(matches!(peer.vanish().await, Err(ConnectionError::Io(_))));
        memory.wait_for_running(0).await;
    }
}

/// When a client vanishes, requests that no thread has begun are dropped. The server waits for the
/// others.
#[test]
fn vanishing_with_writes_in_flight() {
    let one_thread =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    one_thread.block_on(async {
        let memory = memory(Kind::BLOCKING);
        let mut peer = Peer::transmission(memory.exports(), Limits::default(), false).await;
        memory.hold();
        peer.request(header(NBD_CMD_WRITE, 1, 0, 4), b"abcd").await;
        peer.request(header(NBD_CMD_WRITE, 2, 0, 4), b"late").await;
        peer.send(&[0x25]).await;
        memory.wait_for_running(1).await;
        while memory.observed().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(peer.stream);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!peer.ended.is_finished(), "waits for what it has begun");
        memory.release();
        assert!(matches!(peer.ended.await.unwrap(), Err(ConnectionError::Vanished)));
        assert_eq!(memory.done(), ["write 0 4"]);
        assert_eq!(memory.bytes()[..4], *b"abcd");
    });
}

/// Sends reads for as long as the server accepts them, and never reads a reply. Returns how many
/// bytes the export has read for this client.
async fn flood(kind: Kind, limits: Limits, length: u32) -> (Peer, u64) {
    let memory = memory(kind);
    let mut peer = Peer::transmission(memory.exports(), limits, false).await;
    let mut wire = Vec::new();
    header(NBD_CMD_READ, 1, 0, length).encode(&mut wire);
    let wire = wire.repeat(1000);
    while timeout(Duration::from_millis(200), peer.stream.write_all(&wire)).await.is_ok() {}
    // Reads that have begun end, then nothing happens.
    tokio::time::sleep(Duration::from_millis(200)).await;
    (peer, memory.done().len() as u64 * u64::from(length))
}

#[tokio::test]
async fn never_taking_replies() {
    let limits = Limits { bytes_per_connection: 300_000, ..Limits::default() };
    // Two things are not counted: the buffer of the stream and, inline, two batches.
    let socket = 64 << 10;
    let (_peer, read) = flood(Kind::BLOCKING, limits.clone(), 5000).await;
    assert!((100_000..=300_000 + socket).contains(&read), "{read}");
    let (_peer, read) = flood(Kind::CACHED, limits.clone(), 5000).await;
    assert!((100_000..=(512 << 10) + 10_000 + socket).contains(&read), "{read}");
    let (_peer, read) = flood(Kind::BLOCKING, limits, 600_000).await;
    assert!((600_000..=2 * 600_000).contains(&read), "one at a time, {read}");
}

#[tokio::test(start_paused = true)]
async fn never_taking_replies_for_too_long() {
    let limits = Limits { stall: Duration::from_secs(60), ..Limits::default() };
    let (peer, _) = flood(Kind::CACHED, limits, 5000).await;
    assert!(matches!(peer.ended.await.unwrap(), Err(ConnectionError::Stalled { .. })));
}

#[tokio::test(start_paused = true)]
async fn never_sending_what_was_announced() {
    let limits = Limits { stall: Duration::from_secs(60), ..Limits::default() };
    let half_a_header = &NBD_REQUEST_MAGIC.to_be_bytes()[..];
    let mut write = Vec::new();
    header(NBD_CMD_WRITE, 1, 0, 100).encode(&mut write);
    let mut bad_write = Vec::new();
    header(NBD_CMD_WRITE, 1, u64::MAX, 100).encode(&mut bad_write);
    for wire in [half_a_header, &write, &bad_write] {
        let mut peer = in_transmission(Kind::CACHED, limits.clone()).await;
        peer.send(wire).await;
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert!(!peer.ended.is_finished());
        assert!(matches!(peer.end().await, Err(ConnectionError::Stalled { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn idle_clients_may_stay() {
    let mut peer = in_transmission(Kind::FAST, Limits::default()).await;
    tokio::time::sleep(Duration::from_secs(1_000_000)).await;
    assert_eq!(peer.read(0, 1).await, [1]);
}

/// Clients in the middle of a write take all the bytes of the limit. They do not block the server
/// for longer than [`Limits::stall`].
#[tokio::test(start_paused = true)]
async fn holding_all_the_bytes_there_are() {
    let limits = Limits { bytes: 1000, bytes_per_connection: 500, ..Limits::default() };
    let server = Arc::new(Server::new(memory(Kind::BLOCKING).exports(), limits));
    let mut hostile = Vec::new();
    for _ in 0..2 {
        let mut peer = Peer::connect_to(&server);
        peer.begin_transmission(false).await;
        peer.request(header(NBD_CMD_WRITE, 1, 0, 500), &[1; 499]).await;
        hostile.push(peer);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut peer = Peer::connect_to(&server);
    peer.begin_transmission(false).await;
    peer.request(header(NBD_CMD_READ, 1, 0, 10), &[]).await;
    let reply = timeout(Duration::from_secs(10), peer.simple_reply()).await;
    assert!(reply.is_err(), "there is no room for it yet");
    let reply = timeout(Duration::from_secs(120), peer.simple_reply()).await;
    assert_eq!(reply.unwrap(), (0, 1));
    for peer in hostile {
        assert!(matches!(peer.ended.await.unwrap(), Err(ConnectionError::Stalled { .. })));
    }
}

/// Many clients have more requests in flight than the limit allows. They must not block each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wanting_more_than_there_is_all_at_once() {
    let limits = Limits { bytes: 20_000, bytes_per_connection: 15_000, ..Limits::default() };
    let server = Arc::new(Server::new(memory(Kind::BLOCKING).exports(), limits));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let server = Arc::clone(&server);
        clients.spawn(async move {
            let mut peer = Peer::connect_to(&server);
            peer.begin_transmission(false).await;
            for _ in 0..20 {
                for cookie in 0..3 {
                    let length = [30_000, 9_000, 1_000][cookie as usize];
                    peer.request(header(NBD_CMD_WRITE, cookie, 0, length), &vec![1; length as usize]).await;
                }
                for _ in 0..3 {
                    assert_eq!(peer.simple_reply().await.0, 0);
                }
            }
        });
    }
    while let Some(client) = timeout(Duration::from_secs(60), clients.join_next()).await.unwrap() {
        client.unwrap();
    }
}

async fn greeting(stream: &mut UnixStream) -> std::io::Result<[u8; 18]> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.map(|_| greeting)
}

#[tokio::test]
async fn too_many_connections() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let limits = Limits { connections: 2, ..Limits::default() };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::new(memory(Kind::FAST).exports(), limits);
    let server = tokio::spawn(server.run(listener, async {
        stopped.await.ok();
    }));
    let mut first = UnixStream::connect(&socket).await.unwrap();
    let mut second = UnixStream::connect(&socket).await.unwrap();
    greeting(&mut first).await.unwrap();
    greeting(&mut second).await.unwrap();
    let mut third = UnixStream::connect(&socket).await.unwrap();
    let early = timeout(Duration::from_millis(100), greeting(&mut third)).await;
    assert!(early.is_err(), "there is no room for a third");
    drop(first);
    greeting(&mut third).await.unwrap();

    drop(stop);
    timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    assert!(greeting(&mut second).await.is_err(), "all have been dropped");
    assert!(UnixStream::connect(&socket).await.is_err(), "nobody listens");
}
