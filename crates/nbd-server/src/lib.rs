#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! One file for each phase of the protocol. Constants have the names of the specification.
//!
//! * `negotiation`: fixed newstyle handshake and option haggling, up to the choice of an export;
//! * `transmission`: requests and replies, many in flight, in one task for each connection;
//! * `request`: checks a request and carries it out;
//! * `reply`: how replies are encoded, batched and sent;
//! * [`protocol`]: the numbers and wire structs of both;
//! * `server` accepts connections; `service` is a server with threads of its own, for programs that
//!   are not async;
//! * `limits`: bounds on one client, and on all clients together.
//!
//! In an async program, [`Server::run`] takes a listener, and a future that stops it:
//!
//! ```
//! use std::io;
//! use std::sync::Arc;
//! use virt_bmap_nbd::{Export, Exports, Limits, Server};
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
mod error;
mod export;
mod limits;
mod negotiation;
pub mod protocol;
mod reply;
mod request;
mod server;
mod service;
mod transmission;

pub use error::ConnectionError;
pub use export::{Answered, Export, Exports, ExportsError, Extent, Zeroing, write_zeroes_slowly};
pub use limits::Limits;
pub use protocol::{Command, CommandFlags, Request, StateFlags};
pub use server::{Listener, Server};
pub use service::{Address, ListenAddress, Service, ServiceError};
