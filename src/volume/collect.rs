//! The collector: deletes objects that nobody needs, and moves what is left of sparse ones.
//!
//! # Overview
//! A task beside the publisher ([`collector`]). It walks the object table's leaves, all of them after opening and then those
//! that a checkpoint touched, and does what [`crate::gc`] decides: garbage is deleted in batches, each after a check of claims;
//! what lives in sparse objects goes along with the next cut ([`batch`]), pages with the next checkpoint. Here is what the two
//! tell each other: the publisher what was published ([`News`]), the collector when manifests should be let go ([`Shared`]).
//!
//! # Crash consistency
//! An object is deleted only when a published manifest says that it is dead, and its entry goes with a later checkpoint. A
//! crash in between leaves an entry without its object, which is deleted once more, without harm. What was moved is in a cut like any
//! other, and the old object dies with the checkpoint that finds it empty.
//!
//! # Errors and retries
//! A newer claim ends it. Whatever else goes wrong is tried again later: the volume does not need it.

mod batch;
mod collector;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

pub(super) use self::collector::run;
use super::{
    bucket::Bucket,
    core::Core,
    error::{Kind, VolumeError},
};
use crate::{
    format::ids::{Epoch, Sequence},
    gc::horizon::Line,
    map::tree::PageAt,
};

/// Deleted objects whose entries wait for a checkpoint; then one is due, and no more are deleted before it.
const DELETED_MAX: usize = 1 << 16;
/// Pages that wait for a checkpoint to be moved.
const PAGES_MAX: usize = 256;
/// Objects known to hold pages, so that they are not taken for tiny ones again and again.
const PAGE_OBJECTS_MAX: usize = 4096;
/// Times that a command has the collector settle, at most, while clients go on writing.
const ROUNDS_MAX: u32 = 16;

/// What the collector has done since the volume was opened, and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Objects deleted.
    pub deleted: u64,
    /// Their lengths, bytes.
    pub deleted_bytes: u64,
    /// Plaintext moved out of sparse objects, bytes.
    pub moved_bytes: u64,
    /// Dead objects that wait for manifests or for the grace time.
    pub waiting: u64,
    /// Their lengths, bytes.
    pub waiting_bytes: u64,
}

/// What publisher and collector tell each other.
#[derive(Debug)]
pub struct Shared {
    line: Line,
    began: Instant,
    touched: BTreeSet<u64>,
    all_touched: bool,
    /// Deleted objects that the published table still has, and their lengths, bytes.
    pub(super) deleted: BTreeMap<Sequence, u64>,
    /// Pages of sparse objects, for the next checkpoint.
    pub(super) pages: Vec<PageAt>,
    /// Manifests are to be let go as soon as may be.
    pub(super) pressed: bool,
    /// Nothing but manifests holds something back.
    pub(super) held_by_manifests: bool,
    /// There is nothing to be done until something is published, or time passes.
    pub(super) settled: bool,
    /// Nobody has written for a while.
    idle: bool,
    page_objects: BTreeSet<Sequence>,
    /// What clients wrote of the newest cut, plaintext, bytes.
    written_bytes: u64,
    waiting: Vec<Request>,
    figures: Figures,
}

#[derive(Debug)]
struct Request {
    rounds: u32,
    done: oneshot::Sender<Figures>,
}

/// What was published, as far as the collector needs to know.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) epoch: Epoch,
    pub(super) roots: Epoch,
    pub(super) oldest_kept: Epoch,
    /// By a checkpoint, of the object table.
    pub(super) touched: BTreeSet<u64>,
    /// Entries that the checkpoint took out.
    pub(super) deleted: BTreeMap<Sequence, u64>,
    /// Pages that the checkpoint moved.
    pub(super) moved: Vec<PageAt>,
    /// New objects that hold pages.
    pub(super) page_objects: Vec<Sequence>,
    /// Whether a snapshot was deleted.
    pub(super) unpinned: bool,
    /// What clients wrote of its cut, plaintext, bytes.
    pub(super) written_bytes: u64,
}

