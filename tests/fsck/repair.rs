//! Repair: what has a whole copy is equal byte for byte afterwards, what has none is an error, and nothing else changes.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use s3bd::{
    format::{
        index::{MapKind, Run},
        names,
    },
    fsck::{
        Finding, Remedy, Report, Severity,
        repair::{Applied, Plan, Step, apply, begin, prepare},
    },
    nbd::Device,
    store::{
        ErrorKind, Store,
        faulty::{Call, Fault, Faulty},
        memory::{Contents, Memory},
    },
    volume::{
        base::find_whole,
        bucket::Bucket,
        error::VolumeError,
        open::{Agreed, Repair as RepairedOpening, open_read_only, open_repaired},
        rebuild::rebuild,
        walk::Copy,
    },
};
use wal::disk::sim::SimDisk;

use crate::{
    anatomy::Anatomy,
    damage::{Damage, Height, Inside, Which, Whole, all},
    hits::ALL,
    host::{BLOCK_BYTES, Disks, env, open_with, small_settings},
    volumes::{check_at, faults, other_volume, rich_and_its_host, secret, uncollected, unlock},
};

/// What is read of each run of the volume, block by block; none where it cannot be read.
type Content = Vec<(u64, Option<Bytes>)>;

async fn content(store: &Memory, runs: &[Run]) -> Content {
    let host = env(Arc::new(store.clone()), &Disks::new(), 77, "reader");
    let volume = open_read_only(host, unlock(store).await, small_settings()).await.unwrap();
    let block_bytes = u64::from(BLOCK_BYTES);
    let mut found = Vec::new();
    for run in runs {
        let whole = volume.read(run.block * block_bytes, run.count as u32 * BLOCK_BYTES).await;
        let whole: Option<Bytes> = whole.ok().map(|parts| parts.concat().into());
        for i in 0..run.count {
            let place = (i * block_bytes) as usize..((i + 1) * block_bytes) as usize;
            let bytes = match &whole {
                Some(bytes) => Some(bytes.slice(place)),
                None => {
                    let block = volume.read((run.block + i) * block_bytes, BLOCK_BYTES).await;
                    block.ok().map(|parts| parts.concat().into())
                }
            };
            found.push((run.block + i, bytes));
        }
    }
    found
}

fn unreadable(content: &Content) -> BTreeSet<u64> {
    content.iter().filter(|(_, bytes)| bytes.is_none()).map(|(block, _)| *block).collect()
}

/// Checks, makes a plan, and carries it out.
pub async fn repair(store: Arc<dyn Store>, disks: &Disks, seed: u64) -> Result<(Plan, Applied), VolumeError> {
    let report = s3bd::fsck::check_store(
        store.clone(),
        &secret(),
        &s3bd::fsck::Options { level: ALL, concurrency: 3 },
        &(),
    )
    .await?;
    let env = env(store.clone(), disks, seed, "here");
    let bucket = Bucket::unlock(store, &secret()).await?;
    let plan = prepare(&env, &bucket, &report).await?;
    if plan.steps.is_empty() {
        return Ok((plan, Applied::default()));
    }
    let volume = begin(env, bucket, small_settings(), &plan).await?;
    let applied = apply(&volume, &plan, &()).await?;
    volume.close().await?;
    Ok((plan, applied))
}

/// What is advised where a repair has no copy of a page: an older epoch, or the maps made anew from the objects.
async fn go_back(store: &Memory, damage: Damage) {
    let outside = env(Arc::new(store.clone()), &Disks::new(), 41, "here");
    let bucket = unlock(store).await;
    let base = match find_whole(&bucket).await.unwrap().base {
        Some(base) => base,
        None => {
            let rebuilt = rebuild(&bucket, &outside, |_, _| {}).await;
            rebuilt.unwrap_or_else(|error| panic!("{damage:?}: {error}")).base
        }
    };
    let repair = RepairedOpening { base: Some(base), ..RepairedOpening::default() };
    let agreed = Agreed { takeover: true, rollback: true, discard: true };
    let (volume, _) = open_repaired(outside, bucket, small_settings(), agreed, &repair).await.unwrap();
    volume.close().await.unwrap();
    let report = check_at(Arc::new(store.clone()), ALL).await;
    let pages = report.findings.iter().filter(|finding| matches!(finding, Finding::Page { .. }));
    assert_eq!(pages.count(), 0, "{damage:?}: {report:#?}");
}

