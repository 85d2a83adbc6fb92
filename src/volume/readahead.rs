//! Reading ahead of sequential readers, and on a client's word (NBD_CMD_CACHE).
//!
//! A read that begins where an earlier one ended is the next of a stream. From the second on, what follows is fetched
//! before it is asked for: as much as the stream has read, between [`WINDOW_BYTES_MIN`] and [`WINDOW_BYTES_MAX`], so that
//! a short stream fetches little that nobody wants.

use std::{ops::Range, sync::Arc};

use super::{core::Core, error::VolumeError, read::At, state::Source};
use crate::format::ids::FrameRef;

/// Streams followed at once; the one that was quiet longest is forgotten.
const STREAMS_MAX: usize = 16;
const WINDOW_BYTES_MIN: u64 = 256 << 10;
/// Four requests of 4 MiB under way hide some 100 ms at a gigabit.
const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// One step of fetching ahead: reads behind it find its frames while the next step is on its way.
const STEP_BYTES: u64 = 4 << 20;

/// The streams of one volume, most recent first.
#[derive(Debug, Default)]
pub struct Streams {
    streams: Vec<Stream>,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    next: u64,
    read_bytes: u64,
    fetched_to: u64,
}

impl Streams {
    /// Notes a read; returns the range to fetch ahead, if it belongs to a stream that is about to run dry.
    pub fn note(&mut self, offset: u64, length: u64) -> Option<Range<u64>> {
        let end = offset + length;
        let Some(at) = self.streams.iter().position(|stream| stream.next == offset) else {
            self.streams.truncate(STREAMS_MAX - 1);
            self.streams.insert(0, Stream { next: end, read_bytes: length, fetched_to: end });
            return None;
        };
        let mut stream = self.streams.remove(at);
        stream.next = end;
        stream.read_bytes += length;
        stream.fetched_to = stream.fetched_to.max(end);
        let window = stream.read_bytes.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let wanted = (stream.fetched_to - end < window / 2).then(|| stream.fetched_to..end + window);
        if let Some(wanted) = &wanted {
            stream.fetched_to = wanted.end;
        }
        self.streams.insert(0, stream);
        wanted
    }
}

impl Core {
    /// Notes a read, and fetches ahead in the background where it is one of a stream.
    pub fn note_read(self: &Arc<Self>, offset: u64, length: u64) {
        let wanted = self.streams().note(offset, length);
        let Some(wanted) = wanted else { return };
        let wanted = wanted.start..wanted.end.min(self.state().size_bytes);
        if wanted.is_empty() {
            return;
        }
        let core = Arc::clone(self);
        tokio::spawn(async move {
            // The reader that comes this way finds out, and is told.
            let _ = core.fetch_ahead(wanted).await;
        });
    }

    /// Brings a range into the caches.
    pub async fn fetch_ahead(&self, range: Range<u64>) -> Result<(), VolumeError> {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + STEP_BYTES);
            let segments = self.segments(start..end, At::Newest).await?;
            let mut frames: Vec<FrameRef> = segments
                .iter()
                .filter_map(|segment| match &segment.source {
                    Source::Frame(frame, _) => Some(**frame),
                    _ => None,
                })
                .collect();
            super::read::sort_frames(&mut frames);
            let absent: Vec<FrameRef> =
                frames.into_iter().filter(|frame| !self.frames.is_near(frame)).collect();
            for plain in self.frames.load(&absent).await {
                plain?;
            }
            start = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_is_run_ahead_of_and_a_random_one_is_not() {
        let mut streams = Streams::default();
        assert_eq!(streams.note(0, 4096), None);
        assert_eq!(streams.note(4096, 4096), Some(8192..8192 + WINDOW_BYTES_MIN));
        assert_eq!(streams.note(8192, 4096), None, "half of the window is still ahead");
        for offset in [1 << 30, 1 << 20, 5 << 20] {
            assert_eq!(streams.note(offset, 4096), None);
        }
        assert_eq!(streams.note((1 << 30) + 4096, 4096).map(|range| range.start), Some((1 << 30) + 8192));
    }

    #[test]
    fn the_window_grows_with_the_stream_and_has_an_end() {
        let mut streams = Streams::default();
        let mut fetched = 0;
        for step in 0..200 {
            if let Some(range) = streams.note(step << 20, 1 << 20) {
                fetched = range.end;
            }
        }
        assert!(fetched <= (200 << 20) + WINDOW_BYTES_MAX && fetched > 200 << 20, "{fetched}");
    }

    #[test]
    fn streams_are_forgotten_when_there_are_too_many() {
        let mut streams = Streams::default();
        for stream in 0..1000_u64 {
            streams.note(stream << 30, 4096);
        }
        assert_eq!(streams.streams.len(), STREAMS_MAX);
    }
}
