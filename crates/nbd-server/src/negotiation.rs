//! The handshake: fixed newstyle negotiation and option haggling.
//!
//! An option that this server does not support, such as TLS or extended headers, gets the error
//! reply of the specification, and the negotiation continues. Only a peer that violates the
//! protocol, or sends too many options, is disconnected.

use super::error::ConnectionError;
use super::export::{Export, Exports};
use super::protocol::*;
use bytes::{Buf, BufMut, BytesMut};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::debug;

/// Options that a client may send before it chooses an export. `qemu-nbd --list` sends three for
/// each export.
const MAX_OPTIONS: usize = 1024;
/// Longest data of an option: room for a name and some queries of the greatest length.
const MAX_OPTION_LENGTH: u32 = 64 << 10;
/// Queries in one request for metadata contexts.
const MAX_QUERIES: u32 = 64;

/// Our identifier for the context `base:allocation`.
pub(super) const BASE_ALLOCATION_ID: u32 = 1;

/// What a client and this server have agreed on.
pub(super) struct Agreement {
    /// Canonical name of the export.
    pub(super) name: String,
    pub(super) export: Arc<dyn Export>,
    /// Whether replies are structured.
    pub(super) structured: bool,
    /// Whether the client may ask for the block status.
    pub(super) base_allocation: bool,
}

/// A byte stream, with what was received but not used yet.
pub(super) struct Peer<S> {
    pub(super) stream: S,
    pub(super) received: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, received: BytesMut::new() }
    }

    /// The next `length` bytes.
    async fn take(&mut self, length: usize) -> Result<BytesMut, ConnectionError> {
        while self.received.len() < length {
            self.received.reserve(length - self.received.len());
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(ConnectionError::Vanished);
            }
        }
        Ok(self.received.split_to(length))
    }

    async fn send(&mut self, wire: &[u8]) -> Result<(), ConnectionError> {
        self.stream.write_all(wire).await?;
        self.stream.flush().await?;
        Ok(())
    }
}

/// The refusal of an option: the reply type, and a message for people.
type Refused = (u32, &'static str);

/// The consequence of an option, apart from its replies.
enum Next {
    Haggle,
    Transmission(Agreement),
    Abort,
}

/// Transmission flags of an export.
fn transmission_flags(export: &dyn Export, structured: bool) -> TransmissionFlags {
    let mut flags = TransmissionFlags::HAS_FLAGS;
    if export.is_read_only() {
        flags |= TransmissionFlags::READ_ONLY;
    } else {
        flags |= TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO;
    }
    flags.set(TransmissionFlags::SEND_DF, structured);
    flags.set(TransmissionFlags::CAN_MULTI_CONN, export.can_multi_conn());
    flags
}

/// Performs the handshake with one client. `None` if the client ended it properly.
pub(super) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    peer: &mut Peer<S>,
    exports: &Exports,
) -> Result<Option<Agreement>, ConnectionError> {
    let mut greeting = BytesMut::with_capacity(18);
    greeting.put_u64(NBD_MAGIC);
    greeting.put_u64(NBD_OPTS_MAGIC);
    greeting.put_u16(HandshakeFlags::all().bits());
    peer.send(&greeting).await?;

    let flags = peer.take(4).await?.get_u32();
    let flags = ClientFlags::from_bits(flags).ok_or(ConnectionError::ClientFlags { flags })?;

    let mut haggling = Haggling {
        exports,
        zeroes: !flags.contains(ClientFlags::NO_ZEROES),
        structured: false,
        context: None,
    };
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; OPTION_HEADER];
        header.copy_from_slice(&peer.take(OPTION_HEADER).await?);
        let OptionHeader { option, length } =
            OptionHeader::decode(&header).map_err(|magic| ConnectionError::OptionMagic { magic })?;
        if length > MAX_OPTION_LENGTH {
            return Err(ConnectionError::OptionLength { option, length });
        }
        let data = peer.take(length as usize).await?;
        debug!(option = option_name(option), number = option, length, "option");

        let mut replies = BytesMut::new();
        let next = haggling.answer(option, &data, &mut replies)?;
        peer.send(&replies).await?;
        match next {
            Next::Haggle => {}
            Next::Transmission(agreement) => return Ok(Some(agreement)),
            Next::Abort => return Ok(None),
        }
    }
    Err(ConnectionError::TooManyOptions { limit: MAX_OPTIONS })
}

