//! Receives: one buffer of fixed size for headers and small payloads, past which big payloads are read directly.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::error::ConnectionError;

/// Holds a batch of 30 requests that write 4 KiB; more would mean more to copy out of it for big payloads.
pub(super) const BUFFER_BYTES: usize = 128 << 10;

pub(super) struct Input<R> {
    source: R,
    buffer: Box<[u8]>,
    /// What was received and not consumed is `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Input<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Gives the stream back; what was not consumed is lost.
    pub(super) fn into_source(self) -> R {
        self.source
    }

    /// What was received and not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives once; 0 is the end of the stream. Only to be called when less than a buffer is unconsumed.
    pub(super) fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut spare = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(&mut self.source).poll_read(context, &mut spare))?;
        let received = spare.filled().len();
        self.end += received;
        Poll::Ready(Ok(received))
    }

    /// Receives once, at most `bytes_max`, behind what `payload` holds; 0 is the end of the stream. Only to be
    /// called when nothing is unconsumed.
    pub(super) fn poll_fill_payload(
        &mut self,
        payload: &mut BytesMut,
        bytes_max: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.bytes().is_empty());
        let mut spare = payload.limit(bytes_max);
        pin!(self.source.read_buf(&mut spare)).poll(context)
    }

    /// Waits until at least `count` bytes are unconsumed; at most a buffer.
    pub(super) async fn fill_to(&mut self, count: usize) -> Result<(), ConnectionError> {
        assert!(count <= BUFFER_BYTES);
        while self.bytes().len() < count {
            if std::future::poll_fn(|context| self.poll_fill(context)).await? == 0 {
                return Err(ConnectionError::Truncated);
            }
        }
        Ok(())
    }

    /// Consumes `count` bytes, received or to come, of any number.
    pub(super) async fn skip(&mut self, mut count: usize) -> Result<(), ConnectionError> {
        while count > 0 {
            let step = count.min(BUFFER_BYTES);
            self.fill_to(step).await?;
            self.consume(step);
            count -= step;
        }
        Ok(())
    }

    /// Moves what is unconsumed to the front, when there is little room behind it.
    fn make_room(&mut self) {
        if self.start > BUFFER_BYTES / 2 || (self.end == BUFFER_BYTES && self.start > 0) {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        assert!(self.end < BUFFER_BYTES);
    }
}
