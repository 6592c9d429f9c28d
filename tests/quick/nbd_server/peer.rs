//! The client's side of the protocol, message by message, so that a test can send wrong messages.

use bytes::{Buf, BufMut};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use virt_bmap_nbd::protocol::*;
use virt_bmap_nbd::{ConnectionError, Exports, Limits, Server};

/// A client of a server over a stream in memory.
pub(crate) struct Peer {
    pub(crate) stream: DuplexStream,
    /// How the connection ended, as the server reports it.
    pub(crate) ended: JoinHandle<Result<(), ConnectionError>>,
    /// Stops the server when dropped.
    pub(crate) stop: oneshot::Sender<()>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) option: u32,
    pub(crate) reply: u32,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) data: Vec<u8>,
}

/// The number of bytes that the stream in memory accepts before they are read, as in a socket.
const SOCKET_BUFFER: usize = 64 << 10;

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    wire.put_u32(text.len() as u32);
    wire.put_slice(text);
    wire
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub(crate) fn info_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut wire = string(name.as_bytes());
    wire.put_u16(infos.len() as u16);
    infos.iter().for_each(|&info| wire.put_u16(info));
    wire
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
pub(crate) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut wire = string(name.as_bytes());
    wire.put_u32(queries.len() as u32);
    queries.iter().for_each(|query| wire.put_slice(&string(query.as_bytes())));
    wire
}

pub(crate) fn header(command: u16, cookie: u64, offset: u64, length: u32) -> RequestHeader {
    RequestHeader { flags: 0, command, cookie, offset, length }
}

impl Peer {
    pub(crate) fn connect(exports: Exports, limits: Limits) -> Self {
        Self::connect_to(&Arc::new(Server::new(exports, limits)))
    }

    pub(crate) fn connect_to(server: &Arc<Server>) -> Self {
        let (stream, theirs) = tokio::io::duplex(SOCKET_BUFFER);
        let (stop, stopped) = oneshot::channel();
        let server = Arc::clone(server);
        let ended = tokio::spawn(async move {
            server
                .serve(theirs, async {
                    stopped.await.ok();
                })
                .await
        });
        Self { stream, ended, stop }
    }

    /// A client that has passed the handshake with `NBD_OPT_GO`.
    pub(crate) async fn transmission(exports: Exports, limits: Limits, structured: bool) -> Self {
        let mut peer = Self::connect(exports, limits);
        peer.begin_transmission(structured).await;
        peer
    }

    pub(crate) async fn begin_transmission(&mut self, structured: bool) {
        self.greet(ClientFlags::all()).await;
        if structured {
            self.ask(NBD_OPT_STRUCTURED_REPLY, &[]).await.unwrap();
            let contexts = self.ask(NBD_OPT_SET_META_CONTEXT, &context_data("", &[BASE_ALLOCATION])).await;
            assert_eq!(contexts.unwrap().len(), 1);
        }
        self.ask(NBD_OPT_GO, &info_data("", &[])).await.unwrap();
    }

