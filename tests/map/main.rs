//! Maps of pages against a map of blocks: sparse huge keys, holes over whole subtrees, roots that rise.

mod compare;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use proptest::prelude::*;
use s3bd::{
    format::{
        ids::{Codec, Epoch, FrameRef, Generation, ObjectRef, Sequence, VolumeId},
        index::{MapKind, Run},
        manifest::Root,
        page::{Extent, Page, Target},
    },
    map::{
        delta::Delta,
        objects::BlockChanges,
        tree::{self, PageAt, PageSink, Pages},
    },
};

const BLOCK_BYTES: u32 = 512;

/// Pages in memory, encoded, by number.
#[derive(Default)]
struct Shelf {
    pages: Mutex<Vec<Vec<u8>>>,
    loads: Mutex<u64>,
}

fn frame(sequence: u64, number: u32, plain_bytes: u32) -> FrameRef {
    let object = ObjectRef {
        owner: VolumeId([1; 16]),
        generation: Generation(1),
        sequence: Sequence(sequence),
        salt: [2; 16],
    };
    FrameRef { object, number, offset: 64, stored_bytes: plain_bytes, plain_bytes, codec: Codec::Plain }
}

#[async_trait]
impl Pages for Shelf {
    type Error = Infallible;

    async fn load(&self, at: PageAt) -> Result<Arc<Page>, Infallible> {
        *self.loads.lock().unwrap() += 1;
        let bytes = self.pages.lock().unwrap()[at.frame.number as usize].clone();
        Ok(Arc::new(
            Page::decode(&bytes, at.map, at.level, at.first_key, BLOCK_BYTES)
                .expect("what was written is whole"),
        ))
    }
}

/// Writes onto a shelf, and notes what goes.
struct Sink<'a> {
    shelf: &'a Shelf,
    written: u64,
    pages_replaced: Vec<FrameRef>,
    blocks_replaced: BTreeMap<u64, Place>,
}

#[async_trait]
impl PageSink for Sink<'_> {
    type Error = Infallible;

    async fn write(&mut self, _: MapKind, _: u8, _: u64, page: &Page) -> Result<FrameRef, Infallible> {
        let mut pages = self.shelf.pages.lock().unwrap();
        pages.push(page.encode().unwrap());
        self.written += 1;
        // So large that of a page's children a few are had before their turn, and not all.
        Ok(frame(9, pages.len() as u32 - 1, 1 << 20))
    }

    fn page_replaced(&mut self, page: &FrameRef) {
        self.pages_replaced.push(*page);
    }

    fn extent_replaced(&mut self, extent: &Extent) {
        for (block, place) in places(extent) {
            assert!(self.blocks_replaced.insert(block, place).is_none(), "block {block} replaced twice");
        }
    }
}

/// Frame and block in it; or lost.
type Place = Option<(u32, u32)>;
type Model = BTreeMap<u64, Place>;

fn places(extent: &Extent) -> Vec<(u64, Place)> {
    (0..extent.count)
        .map(|at| match extent.target.skip(at) {
            Target::Frame(frame, offset) => (extent.block + at, Some((frame.number, offset))),
            Target::Lost => (extent.block + at, None),
            Target::Hole => panic!("holes are not stored"),
        })
        .collect()
}

/// All pages of a tree, and all blocks.
async fn walk(shelf: &Shelf, root: Option<Root>) -> (BTreeSet<u32>, Model) {
    let (mut pages, mut blocks) = (BTreeSet::new(), Model::new());
    let mut row: Vec<PageAt> = root
        .iter()
        .map(|root| PageAt { frame: root.page(), map: MapKind::Blocks, level: root.level, first_key: 0 })
        .collect();
    while let Some(at) = row.pop() {
        assert!(pages.insert(at.frame.number), "a page has one parent");
        match &*shelf.load(at).await.unwrap() {
            Page::Inner(children) => row.extend(children.iter().map(|(slot, frame)| PageAt {
                frame: *frame,
                level: at.level - 1,
                first_key: at.first_key | u64::from(*slot) << (9 * u32::from(at.level)),
                ..at
            })),
            Page::Blocks(extents) => blocks.extend(extents.iter().flat_map(places)),
            _ => panic!("another map's page"),
        }
    }
    (pages, blocks)
}

#[derive(Clone, Debug)]
enum Change {
    Data(Run),
    Lost(Run),
    Hole(Run),
}

fn block() -> impl Strategy<Value = u64> {
    let bases = prop::sample::select(vec![
        0,
        500,
        512,
        1 << 18,
        (1 << 27) - 3,
        1 << 36,
        1 << 45,
        1 << 54,
        u64::MAX / 2,
        u64::MAX - 4000,
    ]);
    (bases, 0..1500_u64).prop_map(|(base, more)| base + more)
}

fn change() -> impl Strategy<Value = Change> {
    let small = || (block(), 1..40_u64).prop_map(|(block, count)| Run { block, count });
    let huge = (block(), 0..64_u32)
        .prop_map(|(block, bits)| Run { block, count: (1 << bits).min(u64::MAX - block) });
    prop_oneof![
        5 => small().prop_map(Change::Data),
        1 => small().prop_map(Change::Lost),
        1 => small().prop_map(Change::Hole),
        1 => huge.prop_map(Change::Hole),
    ]
}

