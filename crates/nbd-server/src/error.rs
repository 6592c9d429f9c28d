//! Why a connection is dropped.

use super::protocol::option_name;
use std::io;
use std::time::Duration;
use tokio::task::JoinError;

/// Why a connection ended otherwise than the protocol has it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The stream failed.
    #[error("the NBD client cannot be reached")]
    Io(#[from] io::Error),
    /// The stream ended in the middle of something.
    #[error("the NBD client vanished in the middle of a message")]
    Vanished,
    /// No export was chosen in [`Limits::handshake`](crate::Limits::handshake).
    #[error("the NBD client chose no export within {limit:?}")]
    HandshakeTimeout {
        /// The limit.
        limit: Duration,
    },
    /// The client set handshake flags that this server did not offer.
    #[error("the NBD client set unknown handshake flags ({flags:#x})")]
    ClientFlags {
        /// All that it set.
        flags: u32,
    },
    /// An option does not begin as it should.
    #[error("the NBD client sent {magic:#018x} where an option should begin")]
    OptionMagic {
        /// What it begins with.
        magic: u64,
    },
    /// An option has more data than any needs.
    #[error("the NBD client sent {} ({option}) with {length} bytes of data", option_name(*option))]
    OptionLength {
        /// Which option.
        option: u32,
        /// Number of bytes.
        length: u32,
    },
    /// The client haggles without end.
    #[error("the NBD client chose no export with {limit} options")]
    TooManyOptions {
        /// The limit.
        limit: usize,
    },
    /// There is no such export, and the client asked in a way that allows no error reply.
    #[error("the NBD client asked for the export {name:?}, which does not exist")]
    UnknownExport {
        /// What was asked for.
        name: String,
    },
    /// A request does not begin as it should.
    #[error("the NBD client sent {magic:#010x} where a request should begin")]
    RequestMagic {
        /// What it begins with.
        magic: u32,
    },
    /// A write announces more data than the server cares to skip.
    #[error("the NBD client announced a write of {length} bytes")]
    WriteLength {
        /// Number of bytes.
        length: u32,
    },
    /// The client neither took its replies nor went on with its request for
    /// [`Limits::stall`](crate::Limits::stall).
    #[error("the NBD client made no progress for {limit:?}")]
    Stalled {
        /// The limit.
        limit: Duration,
    },
    /// The export panicked.
    #[error("an NBD export failed while it carried out a request")]
    Export(#[source] JoinError),
    /// The server was stopped, and [`Limits::grace`](crate::Limits::grace) was too short for the
    /// requests in flight.
    #[error("NBD requests were still in flight {limit:?} after the server was stopped")]
    Grace {
        /// The limit.
        limit: Duration,
    },
}
