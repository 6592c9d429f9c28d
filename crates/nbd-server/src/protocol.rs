//! Numbers and wire structs of the NBD protocol.
//!
//! Constants keep the names that the specification gives them, and for each group there is a
//! function that turns a number back into its name, for the log. All numbers on the wire are
//! big-endian.

use bitflags::bitflags;
use bytes::{Buf, BufMut};

/// First words of a server to every client: `NBDMAGIC`.
pub const NBD_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Announces newstyle negotiation, and begins each option: `IHAVEOPT`.
pub const NBD_OPTS_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Begins each reply to an option.
pub const NBD_REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins each request.
pub const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins each simple reply.
pub const NBD_SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins each chunk of a structured reply.
pub const NBD_STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Longest string of the protocol (export names, metadata contexts), in bytes.
pub const NBD_MAX_STRING: usize = 4096;
/// Longest payload of a request or reply that every peer must be ready for: 32 MiB.
pub const MAX_PAYLOAD: u32 = 1 << 25;
/// The block size that is best for clients: a page.
pub const PREFERRED_BLOCK: u32 = 4096;

/// The only metadata context that the specification defines.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Defines constants of one group, and the function that gives each its name.
macro_rules! numbers {
    ($(#[$doc:meta])* $type:ty, $name_of:ident, { $($(#[$item_doc:meta])* $name:ident = $value:expr,)* }) => {
        $($(#[$item_doc])* pub const $name: $type = $value;)*

        $(#[$doc])*
        pub fn $name_of(number: $type) -> &'static str {
            match number {
                $($name => stringify!($name),)*
                _ => "unknown",
            }
        }
    };
}

numbers! {
    /// Name of an option, for the log.
    u32, option_name, {
        /// Choose an export, with no way to report failure.
        NBD_OPT_EXPORT_NAME = 1,
        /// End the session.
        NBD_OPT_ABORT = 2,
        /// List the exports.
        NBD_OPT_LIST = 3,
        /// Withdrawn from the specification.
        NBD_OPT_PEEK_EXPORT = 4,
        /// Begin TLS.
        NBD_OPT_STARTTLS = 5,
        /// Describe an export.
        NBD_OPT_INFO = 6,
        /// Choose an export.
        NBD_OPT_GO = 7,
        /// Use structured replies.
        NBD_OPT_STRUCTURED_REPLY = 8,
        /// List metadata contexts.
        NBD_OPT_LIST_META_CONTEXT = 9,
        /// Choose metadata contexts.
        NBD_OPT_SET_META_CONTEXT = 10,
        /// Use 64-bit lengths.
        NBD_OPT_EXTENDED_HEADERS = 11,
    }
}

/// Bit 31 of a reply type marks an error.
const NBD_REP_FLAG_ERROR: u32 = 1 << 31;

numbers! {
    /// Name of an option reply's type, for the log.
    u32, reply_name, {
        /// Done.
        NBD_REP_ACK = 1,
        /// One export of a list.
        NBD_REP_SERVER = 2,
        /// One piece of information on an export.
        NBD_REP_INFO = 3,
        /// One metadata context.
        NBD_REP_META_CONTEXT = 4,
        /// Not an option of this server.
        NBD_REP_ERR_UNSUP = NBD_REP_FLAG_ERROR | 1,
        /// Forbidden.
        NBD_REP_ERR_POLICY = NBD_REP_FLAG_ERROR | 2,
        /// Malformed.
        NBD_REP_ERR_INVALID = NBD_REP_FLAG_ERROR | 3,
        /// Not on this platform.
        NBD_REP_ERR_PLATFORM = NBD_REP_FLAG_ERROR | 4,
        /// Wants TLS first.
        NBD_REP_ERR_TLS_REQD = NBD_REP_FLAG_ERROR | 5,
        /// No such export.
        NBD_REP_ERR_UNKNOWN = NBD_REP_FLAG_ERROR | 6,
        /// The server is going down.
        NBD_REP_ERR_SHUTDOWN = NBD_REP_FLAG_ERROR | 7,
        /// Wants the client to heed block sizes.
        NBD_REP_ERR_BLOCK_SIZE_REQD = NBD_REP_FLAG_ERROR | 8,
        /// More than the server cares to handle.
        NBD_REP_ERR_TOO_BIG = NBD_REP_FLAG_ERROR | 9,
        /// Wants extended headers first.
        NBD_REP_ERR_EXT_HEADER_REQD = NBD_REP_FLAG_ERROR | 10,
    }
}

numbers! {
    /// Name of a kind of information in [`NBD_REP_INFO`], for the log.
    u16, info_name, {
        /// Size and transmission flags.
        NBD_INFO_EXPORT = 0,
        /// Canonical name.
        NBD_INFO_NAME = 1,
        /// Description for people.
        NBD_INFO_DESCRIPTION = 2,
        /// Minimum and preferred block size, maximum payload.
        NBD_INFO_BLOCK_SIZE = 3,
    }
}

numbers! {
    /// Name of a request's type, for the log.
    u16, command_name, {
        /// Read.
        NBD_CMD_READ = 0,
        /// Write.
        NBD_CMD_WRITE = 1,
        /// Disconnect.
        NBD_CMD_DISC = 2,
        /// Make durable what was written.
        NBD_CMD_FLUSH = 3,
        /// Discard.
        NBD_CMD_TRIM = 4,
        /// Read ahead.
        NBD_CMD_CACHE = 5,
        /// Write zeroes.
        NBD_CMD_WRITE_ZEROES = 6,
        /// Ask for metadata.
        NBD_CMD_BLOCK_STATUS = 7,
        /// Resize.
        NBD_CMD_RESIZE = 8,
    }
}

numbers! {
    /// Name of a structured reply chunk's type, for the log.
    u16, chunk_name, {
        /// No payload.
        NBD_REPLY_TYPE_NONE = 0,
        /// Data.
        NBD_REPLY_TYPE_OFFSET_DATA = 1,
        /// Zeroes.
        NBD_REPLY_TYPE_OFFSET_HOLE = 2,
        /// Extents of one metadata context.
        NBD_REPLY_TYPE_BLOCK_STATUS = 5,
        /// An error.
        NBD_REPLY_TYPE_ERROR = (1 << 15) | 1,
        /// An error at an offset.
        NBD_REPLY_TYPE_ERROR_OFFSET = (1 << 15) | 2,
    }
}

/// Marks the last chunk of a structured reply.
pub const NBD_REPLY_FLAG_DONE: u16 = 1 << 0;

numbers! {
    /// Name of an error value, for the log.
    u32, error_name, {
        /// Not permitted.
        NBD_EPERM = 1,
        /// Input or output failed.
        NBD_EIO = 5,
        /// Out of memory.
        NBD_ENOMEM = 12,
        /// Invalid request.
        NBD_EINVAL = 22,
        /// No space left.
        NBD_ENOSPC = 28,
        /// Too large to send unfragmented.
        NBD_EOVERFLOW = 75,
        /// Cannot be done fast.
        NBD_ENOTSUP = 95,
        /// The server is going down.
        NBD_ESHUTDOWN = 108,
    }
}

bitflags! {
    /// What the server can do, said before option haggling.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Fixed newstyle: options other than `NBD_OPT_EXPORT_NAME` are answered.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The 124 zeroes after `NBD_OPT_EXPORT_NAME` can be left out.
        const NO_ZEROES = 1 << 1;
    }
}

bitflags! {
    /// What the client wants of [`HandshakeFlags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// The client knows fixed newstyle.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The client does not want the 124 zeroes.
        const NO_ZEROES = 1 << 1;
    }
}

bitflags! {
    /// What can be done with an export.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1 << 0;
        /// Writes fail.
        const READ_ONLY = 1 << 1;
        /// `NBD_CMD_FLUSH` is supported.
        const SEND_FLUSH = 1 << 2;
        /// `NBD_CMD_FLAG_FUA` is supported.
        const SEND_FUA = 1 << 3;
        /// A rotating disk.
        const ROTATIONAL = 1 << 4;
        /// `NBD_CMD_TRIM` is supported.
        const SEND_TRIM = 1 << 5;
        /// `NBD_CMD_WRITE_ZEROES` is supported.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// `NBD_CMD_FLAG_DF` is supported.
        const SEND_DF = 1 << 7;
        /// What is written on one connection is seen on all.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_CMD_RESIZE` is supported.
        const SEND_RESIZE = 1 << 9;
        /// `NBD_CMD_CACHE` is supported.
        const SEND_CACHE = 1 << 10;
        /// `NBD_CMD_FLAG_FAST_ZERO` is supported.
        const SEND_FAST_ZERO = 1 << 11;
    }
}

