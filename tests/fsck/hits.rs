//! The blocks that findings name are those that cannot be read, and no others.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use s3bd::{
    format::index::{MapKind, Run},
    fsck::{Finding, Level, Sample},
    nbd::Device,
    store::memory::Memory,
    volume::{Volume, open::open_read_only, snapshots::Change},
};
use wal::disk::sim::Prng;

use crate::{
    anatomy::{Anatomy, Part},
    host::{BLOCK_BYTES, Disks, env, make, reopen, small_settings},
    volumes::{SIZE, check_at, faults, noise, rich, unlock},
};

pub const ALL: Level = Level::ReadData(Sample::ALL);

fn add(named: &mut BTreeSet<u64>, run: &Run) {
    named.extend(run.block..run.block + run.count);
}

/// Blocks that findings name, of those that hold data; of pages, those that no newer object hides.
fn named(findings: &[&Finding], anatomy: &Anatomy) -> BTreeSet<u64> {
    let mut named = BTreeSet::new();
    for finding in findings {
        match finding {
            Finding::Frame { blocks, .. }
            | Finding::ObjectMissing { blocks, .. }
            | Finding::ObjectLength { blocks, .. }
            | Finding::LostBlocks { blocks } => blocks.runs.iter().for_each(|run| add(&mut named, run)),
            Finding::Page { map: MapKind::Blocks, first_key, last_key, .. } => {
                let in_list = |part: &&Part| part.entry.is_none();
                let listed: Vec<_> = anatomy.objects.iter().filter(in_list).map(|part| part.object).collect();
                let below = anatomy.extents.iter().filter(|(_, frame)| !listed.contains(&frame.object));
                let runs =
                    below.map(|(run, _)| run).filter(|run| (first_key..=last_key).contains(&&run.block));
                runs.for_each(|run| add(&mut named, run));
            }
            other => panic!("{other}"),
        }
    }
    named
}

async fn unreadable(volume: &Volume, anatomy: &Anatomy) -> BTreeSet<u64> {
    let mut unreadable = BTreeSet::new();
    for (run, _) in &anatomy.extents {
        for block in run.block..run.block + run.count {
            if volume.read(block * u64::from(BLOCK_BYTES), BLOCK_BYTES).await.is_err() {
                unreadable.insert(block);
            }
        }
    }
    unreadable
}

async fn compare(anatomy: &Anatomy, what: &str, damage: impl FnOnce(&mut s3bd::store::memory::Contents)) {
    let mut contents = anatomy.contents.clone();
    damage(&mut contents);
    let store = Memory::new();
    store.restore(contents);
    let report = check_at(Arc::new(store.clone()), ALL).await;
    let faults = faults(&report);
    let env = env(Arc::new(store.clone()), &Disks::new(), 5, "reader");
    let volume = open_read_only(env, unlock(&store).await, small_settings()).await.unwrap();
    let unreadable = unreadable(&volume, anatomy).await;
    assert!(!unreadable.is_empty(), "{what}");
    assert_eq!(named(&faults, anatomy), unreadable, "{what}: {report:#?}");
}

#[tokio::test(start_paused = true)]
async fn findings_name_exactly_the_blocks_that_cannot_be_read() {
    let anatomy = Anatomy::of(&rich().await).await;
    let live: Vec<_> = anatomy
        .objects
        .iter()
        .filter(|part| part.entry.is_some() && part.pages.is_empty() && part.visible.len() > 1)
        .take(3)
        .collect();
    for part in live {
        compare(&anatomy, "missing", |contents| assert!(contents.remove(&part.name))).await;
        let bytes = anatomy.contents.get(&part.name).unwrap();
        let half = bytes.slice(..bytes.len() / 2);
        compare(&anatomy, "cut short", |contents| contents.set(&part.name, half)).await;
        let mut flipped = bytes.to_vec();
        for number in &part.visible {
            flipped[part.frame_bytes(*number).start + 3] ^= 1;
        }
        compare(&anatomy, "flipped", |contents| contents.set(&part.name, flipped.into())).await;
    }
    for page in anatomy.pages.iter().filter(|page| page.map == MapKind::Blocks).step_by(3) {
        let part = anatomy.object(|part| part.object == page.frame.object);
        let mut flipped = anatomy.contents.get(&part.name).unwrap().to_vec();
        flipped[part.frame_bytes(page.frame.number).start] ^= 1;
        compare(&anatomy, "page", |contents| contents.set(&part.name, flipped.into())).await;
    }
}