/// Damages that a repair does something about; what it does about a part does not depend on how it was damaged.
fn repairable() -> impl Iterator<Item = Damage> {
    let is_whole = |damage: &Damage| matches!(damage, Damage::Object(..));
    let is_first = |damage: &Damage| {
        let text = format!("{damage:?}");
        !text.contains("FlippedLast") && !text.contains("Garbage")
    };
    let all = all().into_iter().filter(|damage| is_repairable(*damage));
    all.filter(move |damage| is_whole(damage) || is_first(damage))
}

fn is_repairable(damage: Damage) -> bool {
    match damage {
        Damage::Frame(which, _) | Damage::ObjectHeader(which, _) => which != Which::Dead,
        Damage::Index(which, _) | Damage::Footer(which, _) | Damage::Mirror(which, _) => which != Which::Dead,
        Damage::Object(which, _) | Damage::Indexes(which, _) => {
            matches!(which, Which::Live | Which::Pages)
        }
        Damage::Page(..) => true,
        _ => false,
    }
}

fn restored(contents: Contents) -> Memory {
    let store = Memory::new();
    store.restore(contents);
    store
}

fn forked(disks: &Disks) -> Disks {
    let Disks { state, wal, cache } = disks;
    Disks { state: state.snapshot(), wal: wal.snapshot(), cache: cache.snapshot() }
}

/// What is wrong after a repair; what is left of an object that nothing needs any more is not.
fn wrong(report: &Report) -> Vec<&Finding> {
    let is_dead = |finding: &&Finding| matches!(finding, Finding::DeadObject { .. });
    faults(report).into_iter().filter(|finding| !is_dead(finding)).collect()
}

fn lost_blocks(findings: &[&Finding]) -> BTreeSet<u64> {
    let mut lost = BTreeSet::new();
    for finding in findings {
        if let Finding::LostBlocks { blocks } = finding {
            blocks.runs.iter().for_each(|run| lost.extend(run.block..run.block + run.count));
        }
    }
    lost
}

