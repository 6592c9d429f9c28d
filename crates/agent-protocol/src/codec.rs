//! The codec of all messages: postcard, with a header where the end of a message must be known.
//!
//! A length that the peer states does not decide how much memory is allocated. The bytes of a
//! message are bounded by [`Message::MOST_BYTES`] before decoding begins. postcard compares the
//! length of a string or of bytes with what is left of the message, and serde reserves at most 1
//! MiB for a list before it has decoded its elements, each of which takes at least one byte.

use crate::VERSION;
use crate::bounds::Limit;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A type that is sent on its own.
pub trait Message: Serialize + DeserializeOwned {
    /// Its name in error messages.
    const NAME: &'static str;
    /// Longest encoding in bytes.
    const MOST_BYTES: usize;
    /// Number of kinds, if the first byte of the encoding is a kind; at most 128.
    const KINDS: Option<u8>;

    /// Compares all lengths, counts and values with what the protocol allows.
    ///
    /// # Errors
    /// The first [`Limit`] that is exceeded.
    fn check(&self) -> Result<(), Limit>;
}

/// Why bytes cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The length is above [`Message::MOST_BYTES`].
    #[error("a {message} of {length} bytes, longer than {most}")]
    TooLong {
        /// [`Message::NAME`].
        message: &'static str,
        /// The length in bytes.
        length: u64,
        /// The limit in bytes.
        most: usize,
    },
    /// A kind that this version does not know.
    #[error("a {message} of unknown kind {kind}")]
    Kind {
        /// [`Message::NAME`].
        message: &'static str,
        /// The kind.
        kind: u8,
    },
    /// The bytes do not fit the type.
    #[error("a malformed {message}")]
    Malformed {
        /// [`Message::NAME`].
        message: &'static str,
        /// The reason, from postcard.
        #[source]
        source: postcard::Error,
    },
    /// The message ends before the bytes do.
    #[error("a {message} with {bytes} bytes too many")]
    Trailing {
        /// [`Message::NAME`].
        message: &'static str,
        /// Number of bytes after the message.
        bytes: usize,
    },
    /// The message exceeds a limit.
    #[error("a {message} with {limit}")]
    Limit {
        /// [`Message::NAME`].
        message: &'static str,
        /// The limit.
        limit: Limit,
    },
    /// The area of the control disk was written by another version, or was not written.
    #[error("the {message} is of version {version}, not {VERSION}")]
    Version {
        /// [`Message::NAME`].
        message: &'static str,
        /// The version in the header.
        version: u16,
    },
}

/// Why a message cannot be sent. The peer would refuse it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The message exceeds a limit.
    #[error("a {message} with {limit}")]
    Limit {
        /// [`Message::NAME`].
        message: &'static str,
        /// The limit.
        limit: Limit,
    },
    /// The encoding is above [`Message::MOST_BYTES`].
    #[error("a {message} of {length} bytes, longer than {most}")]
    TooLong {
        /// [`Message::NAME`].
        message: &'static str,
        /// The length in bytes.
        length: usize,
        /// The limit in bytes.
        most: usize,
    },
}

/// Appends to a vector, so that no message is copied.
struct Tail<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Tail<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends the encoding of a message to `out`, unchecked: the peer checks it.
#[inline]
pub(crate) fn append<M: Message>(message: &M, out: &mut Vec<u8>) {
    let result = postcard::serialize_with_flavor(message, Tail(out));
    // Encoding fails only for a full output or a list of unknown length. Neither occurs here.
    debug_assert!(result.is_ok(), "{result:?}");
}

/// Length in bytes of the encoding of a part of a message.
pub(crate) fn encoded_length<T: Serialize>(part: &T) -> usize {
    postcard::experimental::serialized_size(part).unwrap_or(usize::MAX)
}

/// Decodes a message, which takes up all of `bytes`.
///
/// # Errors
/// [`DecodeError`] if the bytes are no such message, or the message exceeds a limit.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    let message = M::NAME;
    if bytes.len() > M::MOST_BYTES {
        return Err(DecodeError::TooLong { message, length: bytes.len() as u64, most: M::MOST_BYTES });
    }
    if let (Some(&kind), Some(kinds)) = (bytes.first(), M::KINDS)
        && kind >= kinds
    {
        return Err(DecodeError::Kind { message, kind });
    }
    let (decoded, rest) =
        postcard::take_from_bytes::<M>(bytes).map_err(|source| DecodeError::Malformed { message, source })?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing { message, bytes: rest.len() });
    }
    decoded.check().map_err(|limit| DecodeError::Limit { message, limit })?;
    Ok(decoded)
}

/// Bytes before a message in an area of the control disk: the version, two zeroes, and the length
/// of the message.
pub const AREA_HEADER: usize = 8;

/// The content of an area of the control disk: a header and the message. Beyond it the area reads
/// as zeroes.
///
/// # Errors
/// [`EncodeError`] if the message exceeds a limit, so that the peer would refuse it.
pub fn encode_area<M: Message>(message: &M) -> Result<Vec<u8>, EncodeError> {
    message.check().map_err(|limit| EncodeError::Limit { message: M::NAME, limit })?;
    // At once: a vector that grows would leave copies of secrets behind.
    let mut area = Vec::with_capacity(AREA_HEADER + encoded_length(message));
    area.resize(AREA_HEADER, 0);
    append(message, &mut area);
    let length = area.len() - AREA_HEADER;
    if length > M::MOST_BYTES {
        return Err(EncodeError::TooLong { message: M::NAME, length, most: M::MOST_BYTES });
    }
    area[..2].copy_from_slice(&VERSION.to_le_bytes());
    area[4..AREA_HEADER].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(area)
}

/// Length in bytes of header and message of an area, from its header. `area` begins with the
/// header.
///
/// # Errors
/// [`DecodeError`] if the header is missing, is of another version, or has an impossible length.
pub fn area_length<M: Message>(area: &[u8]) -> Result<usize, DecodeError> {
    let message = M::NAME;
    let Some(&[a, b, _, _, c, d, e, f]) = area.first_chunk::<AREA_HEADER>() else {
        return Err(DecodeError::Malformed { message, source: postcard::Error::DeserializeUnexpectedEnd });
    };
    let version = u16::from_le_bytes([a, b]);
    if version != VERSION {
        return Err(DecodeError::Version { message, version });
    }
    let length = u32::from_le_bytes([c, d, e, f]);
    if length as usize > M::MOST_BYTES {
        return Err(DecodeError::TooLong { message, length: length.into(), most: M::MOST_BYTES });
    }
    Ok(AREA_HEADER + length as usize)
}

/// Decodes a message in an area of the control disk.
///
/// # Errors
/// [`DecodeError`], as for [`area_length`] and [`decode`].
pub fn decode_area<M: Message>(area: &[u8]) -> Result<M, DecodeError> {
    let length = area_length::<M>(area)?;
    match area.get(AREA_HEADER..length) {
        Some(bytes) => decode(bytes),
        None => Err(DecodeError::Malformed {
            message: M::NAME,
            source: postcard::Error::DeserializeUnexpectedEnd,
        }),
    }
}
