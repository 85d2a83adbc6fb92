//! The radix tree of pages: looking up, and writing new pages for what changed.
//!
//! A page at level `l` from key `k` covers the keys `k .. k + 2^(9 (l + 1))`. The root covers the keys from 0 on; it
//! gains a level when a key beyond it is written. Work is bounded by the pages that exist below the changed ranges.

use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;
use futures::stream::StreamExt;

use crate::format::{
    ids::FrameRef,
    index::{MapKind, Run},
    manifest::Root,
    page::{Extent, FANOUT_BITS, LEVEL_MAX, Page, span_bits},
};

/// Reads of pages at once: enough to hide a store's latency.
pub const PAGE_LOADS_MAX: usize = 16;
/// Pages that a rewriting has before their turn, bytes as they are stored, for each level; in memory they take up to three times
/// that. All children of a page of a sparse map, so that they are found together where they lie together.
const AHEAD_BYTES_MAX: u64 = 4 << 20;

/// A page's place: where it is stored, and what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAt {
    /// Its frame.
    pub frame: FrameRef,
    /// The map it belongs to.
    pub map: MapKind,
    /// 0: a leaf.
    pub level: u8,
    /// First key it covers.
    pub first_key: u64,
}

/// Where pages are read from.
#[async_trait]
pub trait Pages: Send + Sync {
    /// Why a page cannot be had.
    type Error: Send;
    /// Reads and decodes a page.
    async fn load(&self, at: PageAt) -> Result<Arc<Page>, Self::Error>;
    /// The same for pages without repeats, some at once.
    async fn load_all(&self, places: &[PageAt]) -> Vec<Result<Arc<Page>, Self::Error>> {
        let loads: Vec<_> = places.iter().map(|at| self.load(*at)).collect();
        futures::stream::iter(loads).buffered(PAGE_LOADS_MAX).collect().await
    }
    /// Whether an error means that the page is damaged for good, and not that it cannot be had now.
    fn is_damage(_: &Self::Error) -> bool {
        false
    }
}

/// Where new pages go.
#[async_trait]
pub trait PageSink: Send {
    /// Why a page cannot be written.
    type Error: Send;
    /// Writes a page; durable once the manifest that names it is published.
    async fn write(
        &mut self,
        map: MapKind,
        level: u8,
        first_key: u64,
        page: &Page,
    ) -> Result<FrameRef, Self::Error>;
    /// The page in this frame is not part of the new tree.
    fn page_replaced(&mut self, page: &FrameRef);
    /// These blocks of a frame are not named by the new tree.
    fn extent_replaced(&mut self, extent: &Extent);
}

/// Changes to be merged into a tree.
pub trait Changes: Send + Sync {
    /// Which map they are of.
    const MAP: MapKind;
    /// Whether any key from `first` to `last` changes.
    fn touches(&self, first: u64, last: u64) -> bool;
    /// Whether any of them gains an entry; else the range only loses what it has.
    fn creates(&self, first: u64, last: u64) -> bool;
    /// Whether every key from `first` to `last` changes, so that a leaf does not depend on what it was.
    fn covers(&self, _first: u64, _last: u64) -> bool {
        false
    }
    /// Whether the page in this frame is to be written anew even if it stays the same; its keys are touched, then.
    fn moves(&self, _page: &FrameRef) -> bool {
        false
    }
    /// The highest key that gains an entry.
    fn highest(&self) -> Option<u64>;
    /// The leaf for the keys from `first` to `last`, given what it was; an empty one is not written. Calls
    /// `replaced` with every extent of `old` that is not in the result.
    fn merge(&self, old: Option<&Page>, first: u64, last: u64, replaced: &mut dyn FnMut(&Extent)) -> Page;
}

/// Last key that a page at `level` from `first_key` on covers.
#[must_use]
pub fn last_key(level: u8, first_key: u64) -> u64 {
    first_key | (u64::MAX >> 64_u32.saturating_sub(span_bits(level)))
}

/// Whether the keys from `first` to `last` are those of one of the pages, or of one above it.
pub(super) fn leads_to(pages: &[PageAt], map: MapKind, first: u64, last: u64) -> bool {
    let within = |at: &PageAt| first <= at.first_key && last_key(at.level, at.first_key) <= last;
    pages.iter().any(|at| at.map == map && within(at))
}

fn child_key(level: u8, first_key: u64, slot: u16) -> u64 {
    first_key | (u64::from(slot) << span_bits(level - 1))
}