    /// Reads the greeting of the server and sends the flags of the client.
    pub(crate) async fn greet(&mut self, flags: ClientFlags) {
        let greeting: [u8; 18] = self.take().await;
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.bits().to_be_bytes()).await;
    }

    /// Sends bytes. If the server has closed the connection, the test sees that at the end.
    pub(crate) async fn send(&mut self, wire: &[u8]) {
        self.stream.write_all(wire).await.ok();
    }

    pub(crate) async fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut wire = [0; N];
        self.stream.read_exact(&mut wire).await.expect("the server has hung up");
        wire
    }

    async fn take_vec(&mut self, length: usize) -> Vec<u8> {
        let mut wire = vec![0; length];
        self.stream.read_exact(&mut wire).await.expect("the server has hung up");
        wire
    }

    pub(crate) async fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut wire = Vec::new();
        OptionHeader { option, length: data.len() as u32 }.encode(&mut wire);
        wire.put_slice(data);
        self.send(&wire).await;
    }

    pub(crate) async fn option_reply(&mut self) -> OptionReply {
        let header: [u8; 20] = self.take().await;
        let mut header = &header[..];
        assert_eq!(header.get_u64(), NBD_REP_MAGIC);
        let (option, reply, length) = (header.get_u32(), header.get_u32(), header.get_u32());
        OptionReply { option, reply, data: self.take_vec(length as usize).await }
    }

    /// Sends an option. Returns the data of the replies before `NBD_REP_ACK`, or the type of the
    /// error reply.
    pub(crate) async fn ask(&mut self, option: u32, data: &[u8]) -> Result<Vec<Vec<u8>>, u32> {
        self.send_option(option, data).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply().await;
            assert_eq!(reply.option, option);
            match reply.reply {
                NBD_REP_ACK => return Ok(replies),
                error if error >> 31 == 1 => {
                    assert!(replies.is_empty(), "an error after an answer");
                    assert!(!reply.data.is_empty() && str::from_utf8(&reply.data).is_ok());
                    return Err(error);
                }
                _ => replies.push(reply.data),
            }
        }
    }

    pub(crate) async fn request(&mut self, header: RequestHeader, data: &[u8]) {
        let mut wire = Vec::new();
        header.encode(&mut wire);
        wire.put_slice(data);
        self.send(&wire).await;
    }

    /// Reads a simple reply and returns its error and cookie. Data that may follow are not read.
    pub(crate) async fn simple_reply(&mut self) -> (u32, u64) {
        let header: [u8; SIMPLE_REPLY_HEADER] = self.take().await;
        let mut header = &header[..];
        assert_eq!(header.get_u32(), NBD_SIMPLE_REPLY_MAGIC);
        (header.get_u32(), header.get_u64())
    }

    /// Reads a structured reply of one chunk. A simple reply is converted to a chunk with an error
    /// or without a payload.
    pub(crate) async fn chunk(&mut self) -> Chunk {
        let (last, chunk) = self.one_of_several_chunks().await;
        assert!(last);
        chunk
    }

    /// Reads a chunk. Returns it, and whether it is the last one of its reply.
    pub(crate) async fn one_of_several_chunks(&mut self) -> (bool, Chunk) {
        let magic: [u8; 4] = self.take().await;
        if u32::from_be_bytes(magic) == NBD_SIMPLE_REPLY_MAGIC {
            let rest: [u8; 12] = self.take().await;
            let mut rest = &rest[..];
            let (error, cookie) = (rest.get_u32(), rest.get_u64());
            let kind = if error == 0 { NBD_REPLY_TYPE_NONE } else { NBD_REPLY_TYPE_ERROR };
            let data = if error == 0 { vec![] } else { error.to_be_bytes().into() };
            return (true, Chunk { kind, cookie, data });
        }
        assert_eq!(u32::from_be_bytes(magic), NBD_STRUCTURED_REPLY_MAGIC);
        let rest: [u8; CHUNK_HEADER - 4] = self.take().await;
        let mut rest = &rest[..];
        let (flags, kind, cookie, length) = (rest.get_u16(), rest.get_u16(), rest.get_u64(), rest.get_u32());
        assert_eq!(flags & !NBD_REPLY_FLAG_DONE, 0);
        let data = self.take_vec(length as usize).await;
        (flags == NBD_REPLY_FLAG_DONE, Chunk { kind, cookie, data })
    }

    /// Sends a request and returns its error, or 0 if it succeeded. The data of a read are not
    /// read.
    pub(crate) async fn error_of(&mut self, header: RequestHeader, data: &[u8]) -> u32 {
        self.request(header, data).await;
        let (error, cookie) = self.simple_reply().await;
        assert_eq!(cookie, header.cookie);
        error
    }

    /// Reads from the export with simple replies.
    pub(crate) async fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.error_of(header(NBD_CMD_READ, 77, offset, length), &[]).await, 0);
        self.take_vec(length as usize).await
    }

    /// Waits until the server closes the connection, and returns how the connection ended there.
    pub(crate) async fn end(mut self) -> Result<(), ConnectionError> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "unread: {rest:x?}");
        self.ended.await.unwrap()
    }

    /// Closes the connection, and returns how it ended at the server.
    pub(crate) async fn vanish(self) -> Result<(), ConnectionError> {
        drop(self.stream);
        self.ended.await.unwrap()
    }
}
