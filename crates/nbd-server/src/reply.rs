//! Replies of the transmission phase: how they are encoded, batched and sent.

use super::export::Extent;
use super::limits::Permit;
use super::protocol::*;
use bytes::BufMut;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Room that [`Replies::data`] wants in front of the data: the longer of the two headers, which is
/// that of a structured reply, a chunk header and the offset.
pub(super) const DATA_ROOM: usize = CHUNK_HEADER + 8;

/// Bytes that are gathered before more requests are answered inline. Large enough that several
/// replies to small reads leave in one system call, small enough that a client on another processor
/// has the first of a full queue, and works on them, while the others are read.
pub(super) const BATCH: usize = 32 << 10;

/// Descriptors in one block status reply; a client asks again for what is left.
const MAX_EXTENTS: usize = 8192;
/// Bytes of the longest block status reply.
pub(super) const MAX_BLOCK_STATUS: u32 = (CHUNK_HEADER + 4 + 8 * MAX_EXTENTS) as u32;

/// Segments that one system call sends.
const MAX_SLICES: usize = 16;

/// The server's answer to a request that it will not carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// One of [`error_name`]'s.
    pub(super) error: u32,
    /// The message for clients with structured replies.
    pub(super) why: &'static str,
}

/// The error value of the protocol for an export's error.
pub(super) fn error_of(error: &io::Error, flags: CommandFlags) -> u32 {
    use io::ErrorKind::*;
    match error.kind() {
        PermissionDenied | ReadOnlyFilesystem => NBD_EPERM,
        StorageFull | QuotaExceeded | FileTooLarge => NBD_ENOSPC,
        OutOfMemory => NBD_ENOMEM,
        InvalidInput => NBD_EINVAL,
        // Reserved for this one flag.
        Unsupported if flags.contains(CommandFlags::FAST_ZERO) => NBD_ENOTSUP,
        Unsupported => NBD_EINVAL,
        _ => NBD_EIO,
    }
}

/// Whether all bytes are 0.
pub(super) fn is_zero(data: &[u8]) -> bool {
    // A block at a time without early exit, so that the compiler can use wide registers.
    let (blocks, rest) = data.as_chunks::<128>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

/// Replies that have not been sent yet.
pub(super) struct Replies {
    structured: bool,
    /// Gathers replies while others are being sent.
    batch: Segment,
    /// In the order in which they go out; the first may have gone in part.
    queue: VecDeque<Segment>,
    /// Buffer of a batch that has been sent, for the next.
    spare: Vec<u8>,
    /// Unsent bytes of all batches.
    batched: usize,
    /// Whether the stream has been flushed since the last write.
    flushed: bool,
}

/// A run of bytes to send: a batch of replies, or the reply to one large read with its permit.
struct Segment {
    /// All of it is initialised, `sent..filled` is still to be sent.
    bytes: Vec<u8>,
    sent: usize,
    filled: usize,
    /// Given back when all is sent; a batch has none.
    permit: Option<Permit>,
}

impl Segment {
    /// An empty batch.
    fn batch(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0, filled: 0, permit: None }
    }

    fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..self.filled]
    }
}

impl Replies {
    pub(super) fn new(structured: bool) -> Self {
        Self {
            structured,
            batch: Segment::batch(Vec::new()),
            queue: VecDeque::new(),
            spare: Vec::new(),
            batched: 0,
            flushed: true,
        }
    }