bitflags! {
    /// Flags of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Force unit access: durable before the reply.
        const FUA = 1 << 0;
        /// Zeroes must be allocated.
        const NO_HOLE = 1 << 1;
        /// Do not fragment the reply.
        const DF = 1 << 2;
        /// One extent will do.
        const REQ_ONE = 1 << 3;
        /// Fail if zeroing is no faster than writing.
        const FAST_ZERO = 1 << 4;
    }
}

bitflags! {
    /// State of an extent in the context `base:allocation`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct StateFlags: u32 {
        /// Not allocated.
        const HOLE = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
    }
}

/// Length of an option's header on the wire.
pub const OPTION_HEADER: usize = 16;

/// What comes before the data of each option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option, see [`option_name`].
    pub option: u32,
    /// Number of bytes that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Reads a header, or gives the wrong magic number that it begins with.
    ///
    /// # Errors
    /// The first eight bytes are not [`NBD_OPTS_MAGIC`].
    pub fn decode(wire: &[u8; OPTION_HEADER]) -> Result<Self, u64> {
        let mut wire = wire.as_slice();
        match wire.get_u64() {
            NBD_OPTS_MAGIC => Ok(Self { option: wire.get_u32(), length: wire.get_u32() }),
            magic => Err(magic),
        }
    }

    /// Writes the header.
    pub fn encode(&self, wire: &mut impl BufMut) {
        wire.put_u64(NBD_OPTS_MAGIC);
        wire.put_u32(self.option);
        wire.put_u32(self.length);
    }
}

