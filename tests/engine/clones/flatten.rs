//! Clones that are made independent of their origin.

use s3bd::{
    format::{
        envelope::{self, Content},
        independent::Independent,
    },
    store::faulty::SeededPlan,
    volume::{
        base::find_whole,
        open::{Repair, open_repaired},
        pins,
    },
};

use super::*;
use crate::rig::tight_settings;

async fn flatten(volume: &Volume) -> Result<u64, VolumeError> {
    Ok(volume.core().flatten(|_| ()).await?.copied_bytes)
}

/// An origin that is closed, and its open clone, with what it should hold.
async fn origin_and_clone(street: &mut Street, prng: &mut Prng, closes: bool) -> Pair {
    street.init("origin", SIZE).await;
    let mut origin = Pair { volume: street.open("origin").await, wanted: vec![0; SIZE as usize] };
    origin.write(prng, 0, 40_000).await;
    origin.trim(10_000, 5000).await;
    if closes {
        origin.volume.close().await.unwrap();
        origin.volume = street.open("origin").await;
    }
    origin.write(prng, 25_000, 20_000).await;
    street.clone_open("origin", &origin.volume, None, "clone").await.unwrap();
    let wanted = origin.wanted.clone();
    origin.volume.close().await.unwrap();
    Pair { volume: street.open("clone").await, wanted }
}