fn is_empty(page: &Page) -> bool {
    match page {
        Page::Inner(children) => children.is_empty(),
        Page::Blocks(extents) => extents.is_empty(),
        Page::Objects(entries) => entries.is_empty(),
        Page::Snapshots(entries) => entries.is_empty(),
    }
}

/// The first key of the first leaf that may hold a key from `from` on. Loads the pages above it.
pub async fn next_leaf<P: Pages>(
    pages: &P,
    map: MapKind,
    root: Option<&Root>,
    from: u64,
) -> Result<Option<u64>, P::Error> {
    let Some(root) = root else { return Ok(None) };
    // The next one last.
    let mut pending = vec![PageAt { frame: root.page(), map, level: root.level, first_key: 0 }];
    while let Some(at) = pending.pop() {
        if last_key(at.level, at.first_key) < from {
            continue;
        }
        if at.level == 0 {
            return Ok(Some(at.first_key));
        }
        let page = pages.load(at).await?;
        pending.extend(children_within(&at, &page, from, u64::MAX).into_iter().rev());
    }
    Ok(None)
}

/// All leaves that hold keys from `first` to `last`, ascending. Loads the pages on the way, the next few ahead.
pub async fn leaves<P: Pages>(
    pages: &P,
    map: MapKind,
    root: Option<&Root>,
    first: u64,
    last: u64,
) -> Result<Vec<Arc<Page>>, P::Error> {
    let Some(root) = root else { return Ok(Vec::new()) };
    let mut row = vec![PageAt { frame: root.page(), map, level: root.level, first_key: 0 }];
    for level in (0..=root.level).rev() {
        let loaded = load_all(pages, &row).await?;
        if level == 0 {
            return Ok(loaded);
        }
        let below = |(at, page): (&PageAt, &Arc<Page>)| children_within(at, page, first, last);
        row = row.iter().zip(&loaded).flat_map(below).collect();
    }
    Ok(Vec::new())
}

/// The page of a map at `level` from `first_key` on, if there is one. Loads those above it.
pub async fn find<P: Pages>(
    pages: &P,
    map: MapKind,
    root: Option<&Root>,
    level: u8,
    first_key: u64,
) -> Result<Option<FrameRef>, P::Error> {
    let Some(root) = root.filter(|root| root.level >= level) else { return Ok(None) };
    let mut at = PageAt { frame: root.page(), map, level: root.level, first_key: 0 };
    while at.level > level {
        let page = pages.load(at).await?;
        match children_within(&at, &page, first_key, first_key).first() {
            Some(child) => at = *child,
            None => return Ok(None),
        }
    }
    Ok((at.first_key == first_key).then_some(at.frame))
}

fn children_within(at: &PageAt, page: &Page, first: u64, last: u64) -> Vec<PageAt> {
    let Page::Inner(children) = page else { return Vec::new() };
    let place = |(slot, frame): &(u16, FrameRef)| PageAt {
        frame: *frame,
        map: at.map,
        level: at.level - 1,
        first_key: child_key(at.level, at.first_key, *slot),
    };
    let within = |child: &PageAt| child.first_key <= last && last_key(child.level, child.first_key) >= first;
    children.iter().map(place).filter(within).collect()
}

async fn load_all<P: Pages>(pages: &P, row: &[PageAt]) -> Result<Vec<Arc<Page>>, P::Error> {
    pages.load_all(row).await.into_iter().collect()
}

/// First keys of all leaves, ascending. Loads the pages above them.
pub async fn leaf_keys<P: Pages>(pages: &P, map: MapKind, root: Option<&Root>) -> Result<Vec<u64>, P::Error> {
    let Some(root) = root else { return Ok(Vec::new()) };
    let mut row = vec![PageAt { frame: root.page(), map, level: root.level, first_key: 0 }];
    for _ in 0..root.level {
        let loaded = load_all(pages, &row).await?;
        row = row.iter().zip(&loaded).flat_map(|(at, page)| children_within(at, page, 0, u64::MAX)).collect();
    }
    Ok(row.iter().map(|at| at.first_key).collect())
}

