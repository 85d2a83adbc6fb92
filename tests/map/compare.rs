//! Two states of a map compared, against their models.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use s3bd::{
    format::{
        ids::Epoch,
        index::Run,
        page::{Extent, Target},
    },
    map::{
        compare::{Compare, MapState},
        delta::Delta,
        objects::BlockChanges,
        tree,
    },
};

use super::{BLOCK_BYTES, Change, Infallible, Model, Place, Shelf, Sink, apply, change, walk};

/// A state of a history.
#[derive(Clone)]
struct Moment {
    state: MapState,
    model: Model,
}

/// What a round does.
#[derive(Clone, Debug)]
struct Round {
    /// Goes on from this state, counted from the newest: 0 for most.
    back: usize,
    changes: Vec<Change>,
    checkpoint: bool,
}

fn round() -> impl Strategy<Value = Round> {
    let back = prop_oneof![4 => Just(0_usize), 1 => 0..4_usize];
    (back, prop::collection::vec(change(), 0..6), any::<bool>())
        .prop_map(|(back, changes, checkpoint)| Round { back, changes, checkpoint })
}

async fn checkpoint(shelf: &Shelf, state: &MapState) -> MapState {
    let mut delta = Delta::new(BLOCK_BYTES, Epoch(0));
    delta.extents = state.extents.clone();
    let mut sink = Sink { shelf, written: 0, pages_replaced: Vec::new(), blocks_replaced: BTreeMap::new() };
    let changes = BlockChanges::new(&delta);
    let root = tree::rewrite::<_, _, _, Infallible>(shelf, state.root, &changes, &mut sink).await.unwrap();
    MapState { root, ..MapState::default() }
}

async fn history(shelf: &Shelf, rounds: Vec<Round>) -> Vec<Moment> {
    let mut moments = vec![Moment { state: MapState::default(), model: Model::new() }];
    let mut number = 0;
    for round in rounds {
        let mut now = moments[moments.len() - 1 - round.back.min(moments.len() - 1)].clone();
        let mut delta = Delta::new(BLOCK_BYTES, Epoch(0));
        delta.extents = now.state.extents.clone();
        for change in &round.changes {
            number += 1;
            apply(&mut now.model, &mut delta, change, number);
        }
        now.state.extents = delta.extents;
        if round.checkpoint {
            now.state = checkpoint(shelf, &now.state).await;
        }
        moments.push(now);
    }
    moments
}

async fn differences(shelf: &Shelf, before: &MapState, after: &MapState) -> Vec<Extent> {
    let mut compare = Compare::new(shelf, before, after);
    let mut found: Vec<Extent> = Vec::new();
    while let Some(extents) = compare.next().await.unwrap() {
        for extent in extents {
            let end = found.last().map_or(0, |last| last.block + last.count);
            assert!(extent.block >= end && extent.count > 0, "{extent:?} after {end}");
            found.push(extent);
        }
    }
    found
}

/// Blocks that differ, and their places in the later state.
fn expected(before: &Model, after: &Model) -> BTreeMap<u64, Option<Place>> {
    let blocks: BTreeSet<u64> = before.keys().chain(after.keys()).copied().collect();
    let differs = |block: &u64| before.get(block) != after.get(block);
    blocks.into_iter().filter(differs).map(|block| (block, after.get(&block).copied())).collect()
}

fn flat(extents: &[Extent]) -> BTreeMap<u64, Option<Place>> {
    let place = |target: Target| match target {
        Target::Hole => None,
        Target::Lost => Some(None),
        Target::Frame(frame, offset) => Some(Some((frame.number, offset))),
    };
    let blocks = extents.iter().flat_map(|extent| (0..extent.count).map(move |at| (extent, at)));
    blocks.map(|(extent, at)| (extent.block + at, place(extent.target.skip(at)))).collect()
}

async fn check(rounds: Vec<Round>) {
    let shelf = Shelf::default();
    let moments = history(&shelf, rounds).await;
    for before in &moments {
        for after in &moments {
            *shelf.loads.lock().unwrap() = 0;
            let found = differences(&shelf, &before.state, &after.state).await;
            let loads = *shelf.loads.lock().unwrap();
            assert_eq!(flat(&found), expected(&before.model, &after.model));
            if before.state.extents.is_empty() && after.state.extents.is_empty() {
                let (before, _) = walk(&shelf, before.state.root).await;
                let (after, _) = walk(&shelf, after.state.root).await;
                let different = before.symmetric_difference(&after).count();
                assert!(loads <= different as u64, "{loads} loads for {different} pages");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn a_comparison_finds_the_blocks_whose_place_differs_and_loads_no_page_that_both_have(
        rounds in prop::collection::vec(round(), 1..7),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(rounds));
    }
}

/// What lies on top of one state alone is decided without the tree below it, where it is data.
#[tokio::test]
async fn data_on_top_of_equal_trees_loads_nothing() {
    let shelf = Shelf::default();
    let mut base = Moment { state: MapState::default(), model: Model::new() };
    let mut delta = Delta::new(BLOCK_BYTES, Epoch(0));
    for leaf in 0..2000_u64 {
        apply(&mut base.model, &mut delta, &Change::Data(Run { block: leaf * 512, count: 3 }), 1);
    }
    base.state.extents = delta.extents;
    base.state = checkpoint(&shelf, &base.state).await;
    let mut later = base.clone();
    let mut delta = Delta::new(BLOCK_BYTES, Epoch(1));
    for leaf in 0..50_u64 {
        let run = Run { block: leaf * 512 * 7 + 1, count: 5 };
        apply(&mut later.model, &mut delta, &Change::Data(run), 2 + leaf as u32);
    }
    later.state.extents = delta.extents;
    *shelf.loads.lock().unwrap() = 0;
    let found = differences(&shelf, &base.state, &later.state).await;
    assert_eq!(flat(&found), expected(&base.model, &later.model));
    assert_eq!(*shelf.loads.lock().unwrap(), 0);
    // The other way about, the tree says what was there: one way down for each.
    let found = differences(&shelf, &later.state, &base.state).await;
    assert_eq!(flat(&found), expected(&later.model, &base.model));
    assert!(*shelf.loads.lock().unwrap() < 60);
}
