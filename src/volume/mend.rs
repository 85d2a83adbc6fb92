//! Mending an open volume: blocks are written anew from a whole copy, or marked as lost where there is none.
//!
//! For a repair that has the volume to itself: nobody writes between a look at the map and the change that follows it.
//! A mark gives up what it covers, so it is laid only after another look: a store or a network that damaged what a check
//! read may give it whole by now.
//!
//! # Crash consistency
//! What is written anew goes the way of every write. Marks are not in the log: they count when their cut is published, and a
//! repair that ends before is run again.

use std::ops::Range;

use super::{
    core::Core,
    error::VolumeError,
    layer::{Content, Piece},
    read::At,
    state::Source,
};
use crate::{
    format::{ids::FrameRef, index::Run},
    map::tree::{PageAt, Pages},
};

/// Whether what was damaged can be read by now.
fn is_whole<T>(found: Result<T, VolumeError>) -> Result<bool, VolumeError> {
    match found {
        Ok(_) => Ok(true),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error),
    }
}

impl Core {
    /// Writes what `run` has in `frame` anew, so that it lies in another object after the next cut; what was written
    /// since stays as it is. Returns the number of bytes.
    ///
    /// # Errors
    /// `DamagedFrame` where no copy is whole: then nothing was written.
    pub async fn rewrite(&self, run: Run, frame: &FrameRef) -> Result<u64, VolumeError> {
        let mut bytes = 0;
        for range in self.parts_in(run, frame).await? {
            let data = self.read_flat(range.clone(), At::Newest).await?.freeze();
            bytes += data.len() as u64;
            self.write(range.start, data).await?;
        }
        Ok(bytes)
    }

    /// Marks what `run` has in `frame` as lost: reading it is an error until it is overwritten. What was written since
    /// stays as it is. Returns the number of bytes; `None`, and nothing is marked, where the frame is whole by now.
    ///
    /// # Errors
    /// What the store refuses: it says nothing of the frame.
    pub async fn mark_lost(&self, run: Run, frame: &FrameRef) -> Result<Option<u64>, VolumeError> {
        let parts = self.parts_in(run, frame).await?;
        let found = self.frames.load(std::slice::from_ref(frame)).await;
        if is_whole(found.into_iter().collect::<Result<Vec<_>, _>>())? {
            return Ok(None);
        }
        self.lay_lost(&parts).map(Some)
    }

    /// Marks as lost what only `page` of the block map would tell of `run`. Returns the number of bytes; `None`, and
    /// nothing is marked, where the page is whole by now.
    ///
    /// # Errors
    /// What the store refuses: it says nothing of the page.
    pub async fn mark_unmapped_lost(&self, page: PageAt, run: Run) -> Result<Option<u64>, VolumeError> {
        if is_whole(Pages::load(&*self.frames, page).await)? {
            return Ok(None);
        }
        let located = self.state().locate(self.bytes(run), None, self.block_bytes());
        let parts: Vec<_> = located.unknown.into_iter().map(|(bytes, _)| bytes).collect();
        self.lay_lost(&parts).map(Some)
    }

    fn block_bytes(&self) -> u64 {
        self.bucket.block_bytes().into()
    }

    fn bytes(&self, run: Run) -> Range<u64> {
        run.block * self.block_bytes()..(run.block + run.count) * self.block_bytes()
    }

    async fn parts_in(&self, run: Run, frame: &FrameRef) -> Result<Vec<Range<u64>>, VolumeError> {
        let segments = self.segments(self.bytes(run), At::Newest).await?;
        let is_in = |source: &Source| matches!(source, Source::Frame(found, _) if **found == *frame);
        Ok(segments.into_iter().filter(|part| is_in(&part.source)).map(|part| part.range).collect())
    }

    fn lay_lost(&self, parts: &[Range<u64>]) -> Result<u64, VolumeError> {
        self.log()?;
        let mut state = self.state_mut();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        if state.closing {
            return Err(VolumeError::Closed);
        }
        for Range { start, end } in parts {
            state.active.insert(Piece { start: *start, end: *end, content: Content::Lost });
            state.active_since.get_or_insert_with(tokio::time::Instant::now);
        }
        Ok(parts.iter().map(|part| part.end - part.start).sum())
    }
}
