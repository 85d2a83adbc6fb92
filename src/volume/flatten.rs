//! Flattening: a clone gets objects of its own for all that it reads in those of other volumes, and depends on none of them
//! any more.
//!
//! # Overview
//! The tree of the block map is looked through; blocks in foreign objects are moved as the collector moves them
//! ([`super::moves`]), in ordinary cuts, while clients read and write. The checkpoint that follows writes every page anew that
//! names them. A page that names nothing but losses is moved as a page. Then the new tree is looked through, until nothing
//! in it is foreign: only what it says counts.
//!
//! # Crash consistency
//! At every moment the volume is a clone that needs its origin, or one that does not. (1) Everything is moved, and the maps
//! of a published manifest name own objects alone, (2) the manifests before that one are removed, (3) the volume says that it
//! is independent ([`pins`]): from here on the origin need not keep the snapshot, (4) its manifests name no owners any more.
//! After a crash the next attempt goes on with what is left.
//!
//! # Not handled
//! Snapshots of the clone: they name the origin's objects for ever, so there must be none.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::oneshot;

use super::{
    claims::{self, Tenure},
    core::{Core, Progress},
    error::VolumeError,
    moves::{Leaves, Moves},
    pins,
    read::At,
};
use crate::{
    format::{
        ids::Epoch,
        index::{MapKind, Run},
        manifest::{Root, Roots},
        names,
        page::Target,
    },
    map::tree,
};

/// Blocks whose places are looked up at once: some ten megabytes where no two of them lie together.
const WINDOW_BLOCKS: u64 = 1 << 18;
/// Blocks of which it is found out at once why they were not moved.
const PROBE_BLOCKS: u64 = 1 << 10;
/// Objects' worth of blocks that are moved with one cut.
const WORTH: u64 = 4;
/// Batches on their way at once.
const MOVING_MAX: usize = 2;
/// Pages that one checkpoint moves for their own sake.
const PAGES_MAX: usize = 256;
/// Times that nothing could be moved, though everything can be read.
const ROUNDS_MAX: u32 = 3;
/// Names deleted by one request.
const DELETES_MAX: usize = 1000;

/// What a clone was made independent of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flattened {
    /// The name of its origin in the bucket; none where it depended on nothing.
    pub origin: Option<String>,
    /// Plaintext that was copied, bytes.
    pub copied_bytes: u64,
}

/// What flattening asks of the publisher.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Told when a checkpoint that begins from now on is published, or why it is not.
    pub(super) checkpoints: Vec<oneshot::Sender<Result<(), VolumeError>>>,
    /// Manifests before this one are let go.
    pub(super) keep_from: Epoch,
    /// Manifests to come name no owners.
    pub(super) is_independent: bool,
}

/// Maps that a manifest has.
struct Maps {
    epoch: Epoch,
    roots: Roots,
}

impl Core {
    /// Copies what the volume reads in other volumes' objects, until it depends on none of them. `left` is told the
    /// plaintext that is still to be copied, bytes. Dropped halfway, the volume is a clone that depends on less. On `Ok` a
    /// published manifest has it.
    ///
    /// # Errors
    /// `HasSnapshots`: nothing was changed, or one was taken meanwhile. Damage to what is to be copied: the rest is copied,
    /// and the volume depends on its origin as before. What ends the tenure.
    pub async fn flatten(&self, left: impl Fn(u64)) -> Result<Flattened, VolumeError> {
        self.log()?;
        let owners = self.bucket.newest_manifest().await?.manifest.owners;
        let Some(origin) = owners.first() else { return Ok(Flattened::default()) };
        self.refuse_snapshots(None)?;
        let (own, copied_bytes) = self.make_own(&left).await?;
        // One that is taken from now on is of these maps, or of later ones.
        self.refuse_snapshots(Some(own.roots.epoch))?;
        self.flattening().keep_from = own.epoch;
        self.publish_once_more().await?;
        self.remove_manifests_before(own.epoch).await?;
        pins::declare_independence(&self.bucket, origin.volume).await?;
        self.flattening().is_independent = true;
        self.publish_once_more().await?;
        Ok(Flattened { origin: Some(origin.name.clone()), copied_bytes })
    }

