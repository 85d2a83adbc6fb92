//! Sends: replies queue up and go out together, their headers and data in one vectored write.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::framing::{Answer, Framing, Reference, Refusal, encode_reply};

/// Parts of one system call; what 32 replies with data need.
const SLICES_COUNT: usize = 64;
/// Data shorter than this is copied behind its header rather than sent as a part of its own.
const COPY_BYTES_MAX: usize = 512;

pub(super) struct Output<W> {
    sink: W,
    queue: Queue,
}

/// Encoded replies, in the order they go out.
#[derive(Default)]
pub(super) struct Queue {
    parts: VecDeque<Part>,
    /// The end of the queue: headers and small data, not yet a part.
    head: BytesMut,
    head_replies: usize,
    bytes: usize,
    replies: usize,
}

struct Part {
    bytes: Bytes,
    /// Replies that end with this part.
    replies: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Of replies that are not wholly sent.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Replies that are not wholly sent.
    pub(super) fn replies(&self) -> usize {
        self.replies
    }

    pub(super) fn push(&mut self, framing: Framing, to: Reference, result: Result<Answer, Refusal>) {
        let length_before = self.head.len();
        let data = encode_reply(framing, to, result, &mut self.head);
        self.bytes += self.head.len() - length_before;
        for bytes in data {
            self.push_data(bytes);
        }
        self.replies += 1;
        match self.parts.back_mut() {
            Some(last) if self.head.is_empty() => last.replies += 1,
            _ => self.head_replies += 1,
        }
    }

    fn push_data(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        if bytes.len() <= COPY_BYTES_MAX {
            self.head.extend_from_slice(&bytes);
        } else {
            self.seal_head();
            self.parts.push_back(Part { bytes, replies: 0 });
        }
    }

    fn seal_head(&mut self) {
        if !self.head.is_empty() {
            let replies = std::mem::take(&mut self.head_replies);
            self.parts.push_back(Part { bytes: self.head.split().freeze(), replies });
        }
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(&part.bytes);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.parts.front_mut() {
            if count < first.bytes.len() {
                first.bytes.advance(count);
                return;
            }
            count -= first.bytes.len();
            self.replies -= first.replies;
            self.parts.pop_front();
        }
        assert_eq!(count, 0, "more sent than queued");
    }
}

impl<W: AsyncWrite + Unpin> Output<W> {
    pub(super) fn new(sink: W) -> Self {
        Self { sink, queue: Queue::default() }
    }

    pub(super) fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Sends once. Only to be called when something is queued.
    pub(super) fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue.seal_head();
        let mut slices = [IoSlice::new(&[]); SLICES_COUNT];
        let count = self.queue.slices(&mut slices);
        let sent = ready!(Pin::new(&mut self.sink).poll_write_vectored(context, &slices[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.queue.advance(sent);
        Poll::Ready(Ok(()))
    }

    /// Gives the stream back.
    pub(super) fn into_sink(self) -> W {
        self.sink
    }
}
