//! The server: accepts connections, leads each through its phases, and stops them all.

use super::eager::Eager;
use super::error::ConnectionError;
use super::export::Exports;
use super::limits::{Budget, Limits};
use super::negotiation::{Peer, negotiate};
use super::transmission::Transmission;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, debug_span, error, warn};

/// An NBD server. Needs a tokio runtime with its time and I/O drivers enabled.
pub struct Server {
    exports: Exports,
    limits: Limits,
    connections: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Number of clients so far.
    met: AtomicU64,
}

/// A listening socket.
pub trait Listener {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next client. It can be cancelled without losing a client.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = Eager<UnixStream>;

    async fn next(&self) -> io::Result<Self::Stream> {
        Ok(Eager::new(self.accept().await?.0))
    }
}

impl Listener for TcpListener {
    type Stream = Eager<TcpStream>;

    async fn next(&self) -> io::Result<Self::Stream> {
        let stream = self.accept().await?.0;
        // The server batches replies itself; Nagle's algorithm would only delay them.
        stream.set_nodelay(true)?;
        Ok(Eager::new(stream))
    }
}

impl Server {
    /// A server of these exports.
    pub fn new(exports: Exports, limits: Limits) -> Self {
        let connections = Arc::new(Semaphore::new(limits.connections));
        let bytes = Arc::new(Semaphore::new(limits.bytes as usize));
        Self { exports, limits, connections, bytes, met: AtomicU64::new(0) }
    }

    /// Serves the clients that connect to `listener` until `stop` is ready.
    ///
    /// Then it accepts no more clients, drops those in their handshake, and answers the requests in
    /// flight of the others within [`Limits::grace`]. When this returns, every connection is
    /// closed; an export's method that takes longer may still run.
    pub async fn run(self, listener: impl Listener, stop: impl Future<Output = ()>) {
        let server = Arc::new(self);
        // All connections stop when the sender is dropped.
        let (stop_all, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(ended) = connections.join_next() => report_panic(ended),
                (stream, slot) = server.accept(&listener) => {
                    let number = server.meet();
                    let (server, mut stopped) = (Arc::clone(&server), stopped.clone());
                    let connection = async move {
                        let stop = async { while stopped.changed().await.is_ok() {} };
                        match server.serve_as(number, stream, stop).await {
                            Ok(()) => debug!("connection closed"),
                            Err(error) => warn!(error = &error as &dyn std::error::Error, "connection dropped"),
                        }
                        drop(slot);
                    };
                    connections.spawn(connection.instrument(debug_span!("nbd", connection = number)));
                }
            }
        }
        drop((listener, stop_all, stopped));
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    }

    /// Serves one client over `stream` until it disconnects, or until `stop` is ready (see
    /// [`run`](Self::run)). Does not count against [`Limits::connections`].
    ///
    /// # Errors
    /// The connection ended in violation of the protocol, or the stream failed. The server itself
    /// is not affected.
    pub async fn serve<S>(&self, stream: S, stop: impl Future<Output = ()>) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.serve_as(self.meet(), stream, stop).await
    }

    /// The number of the next connection, from 1.
    fn meet(&self) -> u64 {
        self.met.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn serve_as<S>(
        &self,
        connection: u64,
        stream: S,
        stop: impl Future<Output = ()>,
    ) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Limits { handshake, stall, grace, .. } = self.limits;
        let mut stop = pin!(stop);
        let mut peer = Peer::new(stream);
        let agreement = tokio::select! {
            agreement = timeout(handshake, negotiate(&mut peer, &self.exports)) => {
                agreement.map_err(|_| ConnectionError::HandshakeTimeout { limit: handshake })??
            }
            () = &mut stop => return Ok(()),
        };
        let Some(agreement) = agreement else {
            debug!("handshake ended by the client");
            return Ok(());
        };
        debug!(
            export = agreement.name,
            structured = agreement.structured,
            base_allocation = agreement.base_allocation,
            "transmission begins"
        );
        let budget = Budget::new(&self.limits, Arc::clone(&self.bytes));
        let mut transmission = Transmission::new(peer, agreement, budget, stall, connection);
        let until_disconnect = async {
            let ended = transmission.run().await;
            transmission.abandon().await;
            ended
        };
        tokio::select! {
            ended = until_disconnect => ended?,
            () = stop => timeout(grace, transmission.finish())
                .await
                .map_err(|_| ConnectionError::Grace { limit: grace })??,
        }
        // Lets streams with a closing message of their own send it; a peer that is gone is no
        // error.
        timeout(grace, transmission.stream().shutdown()).await.ok();
        Ok(())
    }

    /// The next client, as soon as there is room for it.
    async fn accept<L: Listener>(&self, listener: &L) -> (L::Stream, Option<OwnedSemaphorePermit>) {
        /// Delay before the next attempt if the system cannot accept a connection, for example
        /// because there are no more file descriptors. Clients wait in the listener's queue.
        const RETRY: Duration = Duration::from_millis(100);

        // Never closed, so there always is a slot.
        let slot = Arc::clone(&self.connections).acquire_owned().await.ok();
        loop {
            match listener.next().await {
                Ok(stream) => return (stream, slot),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "no connection can be accepted");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// A panic of one connection does not end the others.
fn report_panic(ended: Result<(), JoinError>) {
    if let Err(panic) = ended {
        error!(error = &panic as &dyn std::error::Error, "a connection's task failed");
    }
}