/// The pages of a map that are `wanted`, inner ones and leaves, in no order. Loads the pages above the leaves.
pub async fn select<P: Pages>(
    pages: &P,
    map: MapKind,
    root: Option<&Root>,
    wanted: impl Fn(&PageAt) -> bool,
) -> Result<Vec<PageAt>, P::Error> {
    let mut found = Vec::new();
    let mut pending: Vec<PageAt> = root
        .map(|root| PageAt { frame: root.page(), map, level: root.level, first_key: 0 })
        .into_iter()
        .collect();
    while !pending.is_empty() {
        // The last ones are the deepest: what is pending stays bounded by the fan-out and the depth.
        let row = pending.split_off(pending.len().saturating_sub(PAGE_LOADS_MAX));
        found.extend(row.iter().filter(|at| wanted(at)));
        let inner: Vec<PageAt> = row.into_iter().filter(|at| at.level > 0).collect();
        let loaded = load_all(pages, &inner).await?;
        let below = |(at, page): (&PageAt, &Arc<Page>)| children_within(at, page, 0, u64::MAX);
        pending.extend(inner.iter().zip(&loaded).flat_map(below));
    }
    Ok(found)
}

/// The extents of the block map that touch `run`, clipped to it, ascending; what is in none was never written.
pub async fn lookup<P: Pages>(pages: &P, root: Option<&Root>, run: Run) -> Result<Vec<Extent>, P::Error> {
    let end = run.block + run.count;
    let leaves = leaves(pages, MapKind::Blocks, root, run.block, end - 1).await?;
    let mut found = Vec::new();
    for leaf in &leaves {
        let Page::Blocks(extents) = &**leaf else { continue };
        let start = extents.partition_point(|extent| extent.block + extent.count <= run.block);
        for extent in extents[start..].iter().take_while(|extent| extent.block < end) {
            let from = extent.block.max(run.block);
            found.push(Extent {
                block: from,
                count: (extent.block + extent.count).min(end) - from,
                target: extent.target.skip(from - extent.block),
            });
        }
    }
    Ok(found)
}

/// The places of all pages that a change of the keys of `changes` replaces: those leaves that exist, and their paths.
pub async fn paths<P: Pages, C: Changes>(
    pages: &P,
    root: Option<&Root>,
    changes: &C,
) -> Result<Vec<FrameRef>, P::Error> {
    let Some(root) = root else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut row = vec![PageAt { frame: root.page(), map: C::MAP, level: root.level, first_key: 0 }];
    loop {
        row.retain(|at| changes.touches(at.first_key, last_key(at.level, at.first_key)));
        found.extend(row.iter().map(|at| at.frame));
        if row.first().is_none_or(|at| at.level == 0) {
            return Ok(found);
        }
        let loaded = load_all(pages, &row).await?;
        row = row.iter().zip(&loaded).flat_map(|(at, page)| children_within(at, page, 0, u64::MAX)).collect();
    }
}

/// Merges `changes` into the tree at `root`: writes new pages for what changed, children before parents, and returns
/// the new root. The old tree stays whole.
pub async fn rewrite<P, S, C, E>(
    pages: &P,
    root: Option<Root>,
    changes: &C,
    sink: &mut S,
) -> Result<Option<Root>, E>
where
    P: Pages,
    S: PageSink,
    C: Changes,
    E: From<P::Error> + From<S::Error> + Send,
{
    let wanted = changes.highest().map(level_for);
    let old_level = root.as_ref().map(|root| root.level);
    let Some(level) = old_level.max(wanted) else { return Ok(None) };
    let mut rewriter = Rewriter { pages, sink, changes };
    let old = match root {
        None => None,
        Some(root) if root.level == level => Some(Old::Stored(root.page())),
        Some(root) => Some(Old::Raised(root)),
    };
    let page = rewriter.page::<E>(level, 0, old, None).await?;
    Ok(page.map(|page| Root::new(level, &page)))
}

fn level_for(key: u64) -> u8 {
    (0..=LEVEL_MAX).find(|level| last_key(*level, 0) >= key).unwrap_or(LEVEL_MAX)
}

/// What stood in a page's place before.
#[derive(Clone, Copy)]
enum Old {
    /// A page.
    Stored(FrameRef),
    /// No page, but the root of a lower tree below it, at the first slot.
    Raised(Root),
}

struct Rewriter<'a, P, S, C> {
    pages: &'a P,
    sink: &'a mut S,
    changes: &'a C,
}

