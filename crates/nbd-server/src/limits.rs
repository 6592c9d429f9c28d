//! Bounds on the resources of one client, and of all clients together.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds on everything that a peer controls.
///
/// In addition to the bytes in flight that are counted here, each connection has buffers of at most
/// 1.1 MiB.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time. Further clients wait in the listener's queue until one leaves.
    pub connections: usize,
    /// Time from the connection to the choice of an export.
    pub handshake: Duration,
    /// Time in which a peer that has sent half a request, or whose replies wait, must send or take
    /// at least one byte. A peer may be idle between requests for as long as it likes.
    pub stall: Duration,
    /// Requests of one connection that are carried out at a time, each on a blocking thread.
    pub requests_per_connection: usize,
    /// Bytes of payload in memory for one connection: of writes from their header to the end of
    /// the write, of reads until the reply has been sent.
    pub bytes_per_connection: u32,
    /// The same for all connections together.
    pub bytes: u32,
    /// Time that requests in flight have to come to their end when the server is stopped.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            handshake: Duration::from_secs(30),
            stall: Duration::from_secs(120),
            requests_per_connection: 64,
            bytes_per_connection: 64 << 20,
            bytes: 128 << 20,
            grace: Duration::from_secs(5),
        }
    }
}

/// What is left of a connection's share, and of the server's whole.
#[derive(Clone)]
pub(super) struct Budget {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_limit: u32,
    server: Arc<Semaphore>,
    server_limit: u32,
}

/// The permits of one request, held until its reply has been sent.
#[derive(Debug)]
pub(super) struct Permit {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
    _server: OwnedSemaphorePermit,
}

impl Budget {
    /// The budget of a new connection of a server that has `server` bytes left.
    pub(super) fn new(limits: &Limits, server: Arc<Semaphore>) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(limits.requests_per_connection.max(1))),
            bytes: Arc::new(Semaphore::new(limits.bytes_per_connection as usize)),
            bytes_limit: limits.bytes_per_connection,
            server,
            server_limit: limits.bytes,
        }
    }

    /// The permits of a request that needs `bytes` of memory, if they are available at once.
    pub(super) fn try_admit(&self, bytes: u32) -> Option<Permit> {
        let (own, whole) = self.price(bytes);
        Some(Permit {
            _request: Arc::clone(&self.requests).try_acquire_owned().ok()?,
            _bytes: Arc::clone(&self.bytes).try_acquire_many_owned(own).ok()?,
            _server: Arc::clone(&self.server).try_acquire_many_owned(whole).ok()?,
        })
    }

    /// The permits of a request that needs `bytes` of memory; waits until they are available. Never
    /// `None`, as the semaphores are never closed.
    ///
    /// There is no deadlock: a connection takes from the three in one order, waits for one request
    /// at a time, and what it holds for others is given back without its help, when they have been
    /// carried out and the peer has taken the reply (or has been dropped because it does not).
    pub(super) async fn admit(self, bytes: u32) -> Option<Permit> {
        let (own, whole) = self.price(bytes);
        Some(Permit {
            _request: self.requests.acquire_owned().await.ok()?,
            _bytes: self.bytes.acquire_many_owned(own).await.ok()?,
            _server: self.server.acquire_many_owned(whole).await.ok()?,
        })
    }

    /// A request larger than a whole limit takes all of it, or it could never go ahead.
    fn price(&self, bytes: u32) -> (u32, u32) {
        (bytes.min(self.bytes_limit), bytes.min(self.server_limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_counted_for_the_connection_and_for_the_server() {
        let limits = Limits { bytes_per_connection: 10, bytes: 15, ..Limits::default() };
        let server = Arc::new(Semaphore::new(15));
        let one = Budget::new(&limits, Arc::clone(&server));
        let other = Budget::new(&limits, server);
        let first = one.try_admit(8).unwrap();
        assert!(one.try_admit(3).is_none(), "past the connection's share");
        assert!(other.try_admit(8).is_none(), "past the server's");
        let second = other.try_admit(7).unwrap();
        drop(first);
        one.clone().admit(8).await.unwrap();
        drop(second);
    }

    #[tokio::test]
    async fn a_request_beyond_every_limit_waits_until_it_is_alone() {
        let limits = Limits { bytes_per_connection: 10, bytes: 15, ..Limits::default() };
        let budget = Budget::new(&limits, Arc::new(Semaphore::new(15)));
        let small = budget.try_admit(1).unwrap();
        assert!(budget.try_admit(1000).is_none());
        let large = tokio::spawn(budget.clone().admit(1000));
        drop(small);
        large.await.unwrap().unwrap();
    }

    #[test]
    fn requests_count_against_the_limit() {
        let limits = Limits { requests_per_connection: 2, ..Limits::default() };
        let budget = Budget::new(&limits, Arc::new(Semaphore::new(100)));
        let held = (budget.try_admit(0), budget.try_admit(0));
        assert!(held.0.is_some() && held.1.is_some() && budget.try_admit(0).is_none());
    }
}