#[tokio::test(start_paused = true)]
async fn what_the_cache_has_whole_is_equal_after_a_repair_and_the_volume_sound() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let stranger = other_volume().await.snapshot();
    let runs: Vec<Run> = anatomy.extents.iter().map(|(run, _)| *run).collect();
    let before = content(&store, &runs).await;
    for damage in repairable() {
        let store = restored(damage.apply(&anatomy, &stranger));
        let (plan, applied) = repair(Arc::new(store.clone()), &forked(&disks), 40).await.unwrap();
        assert!(!plan.steps.is_empty() && plan.left.is_empty(), "{damage:?}: {plan:#?}");
        assert_eq!((plan.blocks().1, &applied.failed), (0, &Vec::new()), "{damage:?}: {plan:#?}");
        let report = check_at(Arc::new(store.clone()), ALL).await;
        assert!(wrong(&report).is_empty(), "{damage:?}: {plan:#?} {report:#?}");
        assert!(content(&store, &runs).await == before, "{damage:?}: {plan:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_copy_is_an_error_after_a_repair_and_nothing_else_is() {
    let (store, disks) = rich_and_its_host().await;
    let disks = Disks { cache: SimDisk::new(), ..disks };
    let anatomy = Anatomy::of(&store).await;
    let stranger = other_volume().await.snapshot();
    let runs: Vec<Run> = anatomy.extents.iter().map(|(run, _)| *run).collect();
    let before = content(&store, &runs).await;
    let (mut lossy, mut by_earlier_maps) = (Vec::new(), Vec::new());
    for damage in repairable() {
        let store = restored(damage.apply(&anatomy, &stranger));
        let unreadable_before = unreadable(&content(&store, &runs).await);
        let (plan, applied) = repair(Arc::new(store.clone()), &forked(&disks), 40).await.unwrap();
        assert!(applied.failed.is_empty(), "{damage:?}: {applied:?}");
        let after = content(&store, &runs).await;
        for ((block, before), (_, after)) in before.iter().zip(&after) {
            assert!(after.is_none() || after == before, "{damage:?}: block {block} has other content");
        }
        if plan.steps.iter().any(|step| matches!(step, Step::EarlierMaps { .. })) {
            assert_eq!(unreadable(&after), BTreeSet::new(), "{damage:?}: {plan:#?}");
            assert!(plan.left.is_empty(), "{damage:?}: {plan:#?}");
            by_earlier_maps.push(damage);
        } else {
            assert_eq!(unreadable(&after), unreadable_before, "{damage:?}");
        }
        let report = check_at(Arc::new(store.clone()), ALL).await;
        let faults = wrong(&report);
        if !plan.left.is_empty() {
            // Of the maps' upper pages and the object table there is no copy: that is said, and nothing marked.
            assert!(plan.left.iter().all(|left| left.remedy == Remedy::FallBack), "{damage:?}: {plan:#?}");
            go_back(&store, damage).await;
            continue;
        }
        let errors = faults.iter().filter(|finding| finding.severity() == Severity::Error);
        assert!(
            errors.clone().all(|finding| matches!(finding, Finding::LostBlocks { .. })),
            "{damage:?}: {plan:#?} {report:#?}"
        );
        let lost = lost_blocks(&faults);
        assert!(unreadable(&after).is_subset(&lost), "{damage:?}");
        if plan.steps.iter().all(|step| !matches!(step, Step::LosePage { .. })) {
            assert_eq!(lost, unreadable(&after), "{damage:?}: {report:#?}");
            assert_eq!(errors.count(), faults.len(), "{damage:?}: {report:#?}");
        }
        if !lost.is_empty() {
            lossy.push(damage);
        }
    }
    // Data has one place; all else is said twice, or can be made once more.
    let is_data = |damage: &Damage| matches!(damage, Damage::Frame(..) | Damage::Object(Which::Live, _));
    assert_eq!(lossy, repairable().filter(is_data).collect::<Vec<_>>());
    // What is cut off of an object of pages is its index, and not a page.
    let is_page = |damage: &Damage| match damage {
        Damage::Object(Which::Pages, whole) => *whole != Whole::CutShort,
        damage => matches!(damage, Damage::Page(..)),
    };
    assert_eq!(by_earlier_maps, repairable().filter(is_page).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_mended_is_left_alone_with_a_word_on_what_to_do() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let stranger = other_volume().await.snapshot();
    for damage in all().into_iter().filter(|damage| !is_repairable(*damage)) {
        let damaged = damage.apply(&anatomy, &stranger);
        let store = restored(damaged.clone());
        let report = check_at(Arc::new(store.clone()), ALL).await;
        let Ok(bucket) = Bucket::unlock(Arc::new(store.clone()), &secret()).await else { continue };
        let env = env(Arc::new(store.clone()), &forked(&disks), 40, "here");
        let plan = prepare(&env, &bucket, &report).await.unwrap();
        assert!(plan.steps.is_empty(), "{damage:?}: {plan:#?}");
        assert_eq!(plan.left.len(), faults(&report).len(), "{damage:?}: {plan:#?}");
        let is_newest = damage.name(&anatomy) == anatomy.names(names::MANIFESTS).pop().unwrap();
        let recovers = plan.left.iter().any(|left| left.remedy == Remedy::Recover);
        assert!(recovers || !is_newest || report.is_sound(), "{damage:?}: {plan:#?}");
        assert!(store.snapshot() == damaged, "{damage:?}: a plan changed the bucket");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_blocks_are_errors_and_no_holes_until_they_are_overwritten() {
    let (store, disks) = rich_and_its_host().await;
    let disks = Disks { cache: SimDisk::new(), ..disks };
    let anatomy = Anatomy::of(&store).await;
    let damage = Damage::Frame(Which::Live, Inside::FlippedFirst);
    let store = restored(damage.apply(&anatomy, &Memory::new().snapshot()));
    let (plan, applied) = repair(Arc::new(store.clone()), &disks, 40).await.unwrap();
    let [Step::MarkLost { blocks, .. }] = &plan.steps[..] else { panic!("{plan:#?}") };
    assert_eq!(applied.lost_bytes, blocks.count * u64::from(BLOCK_BYTES));
    let host = env(Arc::new(store.clone()), &disks, 41, "here");
    let (volume, _) = open_with(host, small_settings(), Agreed::default()).await.unwrap();
    for run in &blocks.runs {
        let (start, length) = (run.block * u64::from(BLOCK_BYTES), run.count * u64::from(BLOCK_BYTES));
        assert!(volume.read(start, length as u32).await.is_err());
        let extents = volume.extents(start, length, 10).await.unwrap();
        assert!(extents.iter().all(|extent| !extent.hole), "a hole would be read as zeros: {extents:?}");
        volume.write(start, vec![7; length as usize].into(), false).await.unwrap();
        assert_eq!(volume.read(start, length as u32).await.unwrap().concat(), vec![7; length as usize]);
    }
    volume.close().await.unwrap();
    let report = check_at(Arc::new(store), ALL).await;
    assert!(faults(&report).is_empty(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_ends_anywhere_is_run_again_and_comes_to_the_same() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let runs: Vec<Run> = anatomy.extents.iter().map(|(run, _)| *run).collect();
    let before = content(&store, &runs).await;
    let mut contents = Damage::Page(MapKind::Blocks, Height::Leaf, Inside::Garbage)
        .apply(&anatomy, &Memory::new().snapshot());
    let live = Which::Live.of(&anatomy).name.clone();
    assert!(contents.remove(&live));
    let checking = Faulty::new(restored(contents.clone()));
    check_at(Arc::new(checking.clone()), ALL).await;
    let checked = checking.counts().total();
    let mut ended_at = 0;
    loop {
        let store = restored(contents.clone());
        let disks = forked(&disks);
        let calls = AtomicU64::new(0);
        let plan = move |_: &Call<'_>| match calls.fetch_add(1, Ordering::Relaxed) >= ended_at {
            true => Fault::Before(ErrorKind::Denied),
            false => Fault::None,
        };
        let whole = match repair(Arc::new(Faulty::with_plan(store.clone(), plan)), &disks, 40).await {
            Ok(_) => true,
            Err(VolumeError::Store(_)) => false,
            Err(error) => panic!("after {ended_at} calls: {error}"),
        };
        // What there is in between can be opened and loses nothing; the host may have lost power, too.
        let after_power_cut = Disks { cache: disks.cache.snapshot(), ..disks.crash(ended_at) };
        let disks = if ended_at % 2 == 0 { disks } else { after_power_cut };
        repair(Arc::new(store.clone()), &disks, 41).await.unwrap();
        let report = check_at(Arc::new(store.clone()), ALL).await;
        assert!(faults(&report).is_empty(), "after {ended_at} calls: {report:#?}");
        assert!(content(&store, &runs).await == before, "after {ended_at} calls");
        if whole {
            break;
        }
        // Every call of the repair itself; the check before it changes nothing, and was one of its own.
        ended_at += if ended_at < checked { 23.min(checked - ended_at) } else { 1 };
    }
    assert!(ended_at > 200, "{ended_at}");
}

#[tokio::test(start_paused = true)]
async fn a_repair_whose_disks_die_anywhere_is_run_again_and_comes_to_the_same() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let runs: Vec<Run> = anatomy.extents.iter().map(|(run, _)| *run).collect();
    let before = content(&store, &runs).await;
    let damage = Damage::Page(MapKind::Blocks, Height::Leaf, Inside::Garbage);
    let contents = damage.apply(&anatomy, &Memory::new().snapshot());
    let part = |disks: &Disks, of_state: bool| if of_state { disks.state.clone() } else { disks.wal.clone() };
    for of_state in [true, false] {
        let whole = forked(&disks);
        let from = part(&whole, of_state).operations();
        repair(Arc::new(restored(contents.clone())), &whole, 40).await.unwrap();
        let operations = part(&whole, of_state).operations() - from;
        assert!(operations > 5, "{operations}");
        for at in 1..=operations {
            let (store, disks) = (restored(contents.clone()), forked(&disks));
            let disk = part(&disks, of_state);
            disk.die_at(disk.operations() + at);
            let case = format!("operation {at} of the {} disk", if of_state { "state" } else { "log" });
            // What is left to do when the volume is closed may fail without a word.
            let _ = repair(Arc::new(store.clone()), &disks, 40).await;
            repair(Arc::new(store.clone()), &disks.crash(at), 41)
                .await
                .unwrap_or_else(|error| panic!("{case}: {error}"));
            let report = check_at(Arc::new(store.clone()), ALL).await;
            assert!(faults(&report).is_empty(), "{case}: {report:#?}");
            assert!(content(&store, &runs).await == before, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_another_host_has_open_is_refused_and_not_touched() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let damage = Damage::Frame(Which::Live, Inside::FlippedFirst);
    let store = restored(damage.apply(&anatomy, &Memory::new().snapshot()));
    let elsewhere = env(Arc::new(store.clone()), &Disks::new(), 50, "there");
    let takeover = Agreed { takeover: true, ..Agreed::default() };
    let (_volume, _) = open_with(elsewhere, uncollected(), takeover).await.unwrap();
    let contents = store.snapshot();
    // Not with its log either: the host that had it before has nothing to say.
    for disks in [Disks::new(), disks] {
        match repair(Arc::new(store.clone()), &disks, 40).await {
            Err(VolumeError::InUse { host, .. }) => assert_eq!(host, "there"),
            other => panic!("{other:?}"),
        }
        assert!(store.snapshot() == contents, "it changed the bucket");
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_is_for_one_epoch_alone() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let damage = Damage::Frame(Which::Live, Inside::FlippedFirst);
    let store = restored(damage.apply(&anatomy, &Memory::new().snapshot()));
    let report = check_at(Arc::new(store.clone()), ALL).await;
    let env = env(Arc::new(store.clone()), &disks, 40, "here");
    let plan = prepare(&env, &unlock(&store).await, &report).await.unwrap();
    assert!(matches!(plan.steps[..], [Step::Rewrite { copy: Copy::Cache, .. }]), "{plan:#?}");
    let (volume, _) = open_with(env.clone(), small_settings(), Agreed::default()).await.unwrap();
    volume.close().await.unwrap();
    match begin(env, unlock(&store).await, small_settings(), &plan).await {
        Err(VolumeError::Invalid(text)) => assert!(text.contains("run it again"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_log_holds_of_a_block_is_completed_from_the_mended_maps() {
    let (store, disks) = rich_and_its_host().await;
    let anatomy = Anatomy::of(&store).await;
    let runs: Vec<Run> = anatomy.extents.iter().map(|(run, _)| *run).collect();
    let mut expected = content(&store, &runs).await;
    let writer = env(Arc::new(store.clone()), &disks, 39, "here");
    let (volume, _) = open_with(writer, small_settings(), Agreed::default()).await.unwrap();
    for (block, bytes) in &mut expected {
        if runs.iter().any(|run| run.block == *block) {
            volume.write(*block * u64::from(BLOCK_BYTES), vec![7; 100].into(), false).await.unwrap();
            let mut patched = bytes.as_ref().unwrap().to_vec();
            patched[..100].fill(7);
            *bytes = Some(patched.into());
        }
    }
    volume.flush().await.unwrap();
    drop(volume);
    let anatomy = Anatomy::of(&store).await;
    let disks = Disks { cache: SimDisk::new(), ..disks };
    let damage = Damage::Page(MapKind::Blocks, Height::Leaf, Inside::Garbage);
    let store = restored(damage.apply(&anatomy, &Memory::new().snapshot()));
    let report = check_at(Arc::new(store.clone()), ALL).await;
    let env = env(Arc::new(store.clone()), &disks, 40, "here");
    let bucket = unlock(&store).await;
    let plan = prepare(&env, &bucket, &report).await.unwrap();
    assert!(matches!(plan.steps[0], Step::EarlierMaps { .. }), "{plan:#?}");
    let volume = begin(env, bucket, small_settings(), &plan).await.unwrap();
    // A cut is due by its age long since.
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    let applied = apply(&volume, &plan, &()).await.unwrap();
    assert!(applied.failed.is_empty(), "{applied:?}");
    volume.close().await.unwrap();
    assert!(content(&store, &runs).await == expected);
    let report = check_at(Arc::new(store), ALL).await;
    assert!(wrong(&report).is_empty(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_whole_again_is_not_marked_as_lost() {
    let (store, disks) = rich_and_its_host().await;
    let disks = Disks { cache: SimDisk::new(), ..disks };
    let anatomy = Anatomy::of(&store).await;
    let runs: Vec<Run> = anatomy.extents.iter().map(|(run, _)| *run).collect();
    let before = content(&store, &runs).await;
    let damage = Damage::Frame(Which::Live, Inside::FlippedFirst);
    store.restore(damage.apply(&anatomy, &Memory::new().snapshot()));
    let report = check_at(Arc::new(store.clone()), ALL).await;
    let env = env(Arc::new(store.clone()), &disks, 40, "here");
    let bucket = unlock(&store).await;
    let plan = prepare(&env, &bucket, &report).await.unwrap();
    assert!(matches!(plan.steps[..], [Step::MarkLost { .. }]), "{plan:#?}");
    store.restore(anatomy.contents.clone());
    let volume = begin(env, bucket, small_settings(), &plan).await.unwrap();
    let applied = apply(&volume, &plan, &()).await.unwrap();
    volume.close().await.unwrap();
    assert_eq!(applied.lost_bytes, 0);
    assert!(matches!(&applied.failed[..], [text] if text.contains("whole again")), "{applied:?}");
    assert!(content(&store, &runs).await == before);
}