/// What has been agreed on so far.
struct Haggling<'a> {
    exports: &'a Exports,
    /// Whether the client wants the 124 zeroes.
    zeroes: bool,
    structured: bool,
    /// Canonical name of the export for which `base:allocation` was chosen.
    context: Option<String>,
}

impl Haggling<'_> {
    /// Answers one option; fails only if the specification has no error reply.
    fn answer(&mut self, option: u32, data: &[u8], replies: &mut BytesMut) -> Result<Next, ConnectionError> {
        let result = match option {
            NBD_OPT_EXPORT_NAME => return self.export_name(data, replies).map(Next::Transmission),
            NBD_OPT_ABORT => Ok(Next::Abort),
            NBD_OPT_LIST => self.list(data, replies).map(|()| Next::Haggle),
            NBD_OPT_INFO => self.info(option, data, replies).map(|_| Next::Haggle),
            NBD_OPT_GO => self.info(option, data, replies).map(Next::Transmission),
            NBD_OPT_STRUCTURED_REPLY => self.structured_reply(data).map(|()| Next::Haggle),
            NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => {
                self.meta_context(option, data, replies).map(|()| Next::Haggle)
            }
            _ => Err((NBD_REP_ERR_UNSUP, "this server does not know the option")),
        };
        Ok(match result {
            Ok(next) => {
                put_option_reply(replies, option, NBD_REP_ACK, &[]);
                next
            }
            Err((reply, why)) => {
                debug!(option = option_name(option), reply = reply_name(reply), why, "option refused");
                replies.clear();
                put_option_reply(replies, option, reply, why.as_bytes());
                Next::Haggle
            }
        })
    }

    fn agreement(&self, name: &str, export: &Arc<dyn Export>) -> Agreement {
        Agreement {
            name: name.into(),
            export: Arc::clone(export),
            structured: self.structured,
            base_allocation: self.context.as_deref() == Some(name),
        }
    }

    fn export_name(&self, data: &[u8], wire: &mut BytesMut) -> Result<Agreement, ConnectionError> {
        let unknown = || ConnectionError::UnknownExport { name: String::from_utf8_lossy(data).into_owned() };
        let (name, export) =
            str::from_utf8(data).ok().and_then(|name| self.exports.find(name)).ok_or_else(unknown)?;
        wire.put_u64(export.size());
        wire.put_u16(transmission_flags(&**export, self.structured).bits());
        if self.zeroes {
            wire.put_bytes(0, 124);
        }
        Ok(self.agreement(name, export))
    }

    fn list(&self, data: &[u8], replies: &mut BytesMut) -> Result<(), Refused> {
        if !data.is_empty() {
            return Err((NBD_REP_ERR_INVALID, "NBD_OPT_LIST has no data"));
        }
        for (name, export) in self.exports.iter() {
            let mut server = BytesMut::new();
            put_name(&mut server, name);
            server.put_slice(description(export));
            put_option_reply(replies, NBD_OPT_LIST, NBD_REP_SERVER, &server);
        }
        Ok(())
    }

    fn info(&self, option: u32, mut data: &[u8], replies: &mut BytesMut) -> Result<Agreement, Refused> {
        let name = take_name(&mut data)?;
        let count = data.try_get_u16().map_err(|_| TRUNCATED)?;
        if data.len() != 2 * usize::from(count) {
            return Err((NBD_REP_ERR_INVALID, "the option's data and its count of requests do not agree"));
        }
        let wants = |info: u16| data.chunks_exact(2).any(|wanted| wanted == info.to_be_bytes());
        let (name, export) =
            self.exports.find(name).ok_or((NBD_REP_ERR_UNKNOWN, "there is no such export"))?;

        let mut reply = |info: u16, data: &[u8]| {
            let payload = [&info.to_be_bytes(), data].concat();
            put_option_reply(replies, option, NBD_REP_INFO, &payload);
        };
        let flags = transmission_flags(&**export, self.structured);
        reply(NBD_INFO_EXPORT, &[&export.size().to_be_bytes()[..], &flags.bits().to_be_bytes()].concat());
        if wants(NBD_INFO_NAME) {
            reply(NBD_INFO_NAME, name.as_bytes());
        }
        if wants(NBD_INFO_DESCRIPTION) && !description(&**export).is_empty() {
            reply(NBD_INFO_DESCRIPTION, description(&**export));
        }
        if wants(NBD_INFO_BLOCK_SIZE) {
            let sizes = [1, PREFERRED_BLOCK, MAX_PAYLOAD];
            reply(NBD_INFO_BLOCK_SIZE, sizes.map(u32::to_be_bytes).as_flattened());
        }
        Ok(self.agreement(name, export))
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Refused> {
        if !data.is_empty() {
            return Err((NBD_REP_ERR_INVALID, "NBD_OPT_STRUCTURED_REPLY has no data"));
        }
        self.structured = true;
        Ok(())
    }

    fn meta_context(&mut self, option: u32, mut data: &[u8], replies: &mut BytesMut) -> Result<(), Refused> {
        let set = option == NBD_OPT_SET_META_CONTEXT;
        if set {
            // Each request replaces what was chosen before, even one that fails.
            self.context = None;
        }
        if !self.structured {
            return Err((NBD_REP_ERR_INVALID, "metadata contexts want structured replies first"));
        }
        let name = take_name(&mut data)?;
        let count = data.try_get_u32().map_err(|_| TRUNCATED)?;
        if count > MAX_QUERIES {
            return Err((NBD_REP_ERR_TOO_BIG, "more than 64 queries"));
        }
        let mut found = count == 0 && !set;
        for _ in 0..count {
            let query = take_string(&mut data)?;
            // `base:` lists all contexts of that name space, but chooses none.
            found |= query == BASE_ALLOCATION || (query == "base:" && !set);
        }
        if !data.is_empty() {
            return Err((NBD_REP_ERR_INVALID, "the option's data and its count of queries do not agree"));
        }
        let (name, _) = self.exports.find(name).ok_or((NBD_REP_ERR_UNKNOWN, "there is no such export"))?;
        if found {
            let mut context = BytesMut::new();
            context.put_u32(if set { BASE_ALLOCATION_ID } else { 0 });
            context.put_slice(BASE_ALLOCATION.as_bytes());
            put_option_reply(replies, option, NBD_REP_META_CONTEXT, &context);
        }
        if set && found {
            self.context = Some(name.into());
        }
        Ok(())
    }
}

