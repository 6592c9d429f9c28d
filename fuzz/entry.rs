//! Entry points of the fuzz targets for the NBD server: the whole server over a stream in memory,
//! with a client that sends the input and nothing else. The tests call them with the corpora.
//!
//! No input may cause a panic or make the server hang, and the server's replies must be
//! well-formed.
#![allow(dead_code, unreachable_pub, reason = "each target uses one of the two entries")]

use bytes::{Buf, BufMut};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use virt_bmap_nbd::protocol::*;
use virt_bmap_nbd::{Export, Exports, Limits, Server};

/// The size of the export. A read of all of it is answered in more than one piece.
const SIZE: usize = 300_000;

struct Memory {
    bytes: Mutex<Vec<u8>>,
    is_fast: bool,
    is_read_only: bool,
}

impl Export for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    fn description(&self) -> &str {
        "bytes in memory"
    }
    fn is_read_only(&self) -> bool {
        self.is_read_only
    }
    fn is_fast(&self) -> bool {
        self.is_fast
    }
    // Indexing panics if the server lets a request past the end through.
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(!buf.is_empty());
        let bytes = self.bytes.lock().map_err(|_| io::ErrorKind::Other)?;
        buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        assert!(!data.is_empty() && !self.is_read_only);
        let mut bytes = self.bytes.lock().map_err(|_| io::ErrorKind::Other)?;
        bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Returns the bytes that the server sends to a client that sends `input`.
fn converse(input: &[u8]) -> Vec<u8> {
    let memory = |is_fast, is_read_only| -> Arc<dyn Export> {
        Arc::new(Memory { bytes: Mutex::new(vec![1; SIZE]), is_fast, is_read_only })
    };
    let exports = Exports::new()
        .with("fast", memory(true, false))
        .and_then(|exports| exports.with("slow", memory(false, false)))
        .and_then(|exports| exports.with("ro", memory(true, true)))
        .and_then(|exports| exports.with_default("fast"))
        .expect("names that differ");
    let limits = Limits { bytes: 200_000, bytes_per_connection: 100_000, ..Limits::default() };
    let server = Server::new(exports, limits);
    let (ours, theirs) = tokio::io::duplex(16 << 10);
    let (mut replies, mut requests) = tokio::io::split(theirs);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut said = Vec::new();
        let client = async {
            let send = async {
                // The server may close the connection before it has received everything.
                requests.write_all(input).await.ok();
                requests.shutdown().await.ok();
            };
            let receive = async { replies.read_to_end(&mut said).await.expect("a stream in memory") };
            tokio::join!(send, receive)
        };
        let conversation = async { tokio::join!(server.serve(ours, std::future::pending()), client) };
        let ended = tokio::time::timeout(Duration::from_secs(20), conversation).await;
        // The server may drop the client, so its result does not matter.
        let (_result, _) = ended.expect("the server hangs");
        said
    })
}

/// The input is all that a client sends, from its first byte.
pub fn negotiation(input: &[u8]) {
    let said = converse(input);
    assert_eq!(&said[..18], b"NBDMAGICIHAVEOPT\0\x03");
    let mut rest = &said[18..];
    while rest.len() >= 8 && (&rest[..8]).get_u64() == NBD_REP_MAGIC {
        assert!(rest.len() >= 20, "a reply without end");
        let length = (&rest[16..20]).get_u32() as usize;
        rest = rest.get(20 + length..).expect("a reply without end");
    }
    // What remains are the data of NBD_OPT_EXPORT_NAME and the replies to requests, if the fuzzer
    // has come so far.
}

/// The first byte of the input chooses the export and the kind of replies; the rest is what a
/// client sends after the handshake.
pub fn transmission(input: &[u8]) {
    let Some((&choice, requests)) = input.split_first() else {
        return;
    };
    let structured = choice & 1 == 1;
    let name = ["fast", "slow", "ro"][usize::from(choice / 2 % 3)];
    let mut sent = ClientFlags::all().bits().to_be_bytes().to_vec();
    let mut option = |option: u32, data: &[u8]| {
        OptionHeader { option, length: data.len() as u32 }.encode(&mut sent);
        sent.put_slice(data);
    };
    let mut name_data = (name.len() as u32).to_be_bytes().to_vec();
    name_data.put_slice(name.as_bytes());
    if structured {
        option(NBD_OPT_STRUCTURED_REPLY, &[]);
        let query = [&name_data[..], &[0, 0, 0, 1, 0, 0, 0, 15], BASE_ALLOCATION.as_bytes()].concat();
        option(NBD_OPT_SET_META_CONTEXT, &query);
    }
    option(NBD_OPT_EXPORT_NAME, name.as_bytes());
    sent.put_slice(requests);

    let said = converse(&sent);
    // Greeting, the acknowledgements with one context, size and flags.
    let handshake = 18 + if structured { 20 + (20 + 4 + 15) + 20 } else { 0 } + 10;
    if structured {
        // Only structured replies can be parsed without knowing the requests.
        check_replies(&said[handshake..]);
    }
}

/// All replies are well-formed. The last may be cut off if the server has dropped the client.
fn check_replies(mut said: &[u8]) {
    while said.len() >= CHUNK_HEADER {
        match said.get_u32() {
            NBD_SIMPLE_REPLY_MAGIC => {
                assert_eq!(said.get_u32(), 0, "an error in a simple reply");
                said.advance(8);
            }
            NBD_STRUCTURED_REPLY_MAGIC => {
                let (flags, kind) = (said.get_u16(), said.get_u16());
                assert_ne!(chunk_name(kind), "unknown");
                let is_content = matches!(kind, NBD_REPLY_TYPE_OFFSET_DATA | NBD_REPLY_TYPE_OFFSET_HOLE);
                assert!(flags == NBD_REPLY_FLAG_DONE || (flags == 0 && is_content), "{flags:#x}");
                said.advance(8);
                let length = said.get_u32() as usize;
                said = said.get(length..).unwrap_or_default();
            }
            magic => panic!("{magic:#x} where a reply should begin"),
        }
    }
}