    /// Removes the manifests that need the origin, whatever became of it when they were let go. On `Ok` none is left.
    async fn remove_manifests_before(&self, epoch: Epoch) -> Result<(), VolumeError> {
        let Progress { generation, nonce, .. } = *self.progress.borrow();
        claims::check(&self.bucket, Tenure { generation, nonce }).await?;
        let mut older = self.bucket.list_manifests().await?;
        {
            let state = self.state();
            // A snapshot of these very maps may be of an earlier cut on top of them.
            older.retain(|manifest| manifest.1 < epoch && !state.snapshots.pins(*manifest));
        }
        let names: Vec<String> =
            older.into_iter().map(|(generation, epoch)| names::manifest(generation, epoch)).collect();
        for some in names.chunks(DELETES_MAX) {
            self.bucket.store.delete(some).await?;
        }
        // Nobody else may have gone on with one of them meanwhile.
        claims::check(&self.bucket, Tenure { generation, nonce }).await
    }

    /// No snapshot may be of maps before those of epoch `since`, or there may be none at all.
    fn refuse_snapshots(&self, since: Option<Epoch>) -> Result<(), VolumeError> {
        let state = self.state();
        let is_before = |roots: Epoch| since.is_none_or(|since| roots < since);
        let before = state.snapshots.iter().filter(|snapshot| is_before(snapshot.roots_epoch));
        let names: Vec<String> = before.map(|snapshot| snapshot.name.clone()).collect();
        if names.is_empty() { Ok(()) } else { Err(VolumeError::HasSnapshots { names }) }
    }

    /// Moves everything until the maps name own objects alone. Those maps, and the plaintext that was moved, bytes.
    async fn make_own(&self, left: &impl Fn(u64)) -> Result<(Maps, u64), VolumeError> {
        let block_bytes = u64::from(self.bucket.block_bytes());
        let own = self.bucket.header.volume;
        let (mut copied_bytes, mut stuck) = (0, 0);
        loop {
            self.checkpoint().await?;
            let maps = self.maps();
            let root = maps.roots.blocks;
            let mut blocks = 0;
            let mut foreign = Foreign::new(self, root);
            while let runs = foreign.next(WINDOW_BLOCKS).await?
                && !runs.is_empty()
            {
                blocks += runs.iter().map(|run| run.count).sum::<u64>();
            }
            if blocks == 0 {
                let is_foreign = |at: &tree::PageAt| at.frame.object.owner != own;
                let pages = tree::select(&*self.frames, MapKind::Blocks, root.as_ref(), is_foreign).await?;
                if pages.is_empty() {
                    return Ok((maps, copied_bytes));
                }
                for some in pages.chunks(PAGES_MAX) {
                    self.moving().extend_from_slice(some);
                    self.checkpoint().await?;
                }
                continue;
            }
            if stuck > 0 {
                self.find_unreadable(root).await?;
            }
            let moved_bytes = self.move_foreign(root, blocks * block_bytes, left).await?;
            copied_bytes += moved_bytes;
            stuck = if moved_bytes == 0 { stuck + 1 } else { 0 };
            if stuck > ROUNDS_MAX {
                let text = "some of the origin's blocks could not be copied now; run it again";
                return Err(VolumeError::Invalid(text.to_owned()));
            }
        }
    }

    /// Why something was not moved. Where it was overwritten since, or can be read by now, there is nothing to be told.
    async fn find_unreadable(&self, root: Option<Root>) -> Result<(), VolumeError> {
        let block_bytes = u64::from(self.bucket.block_bytes());
        let mut foreign = Foreign::new(self, root);
        while let runs = foreign.next(PROBE_BLOCKS).await?
            && !runs.is_empty()
        {
            for run in runs {
                let end = (run.block + run.count) * block_bytes;
                let end = end.min(self.state().size_bytes);
                if run.block * block_bytes < end {
                    self.read(run.block * block_bytes..end, At::Newest).await?;
                }
            }
        }
        Ok(())
    }

