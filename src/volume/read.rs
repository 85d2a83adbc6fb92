//! The read path: locate, load what is missing, put the parts together.

use std::{ops::Range, time::Duration};

use bytes::{Bytes, BytesMut};

use super::{
    core::Core,
    error::VolumeError,
    follow::is_gone,
    record::WRITE_HEAD_BYTES,
    state::{Segment, Source, segment},
};
use crate::{
    format::ids::{Epoch, FrameRef, Generation, Sequence, VolumeId},
    map::tree,
    store::ErrorKind,
};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Time between two looks for an object that has to be restored from an archive, which takes minutes to days.
const ARCHIVED_WAIT: Duration = Duration::from_secs(60);

/// Which state of the volume to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Now.
    Newest,
    /// As it was just before the frozen cut of this epoch, which is not published yet.
    Below(Epoch),
}

impl Core {
    /// The segments of `range`, ascending, without gaps. Reads pages where the map is not in memory.
    pub async fn segments(&self, range: Range<u64>, at: At) -> Result<Vec<Segment>, VolumeError> {
        loop {
            let version = self.version();
            match self.segments_once(range.clone(), at).await {
                Err(error) if is_gone(&error) && self.has_moved_on(version).await? => {}
                result => return result,
            }
        }
    }

    async fn segments_once(&self, range: Range<u64>, at: At) -> Result<Vec<Segment>, VolumeError> {
        let block_bytes = u64::from(self.bucket.block_bytes());
        let below = match at {
            At::Newest => None,
            At::Below(epoch) => Some(epoch),
        };
        let mut located = self.state().locate(range, below, block_bytes);
        let lone = located.segments.len() + located.unknown.len() == 1;
        for (bytes, run) in located.unknown {
            let mut end = bytes.start;
            for extent in tree::lookup(&*self.frames, located.root.as_ref(), run).await? {
                let found = segment(&extent, &bytes, block_bytes);
                if found.range.start > end {
                    located.segments.push(Segment { range: end..found.range.start, source: Source::Zero });
                }
                end = found.range.end;
                located.segments.push(found);
            }
            if end < bytes.end {
                located.segments.push(Segment { range: end..bytes.end, source: Source::Zero });
            }
        }
        if !lone {
            located.segments.sort_unstable_by_key(|segment| segment.range.start);
        }
        Ok(located.segments)
    }

    /// The bytes of `range`, in parts.
    ///
    /// # Errors
    /// A damaged or lost part fails the whole range, and nothing beyond it. So does one in an archive, unless it is read for
    /// a cut, which waits until somebody restores it.
    pub async fn read(&self, range: Range<u64>, at: At) -> Result<Vec<Bytes>, VolumeError> {
        loop {
            match self.read_now(range.clone(), at).await {
                // What a cut is completed from: it waits as for a store that is away, since the data is not lost.
                Err(VolumeError::Store(error))
                    if error.kind == ErrorKind::Archived && matches!(at, At::Below(_)) =>
                {
                    let text = format!("a block that was written in part waits for an object: {error}");
                    tracing::warn!("{text}");
                    self.noted.note(text, self.env.clock.now_ms());
                    tokio::time::sleep(ARCHIVED_WAIT).await;
                }
                result => return result,
            }
        }
    }

    /// The same, and an object in an archive is an error whatever it is read for.
    pub(super) async fn read_now(&self, range: Range<u64>, at: At) -> Result<Vec<Bytes>, VolumeError> {
        loop {
            let version = self.version();
            match self.read_once(range.clone(), at).await {
                // Published, and trimmed from the log, since it was located: now it is in an object.
                Err(VolumeError::Log(error)) if matches!(*error, wal::WalError::Trimmed { .. }) => {}
                // Collected since it was located.
                Err(error) if is_gone(&error) && self.has_moved_on(version).await? => {}
                result => return result,
            }
        }
    }

    async fn read_once(&self, range: Range<u64>, at: At) -> Result<Vec<Bytes>, VolumeError> {
        let segments = self.segments(range, at).await?;
        let block_bytes = u64::from(self.bucket.block_bytes());
        let mut frames: Vec<FrameRef> = Vec::new();
        for Segment { range, source } in &segments {
            match source {
                Source::Frame(frame, _) => frames.push(**frame),
                Source::Lost => {
                    let (first, last) = (range.start / block_bytes, (range.end - 1) / block_bytes);
                    return Err(VolumeError::Lost { first, last });
                }
                Source::Zero | Source::Log(..) => {}
            }
        }
        sort_frames(&mut frames);
        let mut plains = Vec::with_capacity(frames.len());
        for plain in self.load_frames(&frames).await {
            plains.push(plain?);
        }
        let mut parts = Vec::with_capacity(segments.len());
        for Segment { range, source } in segments {
            let length = (range.end - range.start) as usize;
            match source {
                Source::Zero | Source::Lost => push_zeros(&mut parts, length),
                Source::Log(payload, offset) => {
                    let data = match payload.in_memory() {
                        Some(data) => data,
                        None => self.read_log(payload.lsn).await?,
                    };
                    parts.push(slice(&data, offset, length)?);
                }
                Source::Frame(frame, offset) => {
                    let found = frames.binary_search_by_key(&order(&frame), order);
                    let plain = found.ok().and_then(|at| plains.get(at)).ok_or(VolumeError::Closed)?;
                    parts.push(slice(plain, offset, length)?);
                }
            }
        }
        Ok(parts)
    }

    async fn load_frames(&self, frames: &[FrameRef]) -> Vec<Result<Bytes, VolumeError>> {
        if let [frame] = frames
            && let Some(plain) = self.frames.in_memory(frame)
        {
            return vec![Ok(plain)];
        }
        self.frames.load(frames).await
    }

    /// The data of a write record, from the log's file.
    async fn read_log(&self, lsn: wal::Lsn) -> Result<Bytes, VolumeError> {
        let log = std::sync::Arc::clone(self.log()?);
        let plain = self.env.compute(move || log.read(lsn)).await?;
        Ok(plain.slice(WRITE_HEAD_BYTES.min(plain.len())..))
    }

    /// Reads into one buffer, for packing.
    pub async fn read_flat(&self, range: Range<u64>, at: At) -> Result<BytesMut, VolumeError> {
        let mut flat = BytesMut::with_capacity((range.end - range.start) as usize);
        for part in self.read(range, at).await? {
            flat.extend_from_slice(&part);
        }
        Ok(flat)
    }
}

/// Frames that lie together are neighbours in this order.
pub(super) fn order(frame: &FrameRef) -> (Sequence, Generation, VolumeId, u32) {
    (frame.object.sequence, frame.object.generation, frame.object.owner, frame.number)
}

/// By object and number, without repeats, as frames are loaded.
pub(super) fn sort_frames(frames: &mut Vec<FrameRef>) {
    frames.sort_unstable_by_key(order);
    frames.dedup();
}

fn slice(data: &Bytes, offset: u64, length: usize) -> Result<Bytes, VolumeError> {
    let start = offset as usize;
    let fits = start.checked_add(length).is_some_and(|end| end <= data.len());
    // A map that points beyond a frame is refused when it is decoded; this is the last line.
    if fits { Ok(data.slice(start..start + length)) } else { Err(VolumeError::Closed) }
}

fn push_zeros(parts: &mut Vec<Bytes>, mut length: usize) {
    while length > 0 {
        let now = length.min(ZEROS.len());
        parts.push(Bytes::from_static(&ZEROS[..now]));
        length -= now;
    }
}
