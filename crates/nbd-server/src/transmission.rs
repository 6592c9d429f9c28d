//! The transmission phase: requests in, replies out.
//!
//! One task owns the connection and all of its state; it waits for the next [`Event`] and then
//! handles every request that has been received. What an export answers without waiting is answered
//! right there, and the replies of one round leave together, so that a read of something in memory
//! costs one system call to receive it, the export's own, and one to send the reply. All other
//! requests go to threads that may block, and are answered in the order in which they finish.

use super::error::ConnectionError;
use super::export::{Answered, Export};
use super::limits::{Budget, Permit};
use super::negotiation::{Agreement, BASE_ALLOCATION_ID, Peer};
use super::protocol::*;
use super::reply::{MAX_BLOCK_STATUS, Refusal, Replies, error_of};
use super::request::{Outcome, Terms, perform};
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
/// Longest read that is answered inline in one piece. Longer ones go to a blocking thread, or are
/// answered in pieces, each when the one before it has left, and while it is in the processor's
/// cache.
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
    /// Number of this connection.
    connection: u64,
    /// Whether the export is [fast](Export::is_fast).
    fast: bool,
    terms: Terms,
    /// Whether the export has failed a request of this connection.
    has_failed: bool,
    stall: Stall,
}

/// What the next bytes from the peer are, or what must be done before they can be looked at.
enum Input {
    /// A request's header.
    Header,
    /// This request waits for room.
    Admission { job: Job, permit: Pin<Box<dyn Future<Output = Option<Permit>> + Send>> },
    /// The payload of a write.
    Payload { job: Job, data: Vec<u8>, permit: Permit },
    /// A read that is answered in pieces, and is not yet at its end.
    Read { job: Job },
    /// The payload of a write that is refused.
    Skip { cookie: u64, rest: usize, refusal: Refusal },
    /// Nothing more is expected.
    Closed,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Job {
    /// As the client sent it.
    request: Request,
    /// What of it is left to be done: less than all in a read that is answered in pieces.
    rest: Request,
    received: std::time::Instant,
}

impl Job {
    fn new(request: Request) -> Self {
        Self { request, rest: request, received: std::time::Instant::now() }
    }

    /// Tells the export that this is done.
    fn tell(&self, export: &dyn Export, connection: u64, error: Option<&io::Error>) {
        let Self { request, received, .. } = self;
        export.answered(&Answered { request, connection, received: *received, error });
    }

    /// Does what is left to be done, and tells the export. May block.
    fn perform(
        &self,
        export: &dyn Export,
        connection: u64,
        data: &[u8],
        structured: bool,
    ) -> io::Result<Outcome> {
        let result = perform(export, &self.rest, data, structured);
        self.tell(export, connection, result.as_ref().err());
        result
    }
}

/// What can happen to a connection.
enum Event {
    /// A blocking thread is done.
    Finished(Finished),
    /// The peer has taken some bytes.
    Sent,
    /// The request that waited for room has it.
    Admitted(Job, Permit),
    /// The peer has sent so many bytes; none when it sends no more.
    Received(usize),
}

/// A request that has been carried out.
struct Finished {
    request: Request,
    result: io::Result<Outcome>,
    permit: Permit,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transmission<S> {
    pub(super) fn new(
        peer: Peer<S>,
        agreement: Agreement,
        budget: Budget,
        stall: Duration,
        connection: u64,
    ) -> Self {
        let Agreement { export, structured, base_allocation, .. } = agreement;
        let terms =
            Terms { size: export.size(), read_only: export.is_read_only(), structured, base_allocation };
        Self {
            stream: peer.stream,
            received: peer.received,
            input: Input::Header,
            replies: Replies::new(structured),
            running: JoinSet::new(),
            budget,
            fast: export.is_fast(),
            export,
            connection,
            terms,
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
                Event::Admitted(job, permit) => {
                    self.input = Input::Header;
                    self.admitted(job, permit);
                }
                Event::Received(0) => self.end_of_stream()?,
                Event::Received(_) => {}
            }
        }
    }

    /// Takes no more requests, and ends when those in flight have been answered.
    pub(super) async fn finish(&mut self) -> Result<(), ConnectionError> {
        let input = std::mem::replace(&mut self.input, Input::Closed);
        if let Input::Read { job } = input
            && let Some(permit) = self.budget.try_admit(job.rest.length)
        {
            self.carry_out(job, Vec::new(), permit);
        }
        self.run().await
    }