impl<P: Pages, S: PageSink, C: Changes> Rewriter<'_, P, S, C> {
    /// The page for `level` and `first_key` after the changes. `loaded`: what `old` is, where that is known.
    async fn page<E>(
        &mut self,
        level: u8,
        first_key: u64,
        old: Option<Old>,
        loaded: Option<Arc<Page>>,
    ) -> Result<Option<FrameRef>, E>
    where
        E: From<P::Error> + From<S::Error> + Send,
    {
        let last = last_key(level, first_key);
        match old {
            None if !self.changes.creates(first_key, last) => return Ok(None),
            Some(Old::Stored(frame)) if !self.changes.touches(first_key, last) => return Ok(Some(frame)),
            _ => {}
        }
        let old_page = match old {
            Some(Old::Stored(_)) if loaded.is_some() => loaded,
            Some(Old::Stored(frame)) => {
                match self.pages.load(PageAt { frame, map: C::MAP, level, first_key }).await {
                    // What it held is not needed; what that was in other objects stays counted there.
                    Err(error) if P::is_damage(&error) && self.changes.covers(first_key, last) => None,
                    page => Some(page?),
                }
            }
            _ => None,
        };
        let page = if level == 0 {
            let Self { changes, sink, .. } = self;
            changes.merge(old_page.as_deref(), first_key, last, &mut |extent| sink.extent_replaced(extent))
        } else {
            let children = match (&old, old_page.as_deref()) {
                (_, Some(Page::Inner(children))) => {
                    children.iter().map(|(slot, frame)| (*slot, Old::Stored(*frame))).collect()
                }
                (Some(Old::Raised(root)), _) if root.level + 1 == level => {
                    vec![(0, Old::Stored(root.page()))]
                }
                (Some(Old::Raised(root)), _) => vec![(0, Old::Raised(*root))],
                _ => Vec::new(),
            };
            Page::Inner(Box::pin(self.children::<E>(level, first_key, &children)).await?)
        };
        if old_page.as_deref() == Some(&page)
            && let Some(Old::Stored(frame)) = old
            && !self.changes.moves(&frame)
        {
            return Ok(Some(frame));
        }
        if let Some(Old::Stored(frame)) = old {
            self.sink.page_replaced(&frame);
        }
        if is_empty(&page) {
            return Ok(None);
        }
        Ok(Some(self.sink.write(C::MAP, level, first_key, &page).await?))
    }

    async fn children<E>(
        &mut self,
        level: u8,
        first_key: u64,
        old: &[(u16, Old)],
    ) -> Result<Vec<(u16, FrameRef)>, E>
    where
        E: From<P::Error> + From<S::Error> + Send,
    {
        let (mut touched, mut ahead) = (self.touched(level, first_key, old), VecDeque::new());
        let mut children = Vec::new();
        let mut old = old.iter().peekable();
        // The topmost level has fewer: the keys end before its slots do.
        let slot_bits = FANOUT_BITS.min(64 - span_bits(level - 1));
        for slot in 0..(1_u16 << slot_bits) {
            let key = child_key(level, first_key, slot);
            let before = old.next_if(|(old_slot, _)| *old_slot == slot).map(|(_, old)| *old);
            let mut loaded = None;
            if touched.front().is_some_and(|at| at.first_key == key) {
                if ahead.is_empty() {
                    ahead = self.load_ahead(&touched).await?;
                }
                touched.pop_front();
                loaded = ahead.pop_front().flatten();
            }
            if let Some(page) = self.page::<E>(level - 1, key, before, loaded).await? {
                children.push((slot, page));
            }
        }
        Ok(children)
    }

    /// Those children that will be needed.
    fn touched(&self, level: u8, first_key: u64, old: &[(u16, Old)]) -> VecDeque<PageAt> {
        let place = |(slot, old): &(u16, Old)| {
            let first_key = child_key(level, first_key, *slot);
            let Old::Stored(frame) = *old else { return None };
            let at = PageAt { frame, map: C::MAP, level: level - 1, first_key };
            self.changes.touches(first_key, last_key(level - 1, first_key)).then_some(at)
        };
        old.iter().filter_map(place).collect()
    }

    /// The first of `touched`, several at a time. One that is damaged is none here, and found so again when its turn comes.
    async fn load_ahead(&self, touched: &VecDeque<PageAt>) -> Result<VecDeque<Option<Arc<Page>>>, P::Error> {
        let mut bytes = 0;
        let has_room = |at: &&PageAt| {
            let is_first = bytes == 0;
            bytes += u64::from(at.frame.plain_bytes);
            is_first || bytes <= AHEAD_BYTES_MAX
        };
        let next: Vec<PageAt> = touched.iter().take_while(has_room).copied().collect();
        let loaded = self.pages.load_all(&next).await;
        let whole = |page: Result<Arc<Page>, P::Error>| match page {
            Ok(page) => Ok(Some(page)),
            Err(error) if P::is_damage(&error) => Ok(None),
            Err(error) => Err(error),
        };
        loaded.into_iter().map(whole).collect()
    }
}