    /// Whether everything has been sent.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.filled == 0 && self.queue.is_empty() && self.flushed
    }

    /// Whether more requests should wait until some replies have been sent.
    pub(super) fn is_full(&self) -> bool {
        self.batched >= BATCH
    }

    /// Success without payload.
    pub(super) fn done(&mut self, cookie: u64) {
        self.simple(0, cookie);
    }

    /// Failure.
    pub(super) fn refuse(&mut self, cookie: u64, refusal: Refusal) {
        if !self.structured {
            return self.simple(refusal.error, cookie);
        }
        let length = 6 + refusal.why.len();
        let mut wire = Vec::with_capacity(CHUNK_HEADER + length);
        put_chunk(&mut wire, true, NBD_REPLY_TYPE_ERROR, cookie, length as u32);
        wire.put_u32(refusal.error);
        wire.put_u16(refusal.why.len() as u16);
        wire.put_slice(refusal.why.as_bytes());
        self.append(&wire);
    }

    /// Answers a read from `read`, which fills the buffer that it is given and says whether it did.
    /// After `false` or an error nothing has been answered. Where replies are structured, `request`
    /// may be a piece of one that the client has made; `last` is whether it is the last.
    pub(super) fn data_inline(
        &mut self,
        request: &Request,
        last: bool,
        read: impl FnOnce(&mut [u8]) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let (structured, header) = (self.structured, self.data_header());
        let length = header + request.length as usize;
        let room = self.room(length);
        if !read(&mut room[header..])? {
            return Ok(false);
        }
        if structured && is_zero(&room[header..]) {
            self.hole(request, last);
        } else {
            put_data_header(&mut room[..header], structured, request, last);
            self.commit(length);
        }
        Ok(true)
    }

    /// Answers a read with `bytes`, of which the first [`DATA_ROOM`] are for the header.
    pub(super) fn data(&mut self, request: &Request, mut bytes: Vec<u8>, permit: Option<Permit>) {
        let start = DATA_ROOM - self.data_header();
        put_data_header(&mut bytes[start..DATA_ROOM], self.structured, request, true);
        self.large(bytes, start, permit);
    }

    /// Answers a read of nothing but zeroes; only to clients that take structured replies.
    pub(super) fn hole(&mut self, request: &Request, last: bool) {
        let mut wire = [0; CHUNK_HEADER + 12];
        let mut rest = wire.as_mut_slice();
        put_chunk(&mut rest, last, NBD_REPLY_TYPE_OFFSET_HOLE, request.cookie, 12);
        rest.put_u64(request.offset);
        rest.put_u32(request.length);
        self.append(&wire);
    }

    /// Answers a block status request, about the metadata context `context`.
    pub(super) fn extents(
        &mut self,
        request: &Request,
        context: u32,
        extents: &[Extent],
        permit: Option<Permit>,
    ) {
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let extents = descriptors(extents, request.length, if one { 1 } else { MAX_EXTENTS });
        let length = 4 + 8 * extents.len();
        let mut wire = Vec::with_capacity(CHUNK_HEADER + length);
        put_chunk(&mut wire, true, NBD_REPLY_TYPE_BLOCK_STATUS, request.cookie, length as u32);
        wire.put_u32(context);
        for (length, flags) in extents {
            wire.put_u32(length);
            wire.put_u32(flags.bits());
        }
        self.large(wire, 0, permit);
    }

    /// Sends what the stream takes at once; ready when it has taken something.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        // While a batch is being sent, the next can still grow.
        if self.queue.back().is_none_or(|last| last.permit.is_some()) {
            self.seal_batch();
        }
        let stream = Pin::new(stream);
        let sent = match self.queue.front() {
            None => {
                ready!(stream.poll_flush(cx))?;
                self.flushed = true;
                return Poll::Ready(Ok(()));
            }
            Some(only) if self.queue.len() == 1 || !stream.is_write_vectored() => {
                ready!(stream.poll_write(cx, only.unsent()))?
            }
            Some(_) => {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                for (slice, segment) in slices.iter_mut().zip(&self.queue) {
                    *slice = IoSlice::new(segment.unsent());
                }
                let count = self.queue.len().min(MAX_SLICES);
                ready!(stream.poll_write_vectored(cx, &slices[..count]))?
            }
        };
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(sent);
        Poll::Ready(Ok(()))
    }

    /// Queues the batch, and begins a new one.
    fn seal_batch(&mut self) {
        if self.batch.filled > 0 {
            let next = Segment::batch(std::mem::take(&mut self.spare));
            self.queue.push_back(std::mem::replace(&mut self.batch, next));
        }
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(front) = self.queue.front_mut() {
            let part = sent.min(front.unsent().len());
            front.sent += part;
            sent -= part;
            if front.permit.is_none() {
                self.batched -= part;
            }
            if front.sent < front.filled {
                return;
            }
            if let Some(Segment { bytes, permit: None, .. }) = self.queue.pop_front() {
                self.spare = bytes;
            }
        }
    }

    fn simple(&mut self, error: u32, cookie: u64) {
        let mut wire = [0; SIMPLE_REPLY_HEADER];
        put_simple_reply(&mut wire.as_mut_slice(), error, cookie);
        self.append(&wire);
    }

    /// A reply that counts against the budget goes out as it is and gives its permit back then;
    /// others join the batch.
    fn large(&mut self, bytes: Vec<u8>, start: usize, permit: Option<Permit>) {
        if permit.is_none() {
            return self.append(&bytes[start..]);
        }
        self.flushed = false;
        // What the batch holds may be of the same reply, which this ends.
        self.seal_batch();
        self.queue.push_back(Segment { sent: start, filled: bytes.len(), bytes, permit });
    }

    fn append(&mut self, wire: &[u8]) {
        self.room(wire.len()).copy_from_slice(wire);
        self.commit(wire.len());
    }

    fn data_header(&self) -> usize {
        if self.structured { DATA_ROOM } else { SIMPLE_REPLY_HEADER }
    }

    /// Room for `length` bytes at the end of the batch. Not part of it before it is
    /// [committed](Self::commit).
    fn room(&mut self, length: usize) -> &mut [u8] {
        let Segment { bytes, filled, .. } = &mut self.batch;
        let end = *filled + length;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        &mut bytes[*filled..end]
    }

    /// Adds to the batch the first `length` bytes of the [room](Self::room) given last.
    fn commit(&mut self, length: usize) {
        self.batch.filled += length;
        self.batched += length;
        self.flushed = false;
    }
}