/// Two objects of the map, of which `is_pair` is true, each under the other's name: nothing of either can be read, and what
/// is there instead is said. What an object that was cut still has is not named.
async fn swap(anatomy: &Anatomy, is_pair: impl Fn(&Part, &Part) -> bool) {
    let is_live = |part: &&Part| part.entry.is_some() && part.pages.is_empty() && !part.visible.is_empty();
    let live: Vec<_> = anatomy.objects.iter().filter(is_live).collect();
    let mut pairs = live.iter().flat_map(|one| live.iter().map(move |other| (*one, *other)));
    let (one, other) = pairs.find(|(one, other)| one.name < other.name && is_pair(one, other)).unwrap();
    let mut contents = anatomy.contents.clone();
    for (to, from) in [(one, other), (other, one)] {
        contents.set(&to.name, anatomy.contents.get(&from.name).unwrap().clone());
    }
    let store = Memory::new();
    store.restore(contents);
    let env = env(Arc::new(store.clone()), &Disks::new(), 5, "reader");
    let volume = open_read_only(env, unlock(&store).await, small_settings()).await.unwrap();
    let unreadable = unreadable(&volume, anatomy).await;
    for level in [Level::Default, ALL] {
        let report = check_at(Arc::new(store.clone()), level).await;
        let faults = faults(&report);
        assert_eq!(named(&faults, anatomy), unreadable, "{level:?}: {report:#?}");
        let mut said = BTreeSet::new();
        for finding in faults {
            let Finding::ObjectLength { name, instead: Some(instead), .. } = finding else {
                panic!("{finding}")
            };
            assert!(finding.to_string().contains(instead), "{finding}");
            said.insert((name.clone(), instead.clone()));
        }
        let is = |name: &str, other: &str| (name.to_owned(), format!("the object {other}"));
        assert_eq!(said, BTreeSet::from([is(&one.name, &other.name), is(&other.name, &one.name)]));
    }
}

#[tokio::test(start_paused = true)]
async fn of_an_object_under_anothers_name_every_block_is_named_and_whose_it_is() {
    let rich = Anatomy::of(&rich().await).await;
    swap(&rich, |one, other| one.bytes != other.bytes).await;
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 7).await.unwrap();
    let mut prng = Prng::new(2);
    for number in 1..20 {
        volume.write(number << 16, noise(&mut prng, 16 << 10), false).await.unwrap();
        volume.sync().await.unwrap();
    }
    volume.close().await.unwrap();
    swap(&Anatomy::of(&store).await, |one, other| one.bytes == other.bytes).await;
}

#[tokio::test(start_paused = true)]
async fn blocks_that_were_lost_are_named_until_they_are_overwritten() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let disks = Disks::new();
    let (volume, _) = reopen(&store, &disks, 7).await.unwrap();
    let content = noise(&mut Prng::new(1), 8 * 512);
    volume.write(0, content.clone(), false).await.unwrap();
    volume.close().await.unwrap();
    let anatomy = Anatomy::of(&store).await;
    let part = anatomy.object(|part| !part.visible.is_empty());
    let mut flipped = anatomy.contents.get(&part.name).unwrap().to_vec();
    flipped[part.frame_bytes(0).start] ^= 1;
    let mut contents = anatomy.contents.clone();
    contents.set(&part.name, flipped.into());
    store.restore(contents);
    let (volume, _) = reopen(&store, &Disks::new(), 8).await.unwrap();
    volume
        .write(1000, Bytes::from_static(b"across two blocks, which cannot be completed"), false)
        .await
        .unwrap();
    volume.close().await.unwrap();
    let report = check_at(Arc::new(store.clone()), Level::Default).await;
    let [Finding::LostBlocks { blocks }] = faults(&report)[..] else { panic!("{report:#?}") };
    assert_eq!(blocks.runs, [Run { block: 1, count: 2 }]);
    let (volume, _) = reopen(&store, &Disks::new(), 9).await.unwrap();
    volume.write(0, content, false).await.unwrap();
    volume.close().await.unwrap();
    let report = check_at(Arc::new(store), ALL).await;
    assert!(faults(&report).is_empty(), "{report:#?}");
}

