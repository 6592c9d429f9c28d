//! A socket that is looked at a little longer before its task goes to sleep.
//!
//! A client with one request at a time sends the next one some ten microseconds after it has the
//! reply. Until then the server has nothing to do; but to go to sleep and to be woken on another
//! processor takes longer than that, and is most of the time of such a client. So, as QEMU's event
//! loop does (`poll-max-ns` of its `iothread`), the server keeps asking the socket for a moment
//! after a reply, and does so only while the client has been that quick before.

use super::protocol::REQUEST_HEADER;
use rustix::io::{Errno, read};
use rustix::ioctl::{Getter, Opcode, ioctl};
use std::ffi::c_int;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

/// How long a socket is looked at, and how soon a client must have sent its last request for that.
const MOMENT: Duration = Duration::from_micros(100);
/// A look at the socket takes less, unless another thread has run meanwhile on this processor.
const LOOK: Duration = Duration::from_micros(8);
/// For how many requests nothing is looked at again where another thread wants this processor:
/// perhaps it is the client.
const PAUSE: u32 = 50;
/// What is received at a time in that moment.
const PIECE: usize = 1 << 10;
/// Its name for sockets is `SIOCOUTQ`.
const HOW_MUCH_IS_LEFT: Opcode = libc::TIOCOUTQ as Opcode;
/// Most bytes of one request. A client that sends more at a time, or sends one before it has taken
/// all replies, has several requests under way: it keeps the server busy, and answers leave
/// together if the server lets them gather.
const ONE: usize = REQUEST_HEADER;

/// A connected socket, in non-blocking mode.
#[derive(Debug)]
pub struct Eager<S> {
    socket: S,
    /// When something was last sent, if nothing has been received since.
    sent: Option<Instant>,
    /// Whether the last wait was a short one.
    is_quick: bool,
    /// For how many requests more it does not matter.
    pause: u32,
}

impl<S: AsFd> Eager<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, sent: None, is_quick: false, pause: 0 }
    }

    /// Notes that so many bytes have been received.
    fn received(&mut self, length: usize) {
        if let Some(sent) = self.sent.take() {
            self.pause = self.pause.saturating_sub(1);
            self.is_quick =
                self.pause == 0 && length <= ONE && sent.elapsed() < MOMENT && self.is_all_taken();
        }
    }

    /// Whether the client has taken all that was sent, or over TCP its kernel.
    fn is_all_taken(&self) -> bool {
        // SAFETY: the call writes one `int` (SIOCOUTQ in tcp(7)): the number of sent bytes that the
        // client has not taken. For a Unix socket the kernel's own overhead is counted as well.
        #[allow(unsafe_code)]
        let left = unsafe { ioctl(&self.socket, Getter::<HOW_MUCH_IS_LEFT, c_int>::new()) };
        left.is_ok_and(|left| left == 0)
    }

    /// Asks the socket itself, until there is something or the moment is over.
    fn look(&mut self, buf: &mut ReadBuf<'_>) -> Option<io::Result<()>> {
        let sent = self.sent.filter(|_| self.is_quick)?;
        let mut piece = [0; PIECE];
        let room = buf.remaining().min(PIECE);
        let mut now = Instant::now();
        loop {
            match read(&self.socket, &mut piece[..room]) {
                Ok(length) => {
                    self.received(length);
                    buf.put_slice(&piece[..length]);
                    return Some(Ok(()));
                }
                Err(Errno::AGAIN | Errno::INTR) => {
                    std::thread::yield_now();
                    let before = std::mem::replace(&mut now, Instant::now());
                    if now - before > LOOK {
                        self.pause = PAUSE;
                    }
                    if self.pause > 0 || now - sent > MOMENT {
                        self.is_quick = false;
                        return None;
                    }
                }
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Eager<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.socket).poll_read(cx, buf) {
            this.received(buf.filled().len() - before);
            return Poll::Ready(result);
        }
        // The runtime does not see these reads, and would never let another task have its turn.
        // So they are charged to its budget here.
        let turn = ready!(coop::poll_proceed(cx));
        match this.look(buf) {
            Some(result) => {
                turn.made_progress();
                Poll::Ready(result)
            }
            None => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Eager<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.socket).poll_write(cx, buf));
        self.sent = Some(Instant::now());
        Poll::Ready(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, bufs));
        self.sent = Some(Instant::now());
        Poll::Ready(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    /// Sends `rounds` bytes, one after each that comes back, and then is gone.
    fn client(rounds: usize, pause: Duration) -> (UnixStream, thread::JoinHandle<usize>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        let peer = thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let mut theirs = theirs;
            let mut answered = 0;
            for round in 0..rounds {
                thread::sleep(pause);
                theirs.write_all(&[round as u8]).unwrap();
                let mut back = [0; 1];
                theirs.read_exact(&mut back).unwrap();
                answered += usize::from(back == [round as u8]);
            }
            answered
        });
        (ours, peer)
    }

    /// Sends everything back until the peer is gone.
    async fn echo(socket: &mut Eager<UnixStream>) {
        let mut byte = [0; 1];
        while socket.read(&mut byte).await.unwrap() == 1 {
            socket.write_all(&byte).await.unwrap();
        }
    }

    #[tokio::test]
    async fn each_byte_arrives_once_from_quick_and_slow_peers() {
        for (rounds, pause) in [(3000, Duration::ZERO), (20, Duration::from_millis(2))] {
            let (socket, peer) = client(rounds, pause);
            let mut socket = Eager::new(socket);
            echo(&mut socket).await;
            assert_eq!(peer.join().unwrap(), rounds);
        }
    }

    #[tokio::test]
    async fn a_slow_peer_is_slept_for() {
        let (socket, peer) = client(20, Duration::from_millis(2));
        let mut socket = Eager::new(socket);
        let mut looked = 0;
        let mut byte = [0; 1];
        while socket.read(&mut byte).await.unwrap() == 1 {
            socket.write_all(&byte).await.unwrap();
            looked += usize::from(socket.is_quick);
        }
        assert_eq!((looked, peer.join().unwrap()), (0, 20));
    }

    #[tokio::test]
    async fn a_quick_peer_lets_other_tasks_have_their_turn() {
        // On the one thread of this runtime.
        let (socket, peer) = client(5000, Duration::ZERO);
        let mut socket = Eager::new(socket);
        let other = async {
            let mut turns = 0;
            loop {
                tokio::task::yield_now().await;
                turns += 1;
                if peer.is_finished() {
                    return (turns, peer.join().unwrap());
                }
            }
        };
        let other = tokio::spawn(other);
        echo(&mut socket).await;
        let (turns, answered) = other.await.unwrap();
        assert_eq!(answered, 5000);
        assert!(turns > 10, "{turns}");
    }
}
