//! The transmission phase of one connection: requests in, replies out. Source: proto.md, "Transmission".
//!
//! # Concurrency
//! One task does it all, so that nothing is locked and nobody is woken for a single request. It runs all requests of
//! one receive before it sends their replies in one call. Each request's future is polled once on the spot; if it is
//! ready, which is the rule for what is in memory, the request has cost no task. (A big write that is not alone is a task
//! at once.) If not:
//! - writes, zeroes, trims and flushes stay with the connection: they wait for the log, which answers many at once,
//!   and one wake-up then collects all of them;
//! - reads, block status and cache requests become tasks: they wait for disk or network, beside which a task is
//!   nothing, and may have to decode what comes, which should not stand in the way of other requests.
//!
//! The first poll has no waker, which is correct because each future left over is polled again, with the waker of
//! its new home, as soon as it is there: a future must wake the waker of its last poll only, and one that became ready
//! between the two polls says so at the second.
//!
//! # Bounds
//! Requests that are under way or whose replies are not wholly sent, and their data, are within [`Limits`]; beyond,
//! nothing is received until some were sent.
//!
//! # The end
//! NBD_CMD_DISC, the client closing, or garbage end the receiving; the server's shutdown answers what still comes with
//! NBD_ESHUTDOWN. Then what is under way is answered, within a grace time. What is still running when that is over, or
//! when the client is gone, goes on without a client: no request is cancelled.

use std::{
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Device, DeviceError, Limits,
    error::ConnectionError,
    execute::{execute, refusal},
    framing::{Answer, Reference, Refusal},
    handshake::Session,
    input::{BUFFER_BYTES, Input},
    output::Output,
    proto::{PAYLOAD_BYTES_MAX, command},
    request::{Operation, Request, Terms},
};

/// The longest payload that is received to be thrown away; a client that sends more has lost its way.
const SKIP_BYTES_MAX: u64 = 2 * PAYLOAD_BYTES_MAX as u64;
/// Replies are sent once this much of them waits, although more requests have been received.
const SEND_BYTES: usize = 256 << 10;
/// What remains of a payload is received through the buffer if it is at most this, so that the requests behind it
/// come along.
const BUFFERED_PAYLOAD_BYTES_MAX: usize = BUFFER_BYTES / 4;
/// A write of this much data is a task from the start if other requests are under way: copying or sealing it takes far
/// longer than waking a task, and meanwhile this one receives the next. Not so a read, whose buffer had better be sent
/// while it is in the processor's cache: reads of 1 MiB, 16 at once, from memory, were half as fast as tasks.
const TASK_BYTES: u64 = 256 << 10;
/// How long a client that was sent its last reply may take to close. Closing first, with requests unread, would make
/// TCP throw away replies that the client has not yet received.
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);

/// What the connection waits for beside its socket.
enum Event {
    Answered { to: Reference, held_bytes: u64, result: Result<Answer, Refusal> },
    Stop,
    GraceOver,
}

/// Where in the stream of requests the next byte belongs.
enum Position {
    Header,
    Payload {
        request: Request,
        operation: Operation,
        payload: BytesMut,
    },
    /// Payload that is thrown away.
    Skip {
        bytes: u64,
    },
    /// Nothing is received any more.
    End,
}

/// The transmission phase, once the handshake is over.
pub(super) struct Transmission<R, W> {
    device: Arc<dyn Device>,
    terms: Terms,
    limits: Limits,
    input: Input<R>,
    output: Output<W>,
    position: Position,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    /// Requests among `events`, and the payload that they hold or will.
    running: usize,
    held_bytes: u64,
    stopping: bool,
    /// The grace time runs.
    closing: bool,
    /// The socket or the client's patience is lost; replies have nowhere to go.
    gone: bool,
    error: Option<ConnectionError>,
}