    /// Moves what the tree names in foreign objects and can be read. The plaintext that was moved, bytes.
    async fn move_foreign(
        &self,
        root: Option<Root>,
        total_bytes: u64,
        left: &impl Fn(u64),
    ) -> Result<u64, VolumeError> {
        let own = self.bucket.header.volume;
        let batch_blocks = WORTH * self.settings.object_bytes / u64::from(self.bucket.block_bytes());
        let leaves: Leaves = Arc::new(move |object| object.owner != own);
        let mut foreign = Foreign::new(self, root);
        let (mut moved_bytes, mut under_way) = (0, VecDeque::new());
        left(total_bytes);
        loop {
            let runs = foreign.next(batch_blocks.max(1)).await?;
            let is_end = runs.is_empty();
            if !is_end {
                let moves = Moves { runs: Run::join(runs), leaves: leaves.clone(), urgent: true };
                under_way.push_back(self.offer(moves)?);
            }
            if (is_end || under_way.len() == MOVING_MAX)
                && let Some(oldest) = under_way.pop_front()
            {
                moved_bytes += self.moved(oldest).await?;
                left(total_bytes.saturating_sub(moved_bytes));
            }
            if is_end && under_way.is_empty() {
                return Ok(moved_bytes);
            }
        }
    }

    /// Has a checkpoint made of all that is published by now.
    ///
    /// # Errors
    /// Maps that cannot be read or written; what ends the tenure.
    pub async fn checkpoint(&self) -> Result<(), VolumeError> {
        let (done, published) = oneshot::channel();
        self.check()?;
        self.flattening().checkpoints.push(done);
        self.cut_wanted.notify_one();
        self.answered(published).await?
    }

    /// The newest maps.
    fn maps(&self) -> Maps {
        let state = self.state();
        Maps { epoch: state.delta.epoch, roots: state.roots.clone() }
    }

    /// Publishes another manifest, whatever there is to publish.
    async fn publish_once_more(&self) -> Result<(), VolumeError> {
        let mut progress = self.progress.subscribe();
        let epoch = {
            let mut state = self.state_mut();
            if state.closing {
                return Err(VolumeError::Closed);
            }
            state.close_cut()
        };
        self.cut_wanted.notify_one();
        loop {
            self.check()?;
            if progress.borrow_and_update().epoch >= epoch {
                return Ok(());
            }
            tokio::select! {
                _ = progress.changed() => {}
                error = self.failed() => return Err(error),
            }
        }
    }
}

/// Runs of blocks that a tree names in objects of other volumes, ascending.
struct Foreign<'a> {
    core: &'a Core,
    root: Option<Root>,
    /// What is before it was looked at; none: everything was.
    next: Option<u64>,
    found: VecDeque<Run>,
}

impl<'a> Foreign<'a> {
    fn new(core: &'a Core, root: Option<Root>) -> Self {
        Self { core, root, next: Some(0), found: VecDeque::new() }
    }

    /// The next ones, `blocks` blocks of them or fewer; none at the end.
    async fn next(&mut self, blocks: u64) -> Result<Vec<Run>, VolumeError> {
        let (mut runs, mut room) = (Vec::new(), blocks);
        while room > 0 {
            if let Some(Run { block, count }) = self.found.pop_front() {
                let taken = count.min(room);
                runs.push(Run { block, count: taken });
                room -= taken;
                if taken < count {
                    self.found.push_front(Run { block: block + taken, count: count - taken });
                }
            } else if let Some(from) = self.next {
                self.next = self.look(from).await?;
            } else {
                break;
            }
        }
        Ok(runs)
    }

    /// Looks at the next pages from a block on that there are. The block after those.
    async fn look(&mut self, from: u64) -> Result<Option<u64>, VolumeError> {
        let (pages, own) = (&*self.core.frames, self.core.bucket.header.volume);
        let first = tree::next_leaf(pages, MapKind::Blocks, self.root.as_ref(), from).await?;
        let Some(first) = first.map(|leaf| leaf.max(from)) else { return Ok(None) };
        let count = WINDOW_BLOCKS.min(u64::MAX - first);
        let extents = tree::lookup(pages, self.root.as_ref(), Run { block: first, count }).await?;
        let foreign = extents.into_iter().filter_map(|extent| match &extent.target {
            Target::Frame(frame, _) if frame.object.owner != own => {
                Some(Run { block: extent.block, count: extent.count })
            }
            _ => None,
        });
        self.found.extend(foreign);
        // All of it may be in memory.
        tokio::task::yield_now().await;
        Ok((count == WINDOW_BLOCKS).then(|| first + count))
    }
}