impl Shared {
    /// For a volume whose newest manifest is of `epoch`, with roots of `roots` that were published `age` ago or before.
    #[must_use]
    pub fn new(epoch: Epoch, roots: Epoch, oldest_kept: Epoch, age: Duration) -> Self {
        // An age counts from before there was this volume: the line's clock is that much ahead.
        let began = Instant::now();
        let began = began.checked_sub(age).unwrap_or(began);
        Self {
            line: Line::new(epoch, roots, oldest_kept, Duration::ZERO),
            began,
            touched: BTreeSet::new(),
            all_touched: true,
            deleted: BTreeMap::new(),
            pages: Vec::new(),
            pressed: false,
            held_by_manifests: false,
            settled: false,
            idle: false,
            page_objects: BTreeSet::new(),
            written_bytes: 0,
            waiting: Vec::new(),
            figures: Figures::default(),
        }
    }

    /// A manifest was published, and the claims checked.
    pub(super) fn publish(&mut self, news: News) {
        self.line.publish(news.epoch, news.roots, news.oldest_kept, self.began.elapsed());
        self.written_bytes = news.written_bytes;
        self.all_touched |= news.unpinned;
        self.touched.extend(news.touched);
        news.deleted.keys().for_each(|sequence| {
            self.deleted.remove(sequence);
            self.page_objects.remove(sequence);
        });
        self.pages.retain(|page| !news.moved.contains(page));
        self.page_objects.extend(news.page_objects);
        while self.page_objects.len() > PAGE_OBJECTS_MAX {
            self.page_objects.pop_first();
        }
        self.settled = false;
    }

    /// Whether a checkpoint is due for the entries of what was deleted.
    pub(super) fn is_full(&self) -> bool {
        self.deleted.len() >= DELETED_MAX
    }

    /// The lengths of deleted objects that the published table and its totals still have, bytes.
    pub(super) fn unaccounted_bytes(&self) -> u64 {
        self.deleted.values().sum()
    }

    /// Whether somebody waits for the collector to be done.
    pub(super) fn is_hurried(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Nobody has written for a while, or somebody has.
    pub(super) fn set_idle(&mut self, idle: bool) -> bool {
        std::mem::replace(&mut self.idle, idle) != idle
    }

    /// What was done, and what is left.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Nothing is left for those who wait, or they have waited long enough.
    pub(super) fn answer(&mut self, nothing_left: bool) {
        let figures = self.figures;
        let (done, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|request| nothing_left || request.rounds >= ROUNDS_MAX);
        self.waiting = waiting;
        for request in done {
            // Nobody may be waiting any more.
            let _ = request.done.send(figures);
        }
    }
}

impl Core {
    /// Collects until nothing is left that may go now. What readers elsewhere still have their grace time for stays, and is
    /// counted as waiting, but where there is so much waste that nobody is waited for. While clients write there is always more:
    /// then it ends after a few rounds.
    ///
    /// # Errors
    /// `ReadOnly`, and what ends the tenure.
    pub async fn collect(&self) -> Result<Figures, VolumeError> {
        self.log()?;
        self.check()?;
        let (done, figures) = oneshot::channel();
        {
            let mut shared = self.collecting();
            shared.waiting.push(Request { rounds: 0, done });
            shared.all_touched = true;
            shared.settled = false;
        }
        self.collect_wanted.notify_one();
        self.answered(figures).await
    }
}
/// The roots of the oldest manifest from epoch `oldest` on.
pub(super) async fn oldest_roots(bucket: &Bucket, oldest: Epoch) -> Result<Epoch, VolumeError> {
    let mut kept = bucket.list_manifests().await?;
    kept.retain(|name| name.1 >= oldest);
    let first = kept.iter().map(|name| name.1).min().unwrap_or(oldest);
    let mut roots = None;
    for (generation, epoch) in kept.into_iter().filter(|name| name.1 == first) {
        // One that is damaged could need anything; it goes in time.
        let found = match bucket.load_manifest(generation, epoch).await {
            Ok(Some(found)) => found.manifest.roots.epoch,
            Ok(None) => continue,
            Err(error) if error.kind() == Kind::Corrupt => Epoch(0),
            Err(error) => return Err(error),
        };
        roots = Some(roots.map_or(found, |roots: Epoch| roots.min(found)));
    }
    Ok(roots.unwrap_or_default())
}