/// Writes what comes before the data of a reply to a read.
fn put_data_header(mut wire: &mut [u8], structured: bool, request: &Request, last: bool) {
    if structured {
        put_chunk(&mut wire, last, NBD_REPLY_TYPE_OFFSET_DATA, request.cookie, request.length + 8);
        wire.put_u64(request.offset);
    } else {
        put_simple_reply(&mut wire, 0, request.cookie);
    }
}

/// At most `most` descriptors of a block status reply, for at most `length` bytes: at least one,
/// none of them empty, and neighbours differ.
fn descriptors(extents: &[Extent], length: u32, most: usize) -> Vec<(u32, StateFlags)> {
    let mut descriptors: Vec<(u32, StateFlags)> = Vec::new();
    let mut rest = length;
    for extent in extents {
        let part = u32::try_from(extent.length).unwrap_or(u32::MAX).min(rest);
        rest -= part;
        let count = descriptors.len();
        match descriptors.last_mut() {
            _ if part == 0 => {}
            Some((last, flags)) if *flags == extent.flags => *last += part,
            _ if count == most => break,
            _ => descriptors.push((part, extent.flags)),
        }
    }
    if descriptors.is_empty() {
        descriptors.push((length, StateFlags::empty()));
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Budget, Limits};
    use bytes::Buf;
    use std::future::poll_fn;
    use std::sync::Arc;
    use tokio::io::AsyncReadExt;
    use tokio::sync::Semaphore;

    fn request(command: Command, flags: CommandFlags) -> Request {
        Request { command, flags, cookie: 0x0102_0304_0506_0708, offset: 0x1000, length: 4 }
    }

    /// What goes over the wire.
    async fn sent(replies: &mut Replies) -> Vec<u8> {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        while !replies.is_empty() {
            poll_fn(|cx| replies.poll_send(&mut ours, cx)).await.unwrap();
        }
        drop(ours);
        let mut wire = Vec::new();
        theirs.read_to_end(&mut wire).await.unwrap();
        wire
    }

    #[tokio::test]
    async fn simple_replies_have_these_bytes() {
        let mut replies = Replies::new(false);
        replies.done(1);
        replies.refuse(2, Refusal { error: NBD_EPERM, why: "not sent" });
        let read = request(Command::Read, CommandFlags::empty());
        assert!(!replies.data_inline(&read, true, |_| Ok(false)).unwrap(), "answers nothing");
        assert!(
            replies
                .data_inline(&read, true, |buf| {
                    buf.copy_from_slice(b"data");
                    Ok(true)
                })
                .unwrap()
        );
        assert_eq!(
            sent(&mut replies).await,
            b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01\
              \x67\x44\x66\x98\0\0\0\x01\0\0\0\0\0\0\0\x02\
              \x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08data"
        );
    }

    #[tokio::test]
    async fn structured_replies_have_these_bytes() {
        let mut replies = Replies::new(true);
        replies.done(1);
        replies.refuse(2, Refusal { error: NBD_EINVAL, why: "no" });
        let read = request(Command::Read, CommandFlags::empty());
        assert!(
            replies
                .data_inline(&read, true, |buf| {
                    buf.copy_from_slice(b"data");
                    Ok(true)
                })
                .unwrap()
        );
        assert!(
            replies
                .data_inline(&read, true, |buf| {
                    buf.fill(0);
                    Ok(true)
                })
                .unwrap()
        );
        let status = request(Command::BlockStatus, CommandFlags::empty());
        replies.extents(
            &status,
            1,
            &[Extent { length: 9, flags: StateFlags::HOLE | StateFlags::ZERO }],
            None,
        );
        assert_eq!(
            sent(&mut replies).await,
            b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01\
              \x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x02\0\0\0\x08\0\0\0\x16\0\x02no\
              \x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\0\0\0\0\0\0\x10\0data\
              \x66\x8e\x33\xef\0\x01\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\0\x04\
              \x66\x8e\x33\xef\0\x01\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\0\0\0\x01\0\0\0\x04\0\0\0\x03"
        );
    }

    /// Cookies of simple replies, where those from 1000 have a hundred bytes of data.
    fn cookies(mut wire: &[u8]) -> Vec<u64> {
        let mut cookies = Vec::new();
        while !wire.is_empty() {
            assert_eq!(wire.get_u64(), u64::from(NBD_SIMPLE_REPLY_MAGIC) << 32);
            let cookie = wire.get_u64();
            cookies.push(cookie);
            if cookie >= 1000 {
                let data = wire.split_off(..100).unwrap();
                assert!(data.iter().all(|&byte| byte == cookie as u8), "{data:?}");
            }
        }
        cookies
    }

    #[tokio::test]
    async fn batches_and_large_reads_arrive_whole_through_a_stream_that_takes_a_few_bytes() {
        let limits = Limits { bytes_per_connection: 0, ..Limits::default() };
        let budget = Budget::new(&limits, Arc::new(Semaphore::new(1 << 20)));
        let mut replies = Replies::new(false);
        let (mut ours, mut theirs) = tokio::io::duplex(7);
        let client = tokio::spawn(async move {
            let mut wire = Vec::new();
            theirs.read_to_end(&mut wire).await.map(|_| wire)
        });
        for cookie in 0..100 {
            replies.done(cookie);
            // Each of these begins to be sent while others still wait, in part or whole.
            if cookie % 3 == 0 {
                let read = Request { cookie: 1000 + cookie, ..request(Command::Read, CommandFlags::empty()) };
                let mut bytes = vec![0; DATA_ROOM];
                bytes.extend_from_slice(&[read.cookie as u8; 100]);
                replies.data(&read, bytes, budget.clone().admit(100).await);
                poll_fn(|cx| replies.poll_send(&mut ours, cx)).await.unwrap();
            }
            if cookie % 10 == 0 {
                while !replies.is_empty() {
                    poll_fn(|cx| replies.poll_send(&mut ours, cx)).await.unwrap();
                }
                assert!(replies.batched == 0 && replies.queue.is_empty());
            }
        }
        while !replies.is_empty() {
            poll_fn(|cx| replies.poll_send(&mut ours, cx)).await.unwrap();
        }
        drop(ours);
        let mut cookies = cookies(&client.await.unwrap().unwrap());
        cookies.sort_unstable();
        let wanted: Vec<u64> = (0..100).chain((1000..1100).step_by(3)).collect();
        assert_eq!(cookies, wanted);
    }

    #[test]
    fn descriptors_stay_within_the_request() {
        let hole = StateFlags::HOLE | StateFlags::ZERO;
        let extents = |list: &[(u64, StateFlags)]| -> Vec<Extent> {
            list.iter().map(|&(length, flags)| Extent { length, flags }).collect()
        };
        let data = StateFlags::empty();
        assert_eq!(descriptors(&[], 10, 9), [(10, data)], "what is not known counts as data");
        assert_eq!(descriptors(&extents(&[(0, hole), (u64::MAX, data)]), 10, 9), [(10, data)]);
        assert_eq!(descriptors(&extents(&[(3, hole), (2, hole), (4, data)]), 10, 9), [(5, hole), (4, data)]);
        assert_eq!(descriptors(&extents(&[(3, hole), (2, hole), (4, data)]), 10, 1), [(5, hole)]);
        assert_eq!(descriptors(&extents(&[(20, hole), (4, data)]), 10, 9), [(10, hole)]);
    }

    #[test]
    fn errors_have_their_value_of_the_protocol() {
        use rustix::io::Errno;
        let value = |errno: Errno, flags| error_of(&errno.into(), flags);
        let none = CommandFlags::empty();
        for (errno, wanted) in [
            (Errno::PERM, NBD_EPERM),
            (Errno::ACCESS, NBD_EPERM),
            (Errno::ROFS, NBD_EPERM),
            (Errno::IO, NBD_EIO),
            (Errno::NOMEM, NBD_ENOMEM),
            (Errno::INVAL, NBD_EINVAL),
            (Errno::NOSPC, NBD_ENOSPC),
            (Errno::DQUOT, NBD_ENOSPC),
            (Errno::FBIG, NBD_ENOSPC),
            (Errno::OPNOTSUPP, NBD_EINVAL),
            (Errno::CONNRESET, NBD_EIO),
        ] {
            assert_eq!(value(errno, none), wanted, "{errno:?}");
        }
        assert_eq!(value(Errno::OPNOTSUPP, CommandFlags::FAST_ZERO), NBD_ENOTSUP);
    }

    #[test]
    fn one_byte_makes_a_buffer_other_than_zero() {
        for length in [0, 1, 127, 128, 129, 1000] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for at in 0..length {
                data[at] = 1;
                assert!(!is_zero(&data), "{at} of {length}");
                data[at] = 0;
            }
        }
    }
}
