//! The async NBD server.
//!
//! A [`Server`] offers named [`Export`]s to any number of clients, over a Unix or TCP socket
//! ([`Server::run`]) or over any other byte stream ([`Server::serve`]). One file a phase of the
//! protocol:
//!
//! * `negotiation`: fixed newstyle handshake and option haggling, up to the choice of an export;
//! * `transmission`: requests and replies, many in flight, in one task for each connection;
//! * `request`: whether a request may be carried out, and how that is done;
//! * `reply`: how replies are encoded, batched and sent;
//! * [`protocol`]: the numbers and wire structs of both;
//! * `service`: a server in threads of its own, for a program that is not async;
//! * `limits`: what one peer, and all of them together, may take.
//!
//! The specification is the NetworkBlockDevice project's
//! [`doc/proto.md`](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md); constants
//! keep the names they have there.
//!
//! ```
//! use std::io;
//! use std::sync::Arc;
//! use virt_bmap::nbd::{Export, Exports, Limits, Server};
//!
//! struct Zeroes;
//! impl Export for Zeroes {
//!     fn size(&self) -> u64 {
//!         1 << 20
//!     }
//!     fn read(&self, buf: &mut [u8], _offset: u64) -> io::Result<()> {
//!         buf.fill(0);
//!         Ok(())
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let folder = tempfile::tempdir()?;
//! # let socket = folder.path().join("nbd.sock");
//! let exports = Exports::new().with("zeroes", Arc::new(Zeroes))?.with_default("zeroes")?;
//! let listener = tokio::net::UnixListener::bind(&socket)?;
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let server = tokio::spawn(Server::new(exports, Limits::default()).run(listener, async {
//!     stopped.await.ok();
//! }));
//! // … clients come and go …
//! drop(stop);
//! server.await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod eager;
mod export;
mod limits;
mod negotiation;
pub mod protocol;
mod reply;
mod request;
mod server;
mod service;
mod transmission;

pub(crate) use export::write_zeroes_slowly;
pub use export::{Answered, Export, Exports, ExportsError, Extent, Zeroing, range};
pub use limits::Limits;
pub use protocol::{Command, CommandFlags, Request, StateFlags};
pub use server::{ConnectionError, Listener, Server};
pub use service::{Address, Place, Service, ServiceError};
