//! Two states of the block map compared: which runs of blocks have another place in the later one.
//!
//! # Overview
//! A state is a tree and what lies on top of it. Both trees are walked together, in the order of the keys; a page that
//! both have is not loaded, and nothing below it. What lies on top is in memory, so the runs in which the two differ there
//! are known from the start.
//!
//! # Invariants
//! - What lies on top of a tree is younger than its pages: a frame on top of one state is named by no page of its tree.
//! - Memory holds what lies on top, the way down from the roots, and the leaves under way.

use std::{collections::VecDeque, sync::Arc};

use futures::{
    future::{BoxFuture, FutureExt},
    stream::{FuturesOrdered, StreamExt},
};

use super::{
    extents::ExtentMap,
    tree::{PageAt, Pages, last_key},
};
use crate::format::{
    ids::FrameRef,
    index::{MapKind, Run},
    manifest::Root,
    page::{Extent, FANOUT_BITS, LEVEL_MAX, Page, Target, span_bits},
};

/// Leaves under way at once: enough to hide a store's latency.
const PAGE_LOADS_MAX: usize = 16;

/// A state of the block map.
#[derive(Clone, Debug, Default)]
pub struct MapState {
    /// Its tree.
    pub root: Option<Root>,
    /// What hides what the tree says.
    pub extents: ExtentMap,
}

/// A run in which what lies on top differs.
#[derive(Clone, Copy, Debug)]
struct OnTop {
    first: u64,
    last: u64,
    /// Only the trees tell whether, or to what, the place changes.
    needs_pages: bool,
}

/// What stands at a page's place in a tree.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    /// A page.
    Page(FrameRef),
    /// No page, but the root of a lower tree below it, at the first slot.
    Raised(Root),
}

/// The same place in both trees.
#[derive(Clone, Copy, Debug)]
struct Pair {
    level: u8,
    first: u64,
    last: u64,
    before: Option<Node>,
    after: Option<Node>,
}

/// The pages of a pair; none where there is none, or none is needed.
type Loaded = [Option<Arc<Page>>; 2];

/// A pair whose pages are being loaded.
type Load<'a, E> = BoxFuture<'a, Result<(Pair, Loaded), E>>;

/// A comparison under way.
pub struct Compare<'a, P: Pages> {
    pages: &'a P,
    before: &'a MapState,
    after: &'a MapState,
    on_top: Vec<OnTop>,
    /// Still to be looked at, the next one last.
    pending: Vec<Pair>,
    loading: FuturesOrdered<Load<'a, P::Error>>,
    /// What was loaded before what is being loaded.
    loaded: VecDeque<Result<(Pair, Loaded), P::Error>>,
    /// What was last sent for is an inner page: its children come before all else.
    at_inner: bool,
}

impl<'a, P: Pages> Compare<'a, P> {
    /// Compares `after` with `before`.
    pub fn new(pages: &'a P, before: &'a MapState, after: &'a MapState) -> Self {
        let roots = [before.root, after.root];
        let level = roots.iter().flatten().map(|root| root.level).max().unwrap_or(0);
        let node =
            |root: Root| if root.level == level { Node::Page(root.page()) } else { Node::Raised(root) };
        let last = last_key(level, 0);
        let trees =
            Pair { level, first: 0, last, before: before.root.map(node), after: after.root.map(node) };
        let mut pending = Vec::new();
        if level < LEVEL_MAX {
            pending.push(Pair { first: last + 1, last: u64::MAX, before: None, after: None, ..trees });
        }
        pending.push(trees);
        let on_top = on_top(before, after);
        let (loading, loaded) = (FuturesOrdered::new(), VecDeque::new());
        Self { pages, before, after, on_top, pending, loading, loaded, at_inner: false }
    }