/// Whatever bit is flipped, a check that reads the data finds it, unless nothing needs the byte it is in.
#[tokio::test(start_paused = true)]
async fn every_flipped_bit_that_matters_is_found() {
    let anatomy = Anatomy::of(&rich().await).await;
    let mut prng = Prng::new(77);
    let names = anatomy.names("");
    for _ in 0..80 {
        let name = &names[(prng.next_u64() % names.len() as u64) as usize];
        let mut bytes = anatomy.contents.get(name).unwrap().to_vec();
        let at = (prng.next_u64() % bytes.len() as u64) as usize;
        bytes[at] ^= 1 << (prng.next_u64() % 8);
        let store = Memory::new();
        let mut contents = anatomy.contents.clone();
        contents.set(name, bytes.into());
        store.restore(contents);
        let report = check_at(Arc::new(store), ALL).await;
        let found = !faults(&report).is_empty();
        assert_eq!(found, matters(&anatomy, name, at), "byte {at} of {name}: {report:#?}");
    }
}

fn matters(anatomy: &Anatomy, name: &str, at: usize) -> bool {
    let Some(part) = anatomy.objects.iter().find(|part| part.name == name) else { return true };
    if part.entry.is_some_and(|entry| entry.died.is_some()) {
        return false;
    }
    let frame = (0..part.index.frames.len() as u32).find(|number| part.frame_bytes(*number).contains(&at));
    frame.is_none_or(|number| part.visible.contains(&number) || part.pages.contains(&number))
}

#[tokio::test(start_paused = true)]
async fn the_snapshots_that_need_what_is_damaged_are_named_and_no_others() {
    let store = Memory::new();
    make(&store, SIZE).await;
    let (volume, _) = reopen(&store, &Disks::new(), 21).await.unwrap();
    let objects = || {
        let contents = store.snapshot();
        contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with("objects/")).collect()
    };
    let take = async |volume: &Volume, name: &str| {
        volume.core().change(Change::Take(name.to_owned())).await.unwrap();
    };
    take(&volume, "before").await;
    volume.write(0, noise(&mut Prng::new(1), 9000), false).await.unwrap();
    take(&volume, "first").await;
    take(&volume, "second").await;
    let older: BTreeSet<String> = objects();
    volume.write(0, noise(&mut Prng::new(2), 10_240), false).await.unwrap();
    // With a checkpoint, which finds the first object dead.
    volume.close().await.unwrap();
    let (volume, _) = reopen(&store, &Disks::new(), 23).await.unwrap();
    take(&volume, "after").await;
    volume.close().await.unwrap();
    let mut contents = store.snapshot();
    let data = older.iter().next().unwrap();
    assert!(contents.remove(data));
    store.restore(contents);
    let report = check_at(Arc::new(store.clone()), Level::Default).await;
    let mut named = BTreeSet::new();
    for finding in faults(&report) {
        match finding {
            Finding::SnapshotHit { snapshot, objects: 1, first } if first == data => {
                named.insert(snapshot.as_str());
            }
            Finding::ObjectMissing { name, blocks, .. } => {
                assert!(name == data && blocks.is_empty(), "{finding}")
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(named, BTreeSet::from(["first", "second"]), "{report:#?}");
    // What they hold goes with them.
    let (volume, _) = reopen(&store, &Disks::new(), 22).await.unwrap();
    for name in ["first", "second"] {
        volume.core().change(Change::Delete(name.to_owned())).await.unwrap();
    }
    volume.close().await.unwrap();
    let report = check_at(Arc::new(store.clone()), Level::Default).await;
    assert!(faults(&report).is_empty(), "{report:#?}");
}