impl<R, W> Transmission<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    pub(super) fn new(input: Input<R>, sink: W, session: Session, limits: Limits) -> Self {
        Self {
            device: session.export.device,
            terms: session.terms,
            limits,
            input,
            output: Output::new(sink),
            position: Position::Header,
            events: FuturesUnordered::new(),
            running: 0,
            held_bytes: 0,
            stopping: false,
            closing: false,
            gone: false,
            error: None,
        }
    }

    /// Serves until the client leaves, or `stop` turns true (or its sender goes) and the grace time is over.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), ConnectionError> {
        let stopped = async move {
            // An error is the sender gone, which is a stop as well.
            let _ = stop.wait_for(|stop| *stop).await;
            Event::Stop
        };
        self.events.push(stopped.boxed());
        poll_fn(|context| self.poll(context)).await;
        if self.running > 0 {
            tracing::warn!(requests = self.running, "requests go on without their client");
            tokio::spawn(finish(std::mem::take(&mut self.events), self.running));
        }
        if self.stopping && !self.gone {
            linger(self.input, self.output.into_sink()).await;
        }
        self.error.map_or(Ok(()), Err)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut progress = self.collect(context);
            progress |= self.admit();
            progress |= self.send(context);
            progress |= self.receive(context);
            if self.gone {
                return Poll::Ready(());
            }
            if !progress {
                return if self.is_done() { Poll::Ready(()) } else { Poll::Pending };
            }
        }
    }

    /// Nothing is under way, and nothing will come; asked only when nothing more can be received now.
    fn is_done(&mut self) -> bool {
        let ended = match self.position {
            Position::End => true,
            Position::Header => self.stopping && self.input.bytes().is_empty(),
            Position::Payload { .. } | Position::Skip { .. } => false,
        };
        ended && self.running == 0 && self.output.queue().is_empty()
    }

    /// Takes what has happened; true if anything.
    fn collect(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(Some(event)) = self.events.poll_next_unpin(context) {
            progress = true;
            match event {
                Event::Answered { to, held_bytes, result } => {
                    self.running -= 1;
                    self.held_bytes -= held_bytes;
                    self.output.queue().push(self.terms.framing, to, result);
                }
                Event::Stop => {
                    self.stopping = true;
                    self.start_grace();
                }
                Event::GraceOver => self.gone = true,
            }
        }
        progress
    }

    /// Decodes and starts what was received, within the bounds; true if anything.
    fn admit(&mut self) -> bool {
        let mut progress = false;
        while self.output.queue().bytes() < SEND_BYTES {
            let step = match &mut self.position {
                Position::Header => self.admit_header(),
                Position::Payload { .. } => self.admit_payload(),
                Position::Skip { bytes } => {
                    let step = (*bytes).min(self.input.bytes().len() as u64);
                    *bytes -= step;
                    let over = *bytes == 0;
                    self.input.consume(step as usize);
                    if over {
                        self.position = Position::Header;
                    }
                    over || step > 0
                }
                Position::End => false,
            };
            if !step {
                break;
            }
            progress = true;
        }
        progress
    }

    fn admit_header(&mut self) -> bool {
        let header_bytes = self.terms.framing.request_bytes();
        let Some(header) = self.input.bytes().get(..header_bytes) else { return false };
        let request = match self.terms.framing.decode_request(header) {
            Ok(request) => request,
            Err(error) => {
                self.end(Some(error));
                return true;
            }
        };
        if !self.has_room(&request) {
            return false;
        }
        self.input.consume(header_bytes);
        self.dispatch(request);
        true
    }

    /// Whether the request is within the bounds. One alone always is.
    fn has_room(&mut self, request: &Request) -> bool {
        let queue = self.output.queue();
        let requests = self.running + queue.replies();
        let bytes = self.held_bytes + queue.bytes() as u64;
        requests < self.limits.requests_max
            && (requests == 0 || bytes + held_bytes(request) <= self.limits.bytes_max)
    }

    fn dispatch(&mut self, request: Request) {
        if request.command == command::DISC {
            return self.end(None);
        }
        if request.payload_bytes > SKIP_BYTES_MAX {
            return self.end(Some(ConnectionError::PayloadTooLarge { payload_bytes: request.payload_bytes }));
        }
        let checked = if self.stopping {
            Err(refusal(DeviceError::Shutdown))
        } else {
            request.check(self.device.info(), self.terms)
        };
        match checked {
            Ok(operation @ Operation::Write { length, .. }) => {
                let payload = BytesMut::with_capacity(length as usize);
                self.position = Position::Payload { request, operation, payload };
            }
            Ok(operation) => self.start(request, operation, Bytes::new()),
            Err(refusal) => {
                self.output.queue().push(self.terms.framing, reference(&request), Err(refusal));
                self.position = Position::Skip { bytes: request.payload_bytes };
            }
        }
    }

    fn admit_payload(&mut self) -> bool {
        let Position::Payload { request, operation, payload } = &mut self.position else { return false };
        let missing = request.payload_bytes as usize - payload.len();
        let step = missing.min(self.input.bytes().len());
        payload.extend_from_slice(&self.input.bytes()[..step]);
        self.input.consume(step);
        if step < missing {
            return step > 0;
        }
        let (request, operation, payload) = (*request, *operation, std::mem::take(payload).freeze());
        self.position = Position::Header;
        self.start(request, operation, payload);
        true
    }

    /// Runs a request: see Concurrency above.
    fn start(&mut self, request: Request, operation: Operation, payload: Bytes) {
        let to = reference(&request);
        let held_bytes = held_bytes(&request);
        let mut running = Box::pin(run(self.device.clone(), operation, payload));
        let writes = matches!(operation, Operation::Write { .. });
        let overlaps = writes && held_bytes >= TASK_BYTES && self.is_pipelined();
        if !overlaps
            && let Poll::Ready(result) = running.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            self.output.queue().push(self.terms.framing, to, result);
            return;
        }
        self.running += 1;
        self.held_bytes += held_bytes;
        let event = move |result| Event::Answered { to, held_bytes, result };
        if overlaps || operation.fetches() {
            let task = tokio::spawn(running);
            let result = task.map(|result| result.unwrap_or_else(|_| Err(refusal(DeviceError::Io))));
            self.events.push(result.map(event).boxed());
        } else {
            self.events.push(running.map(event).boxed());
        }
    }

    /// Whether there is something else to do beside the request that is being started.
    fn is_pipelined(&mut self) -> bool {
        self.running > 0 || !self.input.bytes().is_empty() || !self.output.queue().is_empty()
    }

    /// Sends what is queued, as far as the socket takes it; true if it took anything.
    fn send(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.output.queue().is_empty() {
            match self.output.poll_send(context) {
                Poll::Ready(Ok(())) => progress = true,
                Poll::Ready(Err(error)) => {
                    self.gone = true;
                    self.end(Some(error.into()));
                    return true;
                }
                Poll::Pending => break,
            }
        }
        progress
    }

    /// Receives once if there is a place for it; true if anything came.
    fn receive(&mut self, context: &mut Context<'_>) -> bool {
        let received = match &mut self.position {
            Position::End => return false,
            Position::Header if self.input.bytes().len() >= self.terms.framing.request_bytes() => {
                return false;
            }
            Position::Payload { request, payload, .. } => {
                let missing = request.payload_bytes as usize - payload.len();
                if missing > BUFFERED_PAYLOAD_BYTES_MAX && self.input.bytes().is_empty() {
                    self.input.poll_fill_payload(payload, missing, context)
                } else if self.input.bytes().is_empty() {
                    self.input.poll_fill(context)
                } else {
                    return false;
                }
            }
            Position::Skip { .. } if !self.input.bytes().is_empty() => return false,
            Position::Skip { .. } | Position::Header => self.input.poll_fill(context),
        };
        match received {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => {
                let between = matches!(self.position, Position::Header) && self.input.bytes().is_empty();
                self.end(if between { None } else { Some(ConnectionError::Truncated) });
            }
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => self.end(Some(error.into())),
        }
        true
    }

    /// Ends the receiving.
    fn end(&mut self, error: Option<ConnectionError>) {
        self.position = Position::End;
        self.error = self.error.take().or(error);
        self.start_grace();
    }

    fn start_grace(&mut self) {
        if !std::mem::replace(&mut self.closing, true) {
            let grace = self.limits.grace_time_max;
            self.events.push(sleep(grace).map(|()| Event::GraceOver).boxed());
        }
    }
}