/// Writes one reply to `option`, whole.
pub fn put_option_reply(wire: &mut impl BufMut, option: u32, reply: u32, data: &[u8]) {
    wire.put_u64(NBD_REP_MAGIC);
    wire.put_u32(option);
    wire.put_u32(reply);
    // What this server sends fits: its longest reply holds a name and a description.
    wire.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    wire.put_slice(data);
}

/// Length of a request's header on the wire.
pub const REQUEST_HEADER: usize = 28;

/// A request as it is on the wire, not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Bits of [`CommandFlags`] and others.
    pub flags: u16,
    /// Which command, see [`command_name`].
    pub command: u16,
    /// The client's name for the request, given back in the reply.
    pub cookie: u64,
    /// First byte, counted from the beginning of the export.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
}

impl RequestHeader {
    /// Reads a header, or gives the wrong magic number that it begins with.
    ///
    /// # Errors
    /// The first four bytes are not [`NBD_REQUEST_MAGIC`].
    pub fn decode(wire: &[u8; REQUEST_HEADER]) -> Result<Self, u32> {
        let mut wire = wire.as_slice();
        match wire.get_u32() {
            NBD_REQUEST_MAGIC => Ok(Self {
                flags: wire.get_u16(),
                command: wire.get_u16(),
                cookie: wire.get_u64(),
                offset: wire.get_u64(),
                length: wire.get_u32(),
            }),
            magic => Err(magic),
        }
    }

    /// Writes the header.
    pub fn encode(&self, wire: &mut impl BufMut) {
        wire.put_u32(NBD_REQUEST_MAGIC);
        wire.put_u16(self.flags);
        wire.put_u16(self.command);
        wire.put_u64(self.cookie);
        wire.put_u64(self.offset);
        wire.put_u32(self.length);
    }
}