    /// Drops the requests that no thread has begun, and waits for the others.
    pub(super) async fn abandon(&mut self) {
        if let Input::Read { job } = &self.input {
            let error = io::ErrorKind::ConnectionAborted.into();
            job.tell(&*self.export, self.connection, Some(&error));
        }
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
        if let Input::Admission { job, permit } = &mut self.input
            && let Poll::Ready(Some(permit)) = permit.as_mut().poll(cx)
        {
            return Poll::Ready(Ok(Event::Admitted(*job, permit)));
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
            Input::Read { .. } | Input::Admission { .. } | Input::Closed => false,
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
            Input::Payload { job, data, .. } => {
                let rest = job.request.length as usize - data.len();
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
            Input::Payload { job, data, .. } => {
                let rest = job.request.length as usize - data.len();
                let part = rest.min(self.received.len());
                data.extend_from_slice(&self.received[..part]);
                self.received.advance(part);
                if part < rest {
                    return Ok(false);
                }
                if let Input::Payload { job, data, permit } =
                    std::mem::replace(&mut self.input, Input::Header)
                {
                    self.export.observe(&job.request);
                    self.carry_out(job, data, permit);
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
            Input::Read { job } => {
                let job = *job;
                self.input = Input::Header;
                self.read(job);
            }
            Input::Admission { .. } | Input::Closed => return Ok(false),
        }
        Ok(true)
    }

    fn end_of_stream(&mut self) -> Result<(), ConnectionError> {
        // A peer that disconnects between two requests without a goodbye is not an error.
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
        let request = match self.terms.check(header) {
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
        let job = Job::new(request);
        match request.command {
            Command::Read => {
                self.export.observe(&request);
                let in_pieces = self.terms.structured && !request.flags.contains(CommandFlags::DF);
                if length <= MAX_INLINE || in_pieces {
                    self.read(job);
                } else {
                    self.admit(job);
                }
            }
            // Nothing is sure about a write before its payload is there.
            Command::Write => match self.received.get(..length as usize) {
                Some(data) if self.fast => {
                    self.export.observe(&request);
                    let result = job.perform(&*self.export, self.connection, data, self.terms.structured);
                    self.received.advance(length as usize);
                    self.reply(&request, result, None);
                }
                _ => self.admit(job),
            },
            _ => {
                self.export.observe(&request);
                if self.fast {
                    let result = job.perform(&*self.export, self.connection, &[], self.terms.structured);
                    self.reply(&request, result, None);
                } else {
                    self.admit(job);
                }
            }
        }
        Ok(())
    }

    /// Answers a read, or what is left of it, inline if that needs no waiting.
    fn read(&mut self, job: Job) {
        let Self { export, replies, fast, connection, .. } = self;
        let rest = job.rest;
        let piece = Request { length: rest.length.min(MAX_INLINE), ..rest };
        let last = piece.length == rest.length;
        let answered = replies.data_inline(&piece, last, |buf| match fast {
            true => export.read(buf, piece.offset).map(|()| true),
            false => export.try_read(buf, piece.offset),
        });
        match answered {
            Ok(true) if last => job.tell(&**export, *connection, None),
            Ok(true) => {
                let (offset, length) = (rest.offset + u64::from(piece.length), rest.length - piece.length);
                self.input = Input::Read { job: Job { rest: Request { offset, length, ..rest }, ..job } };
            }
            Ok(false) => self.admit(job),
            Err(error) => {
                job.tell(&**export, *connection, Some(&error));
                self.failed(&piece, &error);
            }
        }
    }

    /// Carries out a request as soon as there is room for it.
    fn admit(&mut self, job: Job) {
        let bytes = match job.rest.command {
            Command::Read | Command::Write => job.rest.length,
            Command::BlockStatus => MAX_BLOCK_STATUS,
            _ => 0,
        };
        if let Some(permit) = self.budget.try_admit(bytes) {
            self.admitted(job, permit);
        } else {
            let permit = Box::pin(self.budget.clone().admit(bytes));
            self.input = Input::Admission { job, permit };
        }
    }

    /// Goes on with a request for which there is room.
    fn admitted(&mut self, job: Job, permit: Permit) {
        if job.request.command == Command::Write {
            let data = Vec::with_capacity(job.request.length as usize);
            self.input = Input::Payload { job, data, permit };
        } else {
            self.carry_out(job, Vec::new(), permit);
        }
    }

    fn carry_out(&mut self, job: Job, data: Vec<u8>, permit: Permit) {
        let (export, connection) = (Arc::clone(&self.export), self.connection);
        let (request, structured) = (job.rest, self.terms.structured);
        if self.fast && request.command != Command::Read {
            let result = job.perform(&*export, connection, &data, structured);
            return self.reply(&request, result, Some(permit));
        }
        self.running.spawn_blocking(move || {
            let result = job.perform(&*export, connection, &data, structured);
            Finished { request, result, permit }
        });
    }

    fn reply(&mut self, request: &Request, result: io::Result<Outcome>, permit: Option<Permit>) {
        match result {
            Ok(Outcome::Done) => self.replies.done(request.cookie),
            Ok(Outcome::Data(bytes)) => self.replies.data(request, bytes, permit),
            Ok(Outcome::Hole) => self.replies.hole(request, true),
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

/// Detects a peer that must send or receive something and does not.
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
