//! The transmission phase: requests in, replies out.
//!
//! One task owns the connection and all of its state; it waits for the next [`Event`] and then
//! handles every request that has been received. What an export answers without waiting is
//! answered right there, and the replies of one round leave together, so that a read of something
//! in memory costs one system call to receive it, the export's own, and one to send the reply. All
//! else goes to threads that may block, and comes back in the order in which it is done.

use super::export::{Export, Extent, Zeroing};
use super::limits::{Budget, Permit};
use super::negotiation::{Agreement, BASE_ALLOCATION_ID, Peer};
use super::protocol::*;
use super::reply::{DATA_ROOM, MAX_BLOCK_STATUS, Refusal, Replies, error_of, is_zero};
use super::server::ConnectionError;
use bytes::{Buf, BufMut, BytesMut};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tracing::{debug, trace, warn};

/// What is received at a time, beside the payload of large writes.
const RECEIVE_BUFFER: usize = 64 << 10;
/// Longest read that is answered inline: copying more would hold up the task's thread.
const MAX_INLINE: u32 = 256 << 10;
/// Longest payload of a refused write that is skipped; a longer one ends the connection.
const MAX_SKIP: u32 = 2 * MAX_PAYLOAD;

/// A connection in the transmission phase.
pub(super) struct Transmission<S> {
    stream: S,
    received: BytesMut,
    input: Input,
    replies: Replies,
    /// Requests that are carried out on blocking threads.
    running: JoinSet<Finished>,
    budget: Budget,
    export: Arc<dyn Export>,
    /// What follows is the export's and the agreement's, and does not change.
    size: u64,
    read_only: bool,
    fast: bool,
    structured: bool,
    base_allocation: bool,
    /// Whether the export has failed a request of this connection.
    has_failed: bool,
    stall: Stall,
}

/// What the next bytes from the peer are, or what must be done before they can be looked at.
enum Input {
    /// A request's header.
    Header,
    /// This request waits for room.
    Admission { request: Request, permit: Pin<Box<dyn Future<Output = Option<Permit>> + Send>> },
    /// The payload of a write.
    Payload { request: Request, data: Vec<u8>, permit: Permit },
    /// The payload of a write that is refused.
    Skip { cookie: u64, rest: usize, refusal: Refusal },
    /// Nothing more is expected.
    Closed,
}

/// What can happen to a connection.
enum Event {
    /// A blocking thread is done.
    Finished(Finished),
    /// The peer has taken some bytes.
    Sent,
    /// The request that waited for room has it.
    Admitted(Request, Permit),
    /// The peer has sent so many bytes; none when it sends no more.
    Received(usize),
}

/// A request that has been carried out.
struct Finished {
    request: Request,
    result: io::Result<Outcome>,
    permit: Permit,
}