const TRUNCATED: Refused = (NBD_REP_ERR_INVALID, "the option's data ends too early");

/// A string with its length before it.
fn take_string<'a>(data: &mut &'a [u8]) -> Result<&'a str, Refused> {
    let length = data.try_get_u32().map_err(|_| TRUNCATED)? as usize;
    if length > NBD_MAX_STRING {
        return Err((NBD_REP_ERR_TOO_BIG, "a string of more than 4096 bytes"));
    }
    let (string, rest) = data.split_at_checked(length).ok_or(TRUNCATED)?;
    *data = rest;
    str::from_utf8(string).map_err(|_| (NBD_REP_ERR_INVALID, "a string is not UTF-8"))
}

/// An export's name with its length before it.
fn take_name<'a>(data: &mut &'a [u8]) -> Result<&'a str, Refused> {
    let name = take_string(data)?;
    if name.contains('\0') {
        return Err((NBD_REP_ERR_INVALID, "an export's name contains NUL"));
    }
    Ok(name)
}

fn put_name(wire: &mut BytesMut, name: &str) {
    wire.put_u32(name.len() as u32);
    wire.put_slice(name.as_bytes());
}

/// The beginning of an export's description that fits in a reply.
fn description(export: &dyn Export) -> &[u8] {
    let description = export.description();
    let end =
        (0..=description.len().min(NBD_MAX_STRING)).rev().find(|&end| description.is_char_boundary(end));
    &description.as_bytes()[..end.unwrap_or(0)]
}