fn apply(model: &mut Model, delta: &mut Delta, change: &Change, number: u32) {
    let (Change::Data(run) | Change::Lost(run) | Change::Hole(run)) = change;
    let target = match change {
        Change::Data(_) => Target::Frame(Arc::new(frame(1, number, 40 * BLOCK_BYTES)), 0),
        Change::Lost(_) => Target::Lost,
        Change::Hole(_) => Target::Hole,
    };
    let end = run.block + run.count;
    let gone: Vec<u64> = model.range(run.block..end).map(|(block, _)| *block).collect();
    gone.iter().for_each(|block| {
        model.remove(block);
    });
    let extent = Extent { block: run.block, count: run.count, target };
    if !matches!(change, Change::Hole(_)) {
        model.extend(places(&extent));
    }
    delta.extents.insert(extent, |_| {});
}

async fn check(rounds: Vec<Vec<Change>>, probes: Vec<Run>) {
    let shelf = Shelf::default();
    let (mut root, mut model, mut number) = (None, Model::new(), 0);
    for changes in rounds {
        let (old_pages, old_blocks) = walk(&shelf, root).await;
        assert_eq!(old_blocks, model);
        let mut delta = Delta::new(BLOCK_BYTES, Epoch(0));
        for change in &changes {
            number += 1;
            apply(&mut model, &mut delta, change, number);
        }
        let changes = BlockChanges::new(&delta);
        let paths = tree::paths(&shelf, root.as_ref(), &changes).await.unwrap();
        let mut sink =
            Sink { shelf: &shelf, written: 0, pages_replaced: Vec::new(), blocks_replaced: BTreeMap::new() };
        *shelf.loads.lock().unwrap() = 0;
        root = tree::rewrite::<_, _, _, Infallible>(&shelf, root, &changes, &mut sink).await.unwrap();
        let loads = *shelf.loads.lock().unwrap();
        let Sink { pages_replaced, blocks_replaced, .. } = sink;
        let (pages, blocks) = walk(&shelf, root).await;
        assert_eq!(blocks, model);
        let replaced: BTreeSet<u32> = pages_replaced.iter().map(|page| page.number).collect();
        assert_eq!(replaced.len(), pages_replaced.len(), "each page is replaced once");
        assert_eq!(
            replaced,
            old_pages.difference(&pages).copied().collect(),
            "what is gone is what was said to go"
        );
        let on_paths: BTreeSet<u32> = paths.iter().map(|page| page.number).collect();
        assert!(replaced.is_subset(&on_paths), "paths foretell every page that goes");
        let touched = |block: u64| delta.extents.overlapping(Run { block, count: 1 }).next().is_some();
        let gone: Model = old_blocks.into_iter().filter(|(block, _)| touched(*block)).collect();
        assert_eq!(blocks_replaced, gone);
        assert!(
            loads <= 2 * on_paths.len() as u64,
            "work follows what changed: {loads} loads for {}",
            on_paths.len()
        );
    }
    for run in probes {
        let found: Model =
            tree::lookup(&shelf, root.as_ref(), run).await.unwrap().iter().flat_map(places).collect();
        let expected: Model = model.range(run.block..run.block + run.count).map(|(a, b)| (*a, *b)).collect();
        assert_eq!(found, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_tree_is_a_map_from_blocks_to_places_and_says_what_each_change_lets_go(
        rounds in prop::collection::vec(prop::collection::vec(change(), 1..8), 1..8),
        probes in prop::collection::vec((block(), 1..5000_u64), 1..10),
    ) {
        let probes = probes.into_iter().map(|(block, count)| Run { block, count: count.min(u64::MAX - block) });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(rounds, probes.collect()));
    }
}

#[tokio::test]
async fn trimming_everything_touches_the_pages_that_exist_and_leaves_none() {
    let shelf = Shelf::default();
    let mut delta = Delta::new(BLOCK_BYTES, Epoch(0));
    let mut model = Model::new();
    for place in 0..40_u64 {
        apply(&mut model, &mut delta, &Change::Data(Run { block: place << 40, count: 1 }), 1);
    }
    let mut sink =
        Sink { shelf: &shelf, written: 0, pages_replaced: Vec::new(), blocks_replaced: BTreeMap::new() };
    let root = tree::rewrite::<_, _, _, Infallible>(&shelf, None, &BlockChanges::new(&delta), &mut sink)
        .await
        .unwrap();
    let written = sink.written;
    let mut trim = Delta::new(BLOCK_BYTES, Epoch(1));
    apply(&mut model, &mut trim, &Change::Hole(Run { block: 0, count: u64::MAX }), 2);
    let mut sink =
        Sink { shelf: &shelf, written: 0, pages_replaced: Vec::new(), blocks_replaced: BTreeMap::new() };
    let root = tree::rewrite::<_, _, _, Infallible>(&shelf, root, &BlockChanges::new(&trim), &mut sink)
        .await
        .unwrap();
    assert_eq!(root, None);
    assert_eq!(
        (sink.written, sink.pages_replaced.len() as u64, sink.blocks_replaced.len()),
        (0, written, 40)
    );
}