/// What carrying out a request has given.
enum Outcome {
    Done,
    /// What was read, after [`DATA_ROOM`] bytes for the header.
    Data(Vec<u8>),
    /// It was all zeroes.
    Hole,
    Extents(Vec<Extent>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transmission<S> {
    pub(super) fn new(peer: Peer<S>, agreement: Agreement, budget: Budget, stall: Duration) -> Self {
        let Agreement { export, structured, base_allocation, .. } = agreement;
        Self {
            stream: peer.stream,
            received: peer.received,
            input: Input::Header,
            replies: Replies::new(structured),
            running: JoinSet::new(),
            budget,
            size: export.size(),
            read_only: export.is_read_only(),
            fast: export.is_fast(),
            export,
            structured,
            base_allocation,
            has_failed: false,
            stall: Stall::new(stall),
        }
    }

    /// Serves until the peer disconnects. May be dropped while it waits; the connection then goes
    /// on with the next call of this or of [`finish`](Self::finish).
    pub(super) async fn run(&mut self) -> Result<(), ConnectionError> {
        loop {
            while self.step()? {}
            if matches!(self.input, Input::Closed) && self.running.is_empty() && self.replies.is_empty() {
                return Ok(());
            }
            match poll_fn(|cx| self.poll_event(cx)).await? {
                Event::Finished(Finished { request, result, permit }) => {
                    self.reply(&request, result, Some(permit));
                }
                Event::Sent => {}
                Event::Admitted(request, permit) => {
                    self.input = Input::Header;
                    self.admitted(request, permit);
                }
                Event::Received(0) => self.end_of_stream()?,
                Event::Received(_) => {}
            }
        }
    }

    /// Takes no more requests, and ends when those in flight have been answered.
    pub(super) async fn finish(&mut self) -> Result<(), ConnectionError> {
        self.input = Input::Closed;
        self.run().await
    }

    /// Drops the requests that no thread has begun, and waits for the others.
    pub(super) async fn abandon(&mut self) {
        self.running.shutdown().await;
    }

    /// The stream, to be closed.
    pub(super) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Waits for something to happen. What makes room comes before what needs it.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, ConnectionError>> {
        if !self.running.is_empty()
            && let Poll::Ready(Some(joined)) = self.running.poll_join_next(cx)
        {
            return Poll::Ready(joined.map(Event::Finished).map_err(ConnectionError::Export));
        }
        if !self.replies.is_empty()
            && let Poll::Ready(sent) = self.replies.poll_send(&mut self.stream, cx)
        {
            self.stall.progress();
            return Poll::Ready(sent.map(|()| Event::Sent).map_err(ConnectionError::from));
        }
        if let Input::Admission { request, permit } = &mut self.input
            && let Poll::Ready(Some(permit)) = permit.as_mut().poll(cx)
        {
            return Poll::Ready(Ok(Event::Admitted(*request, permit)));
        }
        if self.wants_input()
            && let Poll::Ready(received) = self.poll_receive(cx)
        {
            self.stall.progress();
            return Poll::Ready(received.map(Event::Received).map_err(ConnectionError::from));
        }
        let peer_owes = match self.input {
            Input::Payload { .. } | Input::Skip { .. } => true,
            Input::Header => !self.received.is_empty(),
            Input::Admission { .. } | Input::Closed => false,
        };
        self.stall.poll(peer_owes || !self.replies.is_empty(), cx).map(Err)
    }

    /// Whether bytes of the peer can be dealt with now.
    fn wants_input(&self) -> bool {
        !matches!(self.input, Input::Admission { .. } | Input::Closed) && !self.replies.is_full()
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.input {
            // A large payload goes where it will stay.
            Input::Payload { request, data, .. } => {
                let rest = request.length as usize - data.len();
                pin!(self.stream.read_buf(&mut data.limit(rest))).poll(cx)
            }
            _ => {
                self.received.reserve(RECEIVE_BUFFER - self.received.len().min(RECEIVE_BUFFER - 1));
                pin!(self.stream.read_buf(&mut self.received)).poll(cx)
            }
        }
    }

    /// Deals with what has been received, one message at a time; false when that has to wait.
    fn step(&mut self) -> Result<bool, ConnectionError> {
        if !self.wants_input() {
            return Ok(false);
        }
        match &mut self.input {
            Input::Header => {
                let Some((header, _)) = self.received.split_first_chunk() else {
                    return Ok(false);
                };
                let header =
                    RequestHeader::decode(header).map_err(|magic| ConnectionError::RequestMagic { magic })?;
                self.received.advance(REQUEST_HEADER);
                self.begin(&header)?;
            }
            Input::Payload { request, data, .. } => {
                let rest = request.length as usize - data.len();
                let part = rest.min(self.received.len());
                data.extend_from_slice(&self.received[..part]);
                self.received.advance(part);
                if part < rest {
                    return Ok(false);
                }
                if let Input::Payload { request, data, permit } =
                    std::mem::replace(&mut self.input, Input::Header)
                {
                    self.export.observe(&request);
                    self.carry_out(request, data, permit);
                }
            }
            Input::Skip { cookie, rest, refusal } => {
                let part = (*rest).min(self.received.len());
                self.received.advance(part);
                *rest -= part;
                if *rest > 0 {
                    return Ok(false);
                }
                self.replies.refuse(*cookie, *refusal);
                self.input = Input::Header;
            }
            Input::Admission { .. } | Input::Closed => return Ok(false),
        }
        Ok(true)
    }

    fn end_of_stream(&mut self) -> Result<(), ConnectionError> {
        // A peer that disappears between two requests is a rude one, but not an error.
        if !matches!(self.input, Input::Header) || !self.received.is_empty() {
            return Err(ConnectionError::Vanished);
        }
        self.input = Input::Closed;
        Ok(())
    }

    /// Refuses a request, answers it, or begins to carry it out.
    fn begin(&mut self, header: &RequestHeader) -> Result<(), ConnectionError> {
        let &RequestHeader { command, cookie, offset, length, .. } = header;
        trace!(command = command_name(command), cookie, offset, length, flags = header.flags, "request");
        if command == NBD_CMD_DISC {
            self.input = Input::Closed;
            return Ok(());
        }
        let request = match self.check(header) {
            Ok(request) => request,
            Err(refusal) => {
                let (command, error) = (command_name(command), error_name(refusal.error));
                debug!(command, cookie, offset, length, error, why = refusal.why, "request refused");
                if header.command != NBD_CMD_WRITE {
                    self.replies.refuse(cookie, refusal);
                } else if length <= MAX_SKIP {
                    self.input = Input::Skip { cookie, rest: length as usize, refusal };
                } else {
                    return Err(ConnectionError::WriteLength { length });
                }
                return Ok(());
            }
        };
        if request.command != Command::Write {
            self.export.observe(&request);
        }
        if !self.answer_inline(&request) {
            let bytes = match request.command {
                Command::Read | Command::Write => length,
                Command::BlockStatus => MAX_BLOCK_STATUS,
                _ => 0,
            };
            if let Some(permit) = self.budget.try_admit(bytes) {
                self.admitted(request, permit);
            } else {
                let permit = Box::pin(self.budget.clone().admit(bytes));
                self.input = Input::Admission { request, permit };
            }
        }
        Ok(())
    }

    /// All that can be said against a request before it is carried out.
    fn check(&self, header: &RequestHeader) -> Result<Request, Refusal> {
        let refuse = |error, why| Err(Refusal { error, why });
        let no_flags = CommandFlags::empty();
        let (command, mut allowed) = match header.command {
            NBD_CMD_READ if self.structured => (Command::Read, CommandFlags::DF),
            NBD_CMD_READ => (Command::Read, no_flags),
            NBD_CMD_WRITE => (Command::Write, no_flags),
            NBD_CMD_FLUSH => (Command::Flush, no_flags),
            NBD_CMD_TRIM => (Command::Trim, no_flags),
            NBD_CMD_WRITE_ZEROES => (Command::WriteZeroes, CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO),
            NBD_CMD_BLOCK_STATUS if self.base_allocation => (Command::BlockStatus, CommandFlags::REQ_ONE),
            NBD_CMD_BLOCK_STATUS => return refuse(NBD_EINVAL, "no metadata context was negotiated"),
            _ => return refuse(NBD_EINVAL, "unknown command"),
        };
        if self.read_only && command.is_write() {
            return refuse(NBD_EPERM, "the export is read-only");
        }
        if !self.read_only {
            // Where FUA can be used at all, the specification allows it on every command.
            allowed |= CommandFlags::FUA;
        }
        let Some(flags) = CommandFlags::from_bits(header.flags).filter(|&flags| allowed.contains(flags))
        else {
            return refuse(NBD_EINVAL, "a flag that does not go with the command");
        };
        let &RequestHeader { cookie, offset, length, .. } = header;
        let request = Request { command, flags, cookie, offset, length };
        if command == Command::Flush {
            return match (offset, length) {
                (0, 0) => Ok(request),
                _ => refuse(NBD_EINVAL, "a flush has neither offset nor length"),
            };
        }
        if length == 0 {
            return refuse(NBD_EINVAL, "a request for no bytes");
        }
        if offset.checked_add(length.into()).is_none_or(|end| end > self.size) {
            let error = match command {
                Command::Write | Command::WriteZeroes => NBD_ENOSPC,
                _ => NBD_EINVAL,
            };
            return refuse(error, "past the end of the export");
        }
        if matches!(command, Command::Read | Command::Write) && length > MAX_PAYLOAD {
            let unfragmented = flags.contains(CommandFlags::DF);
            return refuse(if unfragmented { NBD_EOVERFLOW } else { NBD_EINVAL }, "more than 32 MiB");
        }
        Ok(request)
    }

    /// Answers a request if that needs no waiting, and says whether it did.
    fn answer_inline(&mut self, request: &Request) -> bool {
        let Self { export, replies, received, fast, .. } = self;
        match request.command {
            Command::Read if request.length <= MAX_INLINE => {
                let answered = replies.data_inline(request, |buf| {
                    if *fast {
                        export.read(buf, request.offset).map(|()| true)
                    } else {
                        export.try_read(buf, request.offset)
                    }
                });
                match answered {
                    Ok(answered) => answered,
                    Err(error) => {
                        self.failed(request, &error);
                        true
                    }
                }
            }
            Command::Write if *fast => {
                let Some(data) = received.get(..request.length as usize) else {
                    return false;
                };
                export.observe(request);
                let result = perform(&**export, request, data, self.structured);
                received.advance(request.length as usize);
                self.reply(request, result, None);
                true
            }
            Command::Read | Command::Write => false,
            _ if *fast => {
                let result = perform(&**export, request, &[], self.structured);
                self.reply(request, result, None);
                true
            }
            _ => false,
        }
    }

    /// Goes on with a request for which there is room.
    fn admitted(&mut self, request: Request, permit: Permit) {
        if request.command == Command::Write {
            let data = Vec::with_capacity(request.length as usize);
            self.input = Input::Payload { request, data, permit };
        } else {
            self.carry_out(request, Vec::new(), permit);
        }
    }

    fn carry_out(&mut self, request: Request, data: Vec<u8>, permit: Permit) {
        let (export, structured) = (Arc::clone(&self.export), self.structured);
        if self.fast && request.command != Command::Read {
            let result = perform(&*export, &request, &data, structured);
            return self.reply(&request, result, Some(permit));
        }
        self.running.spawn_blocking(move || {
            let result = perform(&*export, &request, &data, structured);
            Finished { request, result, permit }
        });
    }

    fn reply(&mut self, request: &Request, result: io::Result<Outcome>, permit: Option<Permit>) {
        match result {
            Ok(Outcome::Done) => self.replies.done(request.cookie),
            Ok(Outcome::Data(bytes)) => self.replies.data(request, bytes, permit),
            Ok(Outcome::Hole) => self.replies.hole(request),
            Ok(Outcome::Extents(extents)) => {
                self.replies.extents(request, BASE_ALLOCATION_ID, &extents, permit);
            }
            Err(error) => self.failed(request, &error),
        }
    }

    fn failed(&mut self, request: &Request, error: &io::Error) {
        let value = error_of(error, request.flags);
        let (answer, error) = (error_name(value), error as &dyn std::error::Error);
        // One line for a disk that goes bad, not one for each of its sectors; and "there is no fast
        // way to zero" is an answer, not a failure.
        if self.has_failed || value == NBD_ENOTSUP {
            debug!(?request, answer, error, "request failed");
        } else {
            warn!(
                ?request,
                answer, error, "request failed; any others of this connection are logged as debug"
            );
            self.has_failed = true;
        }
        self.replies.refuse(request.cookie, Refusal { error: value, why: "see the server's log" });
    }
}

/// Carries out a request; may block.
fn perform(export: &dyn Export, request: &Request, data: &[u8], structured: bool) -> io::Result<Outcome> {
    let &Request { command, flags, offset, length, .. } = request;
    let fua = flags.contains(CommandFlags::FUA);
    let done = match command {
        Command::Read => {
            let mut bytes = vec![0; DATA_ROOM + length as usize];
            export.read(&mut bytes[DATA_ROOM..], offset)?;
            let hole = structured && is_zero(&bytes[DATA_ROOM..]);
            return Ok(if hole { Outcome::Hole } else { Outcome::Data(bytes) });
        }
        Command::BlockStatus => {
            let one = flags.contains(CommandFlags::REQ_ONE);
            return export.block_status(length, offset, one).map(Outcome::Extents);
        }
        Command::Write => export.write(data, offset, fua),
        Command::Flush => export.flush(),
        Command::Trim => export.trim(length, offset, fua),
        Command::WriteZeroes => {
            let no_hole = flags.contains(CommandFlags::NO_HOLE);
            let fast = flags.contains(CommandFlags::FAST_ZERO);
            export.write_zeroes(length, offset, Zeroing { fua, no_hole, fast })
        }
    };
    done.map(|()| Outcome::Done)
}

/// Watches over a peer that has something to do and does not do it.
struct Stall {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether the timer runs; it is set anew after each progress, when there is reason to wait.
    runs: bool,
}

impl Stall {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(tokio::time::sleep(limit)), runs: false }
    }

    /// The peer has done something.
    fn progress(&mut self) {
        self.runs = false;
    }

    /// Ready when it is the peer's turn (`owes`) and has been for too long.
    fn poll(&mut self, owes: bool, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        if !owes {
            self.runs = false;
            return Poll::Pending;
        }
        if !self.runs {
            self.timer.as_mut().reset(Instant::now() + self.limit);
            self.runs = true;
        }
        self.timer.as_mut().poll(cx).map(|()| ConnectionError::Stalled { limit: self.limit })
    }
}