    /// The next runs whose place differs, ascending, with their place in the later state: a hole where it has none.
    /// `None` at the end.
    ///
    /// # Errors
    /// A page that cannot be had: what lies below it is not known.
    pub async fn next(&mut self) -> Result<Option<Vec<Extent>>, P::Error> {
        loop {
            while !self.at_inner
                && self.loading.len() + self.loaded.len() < PAGE_LOADS_MAX
                && let Some(pair) = self.pending.pop()
            {
                self.send(pair);
            }
            let loaded = match self.loaded.pop_front() {
                Some(loaded) => Some(loaded),
                None => self.loading.next().await,
            };
            let Some(loaded) = loaded else { return Ok(None) };
            let (pair, pages) = loaded?;
            let found = if pair.level > 0 && pages.iter().any(Option::is_some) || pair.is_raised() {
                self.at_inner = false;
                self.descend(&pair, &pages);
                continue;
            } else {
                self.differences(&pair, &pages)
            };
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
    }

    /// Ends what is under way. Before anything else is waited for that may read the same pages: each is loaded once at a time, by
    /// whoever came first, and nobody looks at these loads meanwhile.
    pub async fn settle(&mut self) {
        while let Some(loaded) = self.loading.next().await {
            self.loaded.push_back(loaded);
        }
    }

    /// The runs on top within `first` to `last`.
    fn on_top(&self, first: u64, last: u64) -> impl Iterator<Item = &OnTop> {
        let start = self.on_top.partition_point(|run| run.last < first);
        self.on_top[start..].iter().take_while(move |run| run.first <= last)
    }

    fn send(&mut self, pair: Pair) {
        let Pair { level, first, .. } = pair;
        let is_equal = pair.before == pair.after;
        let is_needed = !is_equal || self.on_top(first, pair.last).any(|run| run.needs_pages);
        let page = |node: Option<Node>| match node {
            Some(Node::Page(frame)) if is_needed => {
                Some(PageAt { frame, map: MapKind::Blocks, level, first_key: first })
            }
            _ => None,
        };
        let (before, after) = (page(pair.before), page(pair.after));
        self.at_inner = level > 0 && (before.is_some() || after.is_some()) || pair.is_raised();
        let pages = self.pages;
        let load = async move |at: Option<PageAt>| match at {
            Some(at) => pages.load(at).await.map(Some),
            None => Ok(None),
        };
        let both = async move {
            if is_equal {
                let page = load(before).await?;
                return Ok((pair, [page.clone(), page]));
            }
            let (before, after) = futures::try_join!(load(before), load(after))?;
            Ok((pair, [before, after]))
        };
        self.loading.push_back(both.boxed());
    }

    /// Goes on with those of the pages below that differ, or that something on top is of.
    fn descend(&mut self, pair: &Pair, pages: &Loaded) {
        let [mut before, mut after] = [(&pair.before, &pages[0]), (&pair.after, &pages[1])]
            .map(|(node, page)| children(pair, node, page));
        let level = pair.level - 1;
        let slot_bits = FANOUT_BITS.min(64 - span_bits(level));
        let mut below = Vec::new();
        for slot in 0..(1_u16 << slot_bits) {
            let first = pair.first | (u64::from(slot) << span_bits(level));
            let child = Pair {
                level,
                first,
                last: last_key(level, first),
                before: before.next_if(|child| child.0 == slot).map(|child| child.1),
                after: after.next_if(|child| child.0 == slot).map(|child| child.1),
            };
            if child.before != child.after || self.on_top(first, child.last).next().is_some() {
                below.push(child);
            }
        }
        self.pending.extend(below.into_iter().rev());
    }

    fn differences(&self, pair: &Pair, pages: &Loaded) -> Vec<Extent> {
        let run = run(pair.first, pair.last);
        let mut found = Vec::new();
        if pair.before == pair.after && pair.before.is_some() && pages[0].is_none() {
            // The trees agree: what differs is what lies on top, and in the later state all of it does.
            for on_top in self.on_top(pair.first, pair.last) {
                let first = on_top.first.max(pair.first);
                let last = on_top.last.min(pair.last);
                found.extend(self.after.extents.overlapping(self::run(first, last)));
            }
            return found;
        }
        let before = resolve(self.before, run, &pages[0]);
        let after = resolve(self.after, run, &pages[1]);
        beside(&before, &after, |block, count, before, after| {
            let (before, after) = (before.unwrap_or(Target::Hole), after.unwrap_or(Target::Hole));
            if before != after {
                found.push(Extent { block, count, target: after });
            }
        });
        found
    }
}

impl Pair {
    /// Whether one of the trees is lower, and has to be gone down to.
    fn is_raised(&self) -> bool {
        let raised = |node: &Option<Node>| matches!(node, Some(Node::Raised(_)));
        self.before != self.after && (raised(&self.before) || raised(&self.after))
    }
}

fn run(first: u64, last: u64) -> Run {
    Run { block: first, count: (last - first).saturating_add(1) }
}

/// What lies below a node of a pair, by slot.
fn children(
    pair: &Pair,
    node: &Option<Node>,
    page: &Option<Arc<Page>>,
) -> std::iter::Peekable<std::vec::IntoIter<(u16, Node)>> {
    let below = match (node, page.as_deref()) {
        (Some(Node::Raised(root)), _) if root.level + 1 == pair.level => vec![(0, Node::Page(root.page()))],
        (Some(Node::Raised(root)), _) => vec![(0, Node::Raised(*root))],
        (_, Some(Page::Inner(children))) => {
            children.iter().map(|(slot, frame)| (*slot, Node::Page(*frame))).collect()
        }
        _ => Vec::new(),
    };
    below.into_iter().peekable()
}

/// What a state says of a run, given the leaf of it.
fn resolve(state: &MapState, run: Run, leaf: &Option<Arc<Page>>) -> Vec<Extent> {
    let mut merged = ExtentMap::default();
    if let Some(Page::Blocks(extents)) = leaf.as_deref() {
        extents.iter().for_each(|extent| merged.insert(extent.clone(), |_| {}));
    }
    state.extents.overlapping(run).for_each(|extent| merged.insert(extent, |_| {}));
    merged.iter().collect()
}

/// The runs in which what lies on top of the two differs.
fn on_top(before: &MapState, after: &MapState) -> Vec<OnTop> {
    let [before, after] = [before, after].map(|state| state.extents.iter().collect::<Vec<_>>());
    let mut found: Vec<OnTop> = Vec::new();
    beside(&before, &after, |block, count, before, after| {
        if before == after {
            return;
        }
        let is_decided = match (&before, &after) {
            (_, None) => false,
            (None, Some(after)) => matches!(after, Target::Frame(..)),
            (Some(_), Some(_)) => true,
        };
        found.push(OnTop { first: block, last: block + (count - 1), needs_pages: !is_decided });
    });
    found
}

/// Calls `each` with every longest run in which each of two sorted lists of extents says one thing or nothing, where at
/// least one says something: its first block, its length, and what they say.
fn beside(
    before: &[Extent],
    after: &[Extent],
    mut each: impl FnMut(u64, u64, Option<Target>, Option<Target>),
) {
    let (mut i, mut j) = (0, 0);
    let mut at = 0;
    while i < before.len() || j < after.len() {
        let heads = [before.get(i), after.get(j)];
        let starts = heads.iter().flatten().map(|extent| extent.block.max(at));
        at = starts.min().unwrap_or(at);
        let bound = |extent: &&Extent| {
            if extent.block > at { extent.block } else { extent.block + extent.count }
        };
        let until = heads.iter().flatten().map(bound).min().unwrap_or(at);
        let says = |extent: Option<&Extent>| {
            extent.filter(|extent| extent.block <= at).map(|extent| extent.target.skip(at - extent.block))
        };
        each(at, until - at, says(heads[0]), says(heads[1]));
        at = until;
        i += usize::from(before.get(i).is_some_and(|extent| extent.block + extent.count <= at));
        j += usize::from(after.get(j).is_some_and(|extent| extent.block + extent.count <= at));
    }
}