/// Runs an operation. A panic in the device fails the request, not the requests beside it.
async fn run(device: Arc<dyn Device>, operation: Operation, payload: Bytes) -> Result<Answer, Refusal> {
    AssertUnwindSafe(execute(device, operation, payload)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(?operation, "the device panicked");
        Err(refusal(DeviceError::Io))
    })
}

/// Waits for requests whose client is gone.
async fn finish(mut events: FuturesUnordered<BoxFuture<'static, Event>>, mut running: usize) {
    while running > 0 {
        match events.next().await {
            Some(Event::Answered { .. }) => running -= 1,
            Some(Event::Stop | Event::GraceOver) => {}
            None => return,
        }
    }
}

/// Says that no reply follows, and waits for the client to close.
async fn linger<R, W>(input: Input<R>, mut sink: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let _ = timeout(LINGER_TIME_MAX, async {
        sink.shutdown().await?;
        tokio::io::copy(&mut input.into_source(), &mut tokio::io::sink()).await
    })
    .await;
}

fn reference(request: &Request) -> Reference {
    Reference { cookie: request.cookie, offset: request.offset }
}

/// What a request holds in memory until its reply is sent.
fn held_bytes(request: &Request) -> u64 {
    match request.command {
        command::READ | command::WRITE => request.length.min(u64::from(PAYLOAD_BYTES_MAX)),
        _ => 0,
    }
}