/// Whether the origin may give up what it keeps for the clone.
async fn is_released(street: &mut Street) -> bool {
    let bucket = street.unlock("origin").await.unwrap();
    let clone = street.unlock("clone").await.unwrap().header.volume;
    let reference = s3bd::format::manifest::CloneRef { volume: clone, name: "clone".to_owned() };
    pins::is_stale(&bucket, &reference).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_flattened_clone_needs_nothing_of_its_origin() {
    for (closes, checkpoint_objects) in [(false, 100), (true, 100), (true, 1)] {
        let mut street = Street::new(300, Settings { checkpoint_objects, ..small_settings() });
        let mut prng = Prng::new(9);
        let mut clone = origin_and_clone(&mut street, &mut prng, closes).await;
        clone.write(&mut prng, 30_003, 2000).await;
        assert!(!is_released(&mut street).await);
        let copied_bytes = flatten(&clone.volume).await.unwrap();
        assert!((35_000..=40_000).contains(&copied_bytes), "all that is not its own: {copied_bytes}");
        clone.assert_as_wanted("flattened").await;
        clone.write(&mut prng, 100, 700).await;
        clone.volume.sync().await.unwrap();
        street.assert_sound("clone").await;
        clone.volume.core().change(Change::Take("after".to_owned())).await.unwrap();
        clone.volume.close().await.unwrap();
        let newest = street.unlock("clone").await.unwrap().newest_manifest().await.unwrap().manifest;
        assert!(newest.owners.is_empty());

        assert!(is_released(&mut street).await);
        let origin = street.open("origin").await;
        origin.core().change(Change::Delete("clone-clone".to_owned())).await.unwrap();
        origin.close().await.unwrap();
        street.assert_sound("origin").await;
        street.remove("origin");
        street.hosts.clear();
        clone.volume = street.open("clone").await;
        clone.assert_as_wanted("without its origin").await;
        assert_eq!(flatten(&clone.volume).await.unwrap(), 0, "it depends on nothing already");
        clone.volume.close().await.unwrap();
        street.assert_sound("clone").await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_manifest_that_is_kept_needs_the_origin_of_a_flattened_clone() {
    let mut street = Street::new(305, small_settings());
    let mut prng = Prng::new(19);
    let mut clone = origin_and_clone(&mut street, &mut prng, true).await;
    for _ in 0..5 {
        clone.write(&mut prng, 3000, 600).await;
        clone.volume.sync().await.unwrap();
    }
    flatten(&clone.volume).await.unwrap();
    drop(clone.volume);
    street.remove("origin");
    let whole = street.memory.snapshot();
    let manifests = street.names("clone/manifests/");
    let newest = street.unlock("clone").await.unwrap().newest_manifest().await.unwrap().manifest;
    let count = newest.epoch.0 - newest.oldest_kept.0 + 1;
    assert!(count > 1 && manifests.len() as u64 >= count, "{count} of {}", manifests.len());
    // Whoever falls back to one of them, but for the oldest, whose parent is gone, finds all that it names.
    for gone in 0..count as usize - 1 {
        let mut contents = whole.clone();
        for name in manifests.iter().rev().take(gone) {
            contents.remove(name);
        }
        street.memory.restore(contents);
        street.hosts.clear();
        clone.volume =
            street.try_open("clone", Agreed { takeover: true, ..Agreed::default() }).await.unwrap();
        clone.assert_as_wanted("an older manifest").await;
        street.assert_sound("clone").await;
    }
}

#[tokio::test(start_paused = true)]
async fn flattening_goes_on_while_clients_write_and_loses_nothing_of_theirs() {
    for seed in 0..10 {
        let mut prng = Prng::new(seed);
        let mut street = Street::new(310 + seed, tight_settings(&mut prng));
        let mut clone = origin_and_clone(&mut street, &mut prng, seed % 2 == 0).await;
        // So that it takes as long as the writes do.
        let delay_max = Duration::from_millis(400);
        street.faulty.set_plan(SeededPlan { seed, delay: 1000, delay_max, ..SeededPlan::default() });
        let core = Arc::clone(clone.volume.core());
        let flattening = tokio::spawn(async move { core.flatten(|_| ()).await });
        let mut meanwhile = 0;
        while meanwhile < 60 && !flattening.is_finished() {
            meanwhile += 1;
            let (offset, length) = (prng.below(SIZE - 3000), 1 + prng.below(3000) as usize);
            match prng.below(5) {
                0 => clone.trim(offset, length).await,
                1 => clone.volume.flush().await.unwrap(),
                _ => clone.write(&mut prng, offset, length).await,
            }
            tokio::time::sleep(Duration::from_millis(prng.below(200))).await;
        }
        flattening.await.unwrap().unwrap();
        assert!(meanwhile > 5, "only {meanwhile} writes meanwhile");
        street.faulty.set_plan(SeededPlan::default());
        clone.assert_as_wanted("written to meanwhile").await;
        clone.volume.close().await.unwrap();
        street.remove("origin");
        street.hosts.clear();
        clone.volume = street.open("clone").await;
        clone.assert_as_wanted("without its origin").await;
        street.assert_sound("clone").await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_clone_itself_is_freed_and_only_of_what_is_before_it() {
    let mut street = Street::new(320, small_settings());
    let mut prng = Prng::new(3);
    let clone = origin_and_clone(&mut street, &mut prng, true).await;
    street.clone_open("clone", &clone.volume, None, "last").await.unwrap();
    // Its snapshot is what the last one reads.
    let refused = flatten(&clone.volume).await.unwrap_err();
    assert!(matches!(refused, VolumeError::HasSnapshots { .. }), "{refused}");
    assert!(refused.to_string().contains("clone-last"), "{refused}");
    let last = Pair { volume: street.open("last").await, wanted: clone.wanted.clone() };
    flatten(&last.volume).await.unwrap();
    assert!(!is_released(&mut street).await, "the one in between depends on it as before");
    clone.volume.core().change(Change::Delete("clone-last".to_owned())).await.unwrap();
    flatten(&clone.volume).await.unwrap();
    assert!(is_released(&mut street).await);
    clone.volume.close().await.unwrap();
    last.volume.close().await.unwrap();
    for gone in ["origin", "clone"] {
        street.remove(gone);
    }
    street.hosts.clear();
    let last = Pair { volume: street.open("last").await, wanted: last.wanted };
    last.assert_as_wanted("the last").await;
    street.assert_sound("last").await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_taken_meanwhile_keeps_the_origin() {
    let mut street = Street::new(330, small_settings());
    let mut prng = Prng::new(4);
    let clone = origin_and_clone(&mut street, &mut prng, true).await;
    let core = Arc::clone(clone.volume.core());
    let (told, mut begun) = tokio::sync::watch::channel(());
    let flattening = tokio::spawn(async move { core.flatten(|_| told.send_replace(())).await });
    let core = Arc::clone(clone.volume.core());
    let taking = tokio::spawn(async move {
        begun.changed().await.unwrap();
        core.change(Change::Take("meanwhile".to_owned())).await
    });
    taking.await.unwrap().unwrap();
    let refused = flattening.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("meanwhile"), "{refused}");
    assert!(!is_released(&mut street).await);
    clone.volume.close().await.unwrap();
    street.assert_sound("clone").await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_copied_is_named_and_what_is_lost_stays_lost() {
    let settings = Settings { memory_bytes_max: 0, cache_bytes_max: 0, ..small_settings() };
    let mut street = Street::new(340, settings);
    street.init("origin", SIZE).await;
    let origin = street.open("origin").await;
    let mut first = Vec::new();
    for (offset, seed) in [(0, 1), (20_480, 2), (40_960, 3)] {
        origin.write(offset, Bytes::from(noise(&mut Prng::new(seed), 10_240)), false).await.unwrap();
        origin.sync().await.unwrap();
        let names = street.names("origin/objects/");
        first.push(names.into_iter().find(|name| !first.contains(name)).unwrap());
    }
    origin.close().await.unwrap();
    let lose = |street: &Street, name: &str| {
        let mut contents = street.memory.snapshot();
        assert!(contents.remove(name));
        street.memory.restore(contents);
    };
    // Marked as lost in the origin already.
    lose(&street, &first[0]);
    let report = street.check("origin").await;
    street.repair("origin", &report).await;
    street.clone_closed("origin", None, "clone").await.unwrap();
    lose(&street, &first[1]);
    let clone = street.open("clone").await;
    let error = flatten(&clone).await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("of origin"), "{error}");
    assert!(!is_released(&mut street).await);
    clone.write(20_480, Bytes::from(vec![1; 10_240]), false).await.unwrap();
    flatten(&clone).await.unwrap();
    clone.close().await.unwrap();
    street.remove("origin");
    street.hosts.clear();
    let clone = street.open("clone").await;
    clone.read(0, 512).await.unwrap_err();
    assert_eq!(clone.read(20_480, 10_240).await.unwrap().concat(), vec![1; 10_240]);
    assert_eq!(clone.read(40_960, 10_240).await.unwrap().concat(), noise(&mut Prng::new(3), 10_240));
}

#[tokio::test(start_paused = true)]
async fn neighbours_of_what_cannot_be_copied_are_copied_and_it_is_named() {
    let settings = Settings { memory_bytes_max: 0, cache_bytes_max: 0, ..small_settings() };
    let mut street = Street::new(345, settings);
    street.init("origin", SIZE).await;
    let origin = street.open("origin").await;
    let wanted = noise(&mut Prng::new(4), 8192);
    origin.write(0, Bytes::copy_from_slice(&wanted[..4096]), false).await.unwrap();
    origin.sync().await.unwrap();
    let first = street.names("origin/objects/");
    origin.write(4096, Bytes::copy_from_slice(&wanted[4096..]), false).await.unwrap();
    origin.sync().await.unwrap();
    let second = street.names("origin/objects/").into_iter().find(|name| !first.contains(name)).unwrap();
    origin.close().await.unwrap();
    street.clone_closed("origin", None, "clone").await.unwrap();
    let lose = |street: &Street, name: &str| {
        let mut contents = street.memory.snapshot();
        assert!(contents.remove(name));
        street.memory.restore(contents);
    };
    lose(&street, &second);
    let clone = street.open("clone").await;
    let error = flatten(&clone).await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("of origin"), "{error}");
    lose(&street, &first[0]);
    assert_eq!(clone.read(0, 4096).await.unwrap().concat(), wanted[..4096], "it is its own by now");
}

#[tokio::test(start_paused = true)]
async fn who_goes_back_to_where_the_origin_was_needed_needs_it() {
    let mut street = Street::new(347, small_settings());
    let mut prng = Prng::new(12);
    let mut clone = origin_and_clone(&mut street, &mut prng, true).await;
    clone.volume.close().await.unwrap();
    let before = street.memory.snapshot();
    clone.volume = street.open("clone").await;
    flatten(&clone.volume).await.unwrap();
    clone.volume.close().await.unwrap();
    assert!(is_released(&mut street).await);
    // Somebody puts back the manifests from before, and nothing else.
    let mut contents = street.memory.snapshot();
    for name in street.names("clone/manifests/") {
        contents.remove(&name);
    }
    for (key, bytes) in before.iter().filter(|(key, _)| key.starts_with("clone/manifests/")) {
        contents.set(key, bytes.clone());
    }
    street.memory.restore(contents);
    street.hosts.remove("clone");
    let (env, bucket) = (street.env("clone"), street.unlock("clone").await.unwrap());
    let base = find_whole(&bucket).await.unwrap().base;
    let repair = Repair { base, ..Repair::default() };
    let agreed = Agreed { takeover: true, rollback: true, discard: true };
    clone.volume = open_repaired(env, bucket, small_settings(), agreed, &repair).await.unwrap().0;
    clone.assert_as_wanted("gone back").await;
    assert!(!is_released(&mut street).await);
}

#[tokio::test(start_paused = true)]
async fn a_flattening_that_dies_anywhere_leaves_a_clone_or_a_volume_of_its_own() {
    let mut released_before_the_end = 0;
    for changes in 0.. {
        let mut street =
            Street::new(350, Settings { memory_bytes_max: 0, cache_bytes_max: 0, ..small_settings() });
        let mut prng = Prng::new(6);
        let mut clone = origin_and_clone(&mut street, &mut prng, true).await;
        street.faulty.set_crash_after(Some(changes));
        let limit = Duration::from_secs(3600);
        let done = matches!(tokio::time::timeout(limit, flatten(&clone.volume)).await, Ok(Ok(_)));
        street.faulty.set_crash_after(None);
        drop(clone.volume);
        for disks in street.hosts.values_mut() {
            *disks = disks.crash(changes);
        }
        let what = format!("dead after {changes} changes");
        clone.volume = street.open("clone").await;
        clone.assert_as_wanted(&what).await;
        if is_released(&mut street).await {
            released_before_the_end += u32::from(!done);
            // What the origin kept for it may go from now on.
            street.remove("origin");
        } else {
            assert!(!done, "{what}");
        }
        // It goes on where it was.
        flatten(&clone.volume).await.unwrap();
        clone.volume.close().await.unwrap();
        street.remove("origin");
        street.hosts.clear();
        clone.volume = street.open("clone").await;
        clone.assert_as_wanted(&what).await;
        clone.volume.close().await.unwrap();
        street.assert_sound("clone").await;
        if done {
            assert!(changes > 5 && released_before_the_end > 0, "{changes}, {released_before_the_end}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_the_origin_cannot_say_that_it_is_not_needed() {
    let mut street = Street::new(360, small_settings());
    let mut prng = Prng::new(8);
    let clone = origin_and_clone(&mut street, &mut prng, true).await;
    let mut contents = street.memory.snapshot();
    for forged in [Independent([7; 32]).encode(), envelope::wrap(Content::Independent, 1, b""), vec![]] {
        contents.set("clone/independent", Bytes::from(forged));
        street.memory.restore(contents.clone());
        assert!(!is_released(&mut street).await);
    }
    flatten(&clone.volume).await.unwrap();
    assert!(is_released(&mut street).await, "it is written over");
    clone.volume.close().await.unwrap();
    let mut contents = street.memory.snapshot();
    let mut note = contents.get("clone/independent").unwrap().to_vec();
    *note.last_mut().unwrap() ^= 1;
    contents.set("clone/independent", Bytes::from(note));
    street.memory.restore(contents);
    assert!(!is_released(&mut street).await);
    let report = street.check("clone").await;
    let named = |finding: &&Finding| matches!(finding, Finding::IndependenceDamaged { .. });
    assert_eq!(report.findings.iter().filter(named).count(), 1, "{:#?}", report.findings);
    // It keeps nobody from mending what can be mended.
    let mut contents = street.memory.snapshot();
    let header = contents.get("clone/volume").unwrap().clone();
    contents.set("clone/volume.unfinished", header);
    street.memory.restore(contents);
    let report = street.check("clone").await;
    street.repair("clone", &report).await;
    assert!(street.names("clone/volume.unfinished").is_empty());
}