/// What a valid request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`
    Write,
    /// `NBD_CMD_FLUSH`
    Flush,
    /// `NBD_CMD_TRIM`
    Trim,
    /// `NBD_CMD_WRITE_ZEROES`
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`
    BlockStatus,
}

impl Command {
    /// Whether it may change the export's bytes.
    pub fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// A request that has been checked: the command is known, the flags are those that go with it, and
/// `offset + length` is within the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// The client's name for the request.
    pub cookie: u64,
    /// First byte, counted from the beginning of the export; 0 in a flush.
    pub offset: u64,
    /// Number of bytes; 0 in a flush, and only there.
    pub length: u32,
}

/// Length of a simple reply's header.
pub const SIMPLE_REPLY_HEADER: usize = 16;

/// Writes the header of a simple reply. `error` is 0 or one of [`error_name`]'s.
pub fn put_simple_reply(wire: &mut impl BufMut, error: u32, cookie: u64) {
    wire.put_u32(NBD_SIMPLE_REPLY_MAGIC);
    wire.put_u32(error);
    wire.put_u64(cookie);
}

/// Length of a structured reply chunk's header.
pub const CHUNK_HEADER: usize = 20;

/// Writes the header of a structured reply chunk. `last` is whether no other follows for the same
/// request, and `length` counts the bytes after the header.
pub fn put_chunk(wire: &mut impl BufMut, last: bool, chunk: u16, cookie: u64, length: u32) {
    wire.put_u32(NBD_STRUCTURED_REPLY_MAGIC);
    wire.put_u16(if last { NBD_REPLY_FLAG_DONE } else { 0 });
    wire.put_u16(chunk);
    wire.put_u64(cookie);
    wire.put_u32(length);
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: [u8; REQUEST_HEADER] = [
        0x25, 0x60, 0x95, 0x13, 0x00, 0x11, 0x00, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15,
        0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
    ];

    #[test]
    fn a_request_has_these_bytes() {
        let request = RequestHeader {
            flags: (CommandFlags::FUA | CommandFlags::FAST_ZERO).bits(),
            command: NBD_CMD_WRITE_ZEROES,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1112_1314_1516_1718,
            length: 0x2122_2324,
        };
        let mut wire = Vec::new();
        request.encode(&mut wire);
        assert_eq!(wire, REQUEST);
        assert_eq!(RequestHeader::decode(&REQUEST), Ok(request));
    }

    #[test]
    fn a_request_with_another_magic_is_refused() {
        let mut wire = REQUEST;
        wire[3] = 0x14;
        assert_eq!(RequestHeader::decode(&wire), Err(0x2560_9514));
    }

    #[test]
    fn an_option_has_these_bytes() {
        let header = OptionHeader { option: NBD_OPT_GO, length: 0x0102 };
        let mut wire = Vec::new();
        header.encode(&mut wire);
        assert_eq!(wire, b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x01\x02");
        let mut wire: [u8; OPTION_HEADER] = wire.try_into().unwrap();
        assert_eq!(OptionHeader::decode(&wire), Ok(header));
        wire[0] = b'i';
        assert_eq!(OptionHeader::decode(&wire), Err(u64::from_be_bytes(*b"iHAVEOPT")));
    }

    #[test]
    fn replies_have_these_bytes() {
        let mut wire = Vec::new();
        put_option_reply(&mut wire, NBD_OPT_LIST, NBD_REP_ERR_INVALID, b"no");
        assert_eq!(wire, b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\x80\0\0\x03\0\0\0\x02no");
        wire.clear();
        put_simple_reply(&mut wire, NBD_ENOSPC, 0x0102_0304_0506_0708);
        assert_eq!(wire, b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(wire.len(), SIMPLE_REPLY_HEADER);
        wire.clear();
        put_chunk(&mut wire, true, NBD_REPLY_TYPE_OFFSET_DATA, 9, 24);
        assert_eq!(wire, b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x09\0\0\0\x18");
        assert_eq!(wire.len(), CHUNK_HEADER);
    }

    /// Frozen against the specification.
    #[test]
    fn magic_numbers_are_the_specification_s() {
        assert_eq!(NBD_MAGIC, 0x4e42_444d_4147_4943);
        assert_eq!(NBD_OPTS_MAGIC, 0x4948_4156_454f_5054);
        assert_eq!(NBD_REP_ERR_TOO_BIG, 0x8000_0009);
        assert_eq!(NBD_REPLY_TYPE_ERROR_OFFSET, 0x8002);
    }

    #[test]
    fn numbers_have_their_names_in_the_log() {
        assert_eq!(option_name(7), "NBD_OPT_GO");
        assert_eq!(reply_name(0x8000_0001), "NBD_REP_ERR_UNSUP");
        assert_eq!(command_name(7), "NBD_CMD_BLOCK_STATUS");
        assert_eq!(chunk_name(0x8001), "NBD_REPLY_TYPE_ERROR");
        assert_eq!(error_name(28), "NBD_ENOSPC");
        assert_eq!(info_name(3), "NBD_INFO_BLOCK_SIZE");
        assert_eq!(option_name(4711), "unknown");
    }
}
