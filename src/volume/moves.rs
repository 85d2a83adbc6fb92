//! Moving blocks from object to object: they are packed anew with an ordinary cut, though nobody wrote them.
//!
//! # Overview
//! Who moves (the collector, `flatten`) names runs of blocks and the objects that they are to leave. The cut that takes them
//! along resolves them exactly as of itself: what still lies in those objects then, and nothing else, becomes frames of its
//! own. So a write that comes in between is never undone, and no entry has a condition.
//!
//! # Errors and retries
//! What cannot be read stays where it is.

use std::{collections::VecDeque, fmt, ops::Range, sync::Arc};

use tokio::sync::oneshot;

use super::{core::Core, error::VolumeError, read::At, state::Source};
use crate::format::{ids::ObjectRef, index::Run};

/// Whether what lies in an object is to leave it.
pub(super) type Leaves = Arc<dyn Fn(&ObjectRef) -> bool + Send + Sync>;

/// What is to be moved.
#[derive(Clone)]
pub(super) struct Moves {
    /// Blocks, ascending and apart.
    pub(super) runs: Vec<Run>,
    /// What they are to leave.
    pub(super) leaves: Leaves,
    /// Whether a cut is closed for it while clients write; else it waits for one of theirs.
    pub(super) urgent: bool,
}

impl fmt::Debug for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moves").field("runs", &self.runs.len()).field("urgent", &self.urgent).finish()
    }
}

/// Moves that wait for their cut.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) moves: Moves,
    /// Gets the plaintext that was moved, bytes, when it is published.
    pub(super) done: oneshot::Sender<u64>,
}

/// Offers, oldest first.
pub(super) type Offers = VecDeque<Offer>;

impl Core {
    /// Offers blocks to the next cut that moves none yet.
    ///
    /// # Errors
    /// What ends the tenure.
    pub(super) fn offer(&self, moves: Moves) -> Result<oneshot::Receiver<u64>, VolumeError> {
        self.check()?;
        let (done, moved) = oneshot::channel();
        self.offers().push_back(Offer { moves, done });
        self.cut_wanted.notify_one();
        Ok(moved)
    }

    /// The plaintext that was moved of what was offered, bytes, once that is published.
    ///
    /// # Errors
    /// What ends the tenure.
    pub(super) async fn moved(&self, offered: oneshot::Receiver<u64>) -> Result<u64, VolumeError> {
        offered.await.map_err(|_| self.check().err().unwrap_or(VolumeError::Closed))
    }
}

impl Moves {
    /// Those blocks that lie in the objects to be left, as of `at`; ascending. Blocks of which anything lies elsewhere stay.
    pub(super) async fn resolve(&self, core: &Core, at: At) -> Result<Vec<Run>, VolumeError> {
        let block_bytes = u64::from(core.bucket.block_bytes());
        let mut found: Vec<Run> = Vec::new();
        for run in &self.runs {
            let size_blocks = core.state().size_bytes / block_bytes;
            let end = (run.block + run.count).min(size_blocks);
            if run.block >= end {
                continue;
            }
            let segments = match core.segments(run.block * block_bytes..end * block_bytes, at).await {
                Ok(segments) => segments,
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            for segment in segments {
                if let Source::Frame(frame, _) = &segment.source
                    && (self.leaves)(&frame.object)
                {
                    push(&mut found, &segment.range, block_bytes);
                }
            }
        }
        Ok(found)
    }
}

/// Adds the blocks that lie whole in a range of bytes.
fn push(found: &mut Vec<Run>, bytes: &Range<u64>, block_bytes: u64) {
    let (block, end) = (bytes.start.div_ceil(block_bytes), bytes.end / block_bytes);
    match found.last_mut() {
        _ if block >= end => {}
        Some(last) if last.block + last.count == block => last.count += end - block,
        _ => found.push(Run { block, count: end - block }),
    }
}
