//! Manifests, claims' lines and objects that are damaged or gone: what is fallen back to, and what is never taken.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    fsck,
    nbd::Device,
    seal::slot::Secret,
    volume::{
        base::find_whole,
        bucket::Bucket,
        error::VolumeError,
        open::{Agreed, Repair, inspect},
        snapshots::{Change, SnapshotTable},
        tally::Tally,
    },
};
use wal::disk::sim::Prng;

use crate::{
    history::{History, SIZE, content, with_a_fenced_writer},
    host::{Disks, env, unlock},
    rig::{WHATEVER, noise},
};

#[tokio::test(start_paused = true)]
async fn behind_damaged_manifests_the_newest_whole_one_is_found() {
    for lost in 1..=4_usize {
        for removed in [false, true] {
            let mut history = History::of_cuts(lost as u64, 8).await;
            let manifests = history.names("manifests/");
            for (back, name) in manifests.iter().rev().take(lost).enumerate() {
                // A missing newest one cannot be told from one that was never put; `seen` tells, and claims do.
                if removed && back > 0 { history.remove(name) } else { history.damage(name, 3) }
            }
            let refused = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap_err();
            assert!(refused.is_of_line(), "{refused}");
            let before = history.names("");
            let (repair, passed) = history.fall_back().await;
            assert_eq!(history.names(""), before, "looking changes nothing");
            assert_eq!(passed.len(), if removed { 1 } else { lost });
            let base = repair.base.as_ref().unwrap().published.name();
            assert_eq!(s3bd::format::names::manifest(base.0, base.1), manifests[manifests.len() - 1 - lost]);
            let wanted = history.image_of(&repair);
            assert!((8 - lost..=8).contains(&wanted));
            assert_eq!(history.image_after(&repair).await, wanted);
            // What was gone back behind is no fault of what goes on.
            let env = env(history.rig.store.clone(), &Disks::new(), 1, "looking");
            let options = fsck::Options { level: fsck::Level::Default, concurrency: 3 };
            let report = fsck::check(&unlock(&env).await, &options, &()).await.unwrap();
            assert!(report.is_sound(), "{report:#?}");
            let passed = |finding: &&fsck::Finding| matches!(finding, fsck::Finding::ManifestPassed { .. });
            let passed = report.findings.iter().filter(passed).count();
            assert_eq!(passed, if removed { 1 } else { lost }, "{report:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_writers_own_log_gives_back_what_its_damaged_manifests_published() {
    let mut history = History::of_cuts(5, 6).await;
    for name in history.names("manifests/").iter().rev().take(2) {
        history.damage(name, 3);
    }
    let disks = history.rig.hosts[0].clone();
    let (repair, _) = history.fall_back().await;
    let behind = 6 - history.image_of(&repair) as u64;
    let (volume, report) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
    assert!(behind > 0 && report.has_log);
    assert_eq!(report.replayed.tally.records(), 3 * behind);
    assert_eq!(content(&volume).await, history.images[6]);
}

#[tokio::test(start_paused = true)]
async fn the_log_of_an_opening_joins_on_to_the_epoch_it_began_with_and_to_the_one_below() {
    for is_first_whole in [true, false] {
        let mut history = History::of_cuts(6, 3).await;
        let disks = history.rig.hosts[0].clone();
        let (first, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
        first.close().await.unwrap();
        drop(first);
        let before = history.names("manifests/");
        let (second, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
        let mut prng = Prng::new(7);
        for _ in 0..2 {
            history.cut(&second, &mut prng).await;
        }
        drop(second);
        let mut later = history.names("manifests/");
        later.retain(|name| !before.contains(name));
        for name in later.iter().skip(usize::from(is_first_whole)) {
            history.damage(name, 3);
        }
        let (repair, _) = history.fall_back().await;
        let base = repair.base.as_ref().unwrap().published.clone();
        let name = s3bd::format::names::manifest(base.link.generation, base.link.epoch);
        assert_eq!(&name, if is_first_whole { &later[0] } else { before.last().unwrap() });
        // What the tenure below noted last is gone, with the segment that it was in.
        let start = wal::start(&disks.wal).unwrap();
        assert_eq!(start.0 > base.manifest.log.lsn, !is_first_whole, "{start}");
        let (volume, report) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
        assert_eq!(report.replayed.tally.records(), 6);
        assert_eq!(content(&volume).await, history.images[5]);
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_index_or_a_missing_object_makes_an_epoch_not_whole_and_opening_changes_nothing() {
    for missing in [false, true] {
        let mut history = History::of_cuts(9, 7).await;
        let newest = history.names("objects/").pop().unwrap();
        if missing {
            history.remove(&newest)
        } else {
            history.damage_index(&newest, true);
            history.damage_index(&newest, false)
        }
        let manifests = history.names("manifests/");
        let refused = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap_err();
        assert!(refused.is_of_line(), "{refused}");
        assert_eq!(history.names("manifests/"), manifests, "no manifest was put on what cannot be opened");
        let (repair, passed) = history.fall_back().await;
        assert!(!passed.is_empty());
        assert!(history.image_after(&repair).await >= 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_index_or_footer_is_read_from_its_mirror() {
    for (part, without_manifests) in
        ["index", "footer", "mirror"].into_iter().flat_map(|part| [(part, false), (part, true)])
    {
        let mut history = History::of_cuts(9, 7).await;
        for name in history.names("objects/") {
            match part {
                "footer" => history.damage(&name, 3),
                part => history.damage_index(&name, part == "mirror"),
            }
        }
        let mut repair = Repair::default();
        if without_manifests {
            history.names("manifests/").iter().for_each(|name| history.remove(name));
            let found = history.rebuild().await.unwrap();
            assert!(found.damaged.is_empty(), "{part}: {found:?}");
            repair.base = Some(found.base);
        }
        let newest = history.images.len() - 1;
        assert_eq!(history.image_after(&repair).await, newest, "{part}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_without_its_header_is_damaged_and_no_empty_place() {
    let history = History::of_cuts(4, 3).await;
    history.remove("volume");
    let env = env(history.rig.store.clone(), &Disks::new(), 1, "looking");
    let refused = Bucket::unlock(env.store.clone(), &Secret::password("secret")).await.unwrap_err();
    assert!(matches!(refused, VolumeError::HeaderMissing), "{refused}");
    assert!(refused.to_string().contains("put it back"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn an_epoch_whose_objects_were_collected_is_not_fallen_back_to() {
    let history = History::of_cuts(10, 9).await;
    let newest = history.names("manifests/").pop().unwrap();
    history.damage(&newest, 3);
    // Of the first cut: no list has it any more, but the map does.
    history.remove(&history.names("objects/")[0]);
    let env = env(history.rig.store.clone(), &Disks::new(), 1, "looking");
    let found = find_whole(&unlock(&env).await).await.unwrap();
    let collected = |why: &str| why.contains("not in the bucket any more") || why.contains("missing");
    assert!(found.passed[1..].iter().all(|passed| collected(&passed.why)), "{:?}", found.passed);
    assert!(found.passed.len() > 2);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writers_late_manifest_is_not_fallen_back_to() {
    for cuts_after in [0, 2] {
        let mut history = with_a_fenced_writer(20, cuts_after).await;
        let manifests = history.names("manifests/");
        let newest = &manifests.last().unwrap()[..26];
        for name in manifests.iter().filter(|name| name.starts_with(newest)) {
            history.damage(name, 3);
        }
        let (repair, _) = history.fall_back().await;
        assert_eq!(history.image_after(&repair).await, 4);
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_manifest_the_objects_give_the_newest_cut_of_the_winning_line() {
    for seed in 0..6 {
        let fenced = seed % 2 == 1;
        let mut history = match fenced {
            true => with_a_fenced_writer(30 + seed, seed as usize / 2).await,
            false => History::of_cuts(30 + seed, 7).await,
        };
        let newest = history.images.len() - 1;
        history.names("manifests/").iter().for_each(|name| history.remove(name));
        let refused = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap_err();
        assert!(matches!(refused, VolumeError::NoManifest { .. }), "{refused}");
        let found = history.rebuild().await.unwrap();
        assert_eq!(found.left_out.len(), usize::from(fenced), "seed {seed}: {:?}", found.left_out);
        assert!(found.checkpoint.is_some() && (found.cuts as usize) < newest, "seed {seed}: {found:?}");
        assert_eq!((found.size_bytes, found.passed.len()), (SIZE, 0), "seed {seed}");
        let used = history.images[newest].chunks(512).filter(|block| block.iter().any(|byte| *byte != 0));
        assert_eq!(found.used_bytes, 512 * used.count() as u64, "seed {seed}");
        let repair = Repair { base: Some(found.base), ..Repair::default() };
        assert_eq!(history.image_after(&repair).await, newest, "seed {seed}");
    }
}

/// What is gone back behind had let go of manifests that the older epoch still calls kept.
#[tokio::test(start_paused = true)]
async fn no_manifest_that_a_line_which_was_given_up_let_go_is_missed() {
    for accepts in [false, true] {
        let mut history = History::of_cuts(39, 36).await;
        let manifests = history.names("manifests/");
        for name in manifests.iter().rev().take(8) {
            if accepts { history.remove(name) } else { history.damage(name, 3) }
        }
        let (repair, _) = history.fall_back().await;
        let base = repair.base.as_ref().unwrap().published.clone();
        assert!(
            manifests[0] > s3bd::format::names::manifest(base.link.generation, base.manifest.oldest_kept),
            "none was let go since"
        );
        let (repair, agreed) = match accepts {
            true => (Repair::default(), Agreed { rollback: true, ..WHATEVER }),
            false => (repair, WHATEVER),
        };
        let disks = Disks::new();
        history.open(&disks, agreed, &repair).await.unwrap().0.close().await.unwrap();
        let options = fsck::Options { level: fsck::Level::Quick, concurrency: 3 };
        let report = fsck::check(&unlock(&history.looker()).await, &options, &()).await.unwrap();
        assert!(report.is_sound(), "{report:#?}");
    }
}

/// A manifest that went with its cut, or a fenced writer's, is not missed.
#[tokio::test(start_paused = true)]
async fn behind_damaged_manifests_whole_objects_add_up_to_the_newest_cut() {
    for (seed, removed) in [(36, false), (37, true)] {
        let mut history = History::of_cuts(seed, 8).await;
        let base = history.fall_back().await.0.base.unwrap();
        assert!(!history.rebuild().await.unwrap().is_beyond(&base), "nothing is beyond the newest");
        for name in history.names("manifests/").iter().rev().take(4) {
            if removed { history.remove(name) } else { history.damage(name, 3) }
        }
        let (repair, _) = history.fall_back().await;
        let base = repair.base.as_ref().unwrap();
        assert!(history.image_of(&repair) < 8);
        let found = history.rebuild().await.unwrap();
        assert!(found.is_beyond(base));
        let repair = Repair { base: Some(found.base), ..Repair::default() };
        assert_eq!(history.image_after(&repair).await, 8);
        // Nothing is left of those manifests, or missed.
        let (volume, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
        volume.close().await.unwrap();
        let options = fsck::Options { level: fsck::Level::Default, concurrency: 3 };
        let report = fsck::check(&unlock(&history.looker()).await, &options, &()).await.unwrap();
        assert!(report.is_sound(), "{report:#?}");
    }
    let mut fenced = with_a_fenced_writer(38, 0).await;
    let claimed = fenced.names("manifests/").pop().unwrap();
    // The first of the writer that took over, which had no cut of its own.
    fenced.damage(&claimed, 3);
    let (repair, _) = fenced.fall_back().await;
    assert!(!fenced.rebuild().await.unwrap().is_beyond(repair.base.as_ref().unwrap()));
    assert_eq!(fenced.image_after(&repair).await, 4);
}

#[tokio::test(start_paused = true)]
async fn what_a_whole_manifest_says_of_snapshots_is_not_lost_where_the_objects_go_further() {
    let mut history = History::of_cuts(42, 6).await;
    // No checkpoint has it.
    history.rig.settings.checkpoint_objects = 1000;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    let mut prng = Prng::new(43);
    history.cut(&volume, &mut prng).await;
    volume.core().change(Change::Take("kept".to_owned())).await.unwrap();
    for _ in 0..2 {
        history.cut(&volume, &mut prng).await;
    }
    drop(volume);
    for name in history.names("manifests/").iter().rev().take(2) {
        history.damage(name, 3);
    }
    let base = history.fall_back().await.0.base.unwrap();
    let bucket = unlock(&history.looker()).await;
    let mut found = history.rebuild().await.unwrap();
    assert!(found.is_beyond(&base) && found.snapshots.get("kept").is_err());
    found.take_snapshots_of(&bucket, &base).await.unwrap();
    let repair = Repair { base: Some(found.base), ..Repair::default() };
    assert_eq!(history.image_after(&repair).await, 9);
    let newest = bucket.newest_manifest().await.unwrap().manifest;
    assert!(SnapshotTable::load(&bucket, &newest).await.unwrap().get("kept").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_lacks_an_object_is_left_out_whole() {
    let mut history = History::of_cuts(40, 5).await;
    // None that maps the cut.
    history.rig.settings.checkpoint_objects = 1000;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    let large = noise(&mut Prng::new(41), 300 << 10);
    volume.write(0, Bytes::from(large.clone()), false).await.unwrap();
    let image = [&large[..], &history.images[5][300 << 10..]].concat();
    history.publish(&volume, image).await;
    drop(volume);
    history.names("manifests/").iter().for_each(|name| history.remove(name));
    // An object of the newest cut that has several: later ones may have been moved by the collector.
    let found = history.rebuild().await.unwrap();
    let bucket = unlock(&env(Arc::new(history.rig.memory.clone()), &Disks::new(), 77, "looker")).await;
    for last in found.base.published.manifest.objects.iter().rev() {
        if bucket.explain(last.generation, last.sequence).await.unwrap().index.parts > 1 {
            history.remove(&s3bd::format::names::object(last.generation, last.sequence));
            break;
        }
    }
    let found = history.rebuild().await.unwrap();
    assert!(found.left_out.iter().any(|left| left.2.contains("of its")), "{:?}", found.left_out);
    let repair = Repair { base: Some(found.base), ..Repair::default() };
    assert_eq!(history.image_after(&repair).await, 5);
}

#[tokio::test(start_paused = true)]
async fn the_writers_own_log_goes_on_top_of_what_its_objects_add_up_to() {
    let mut history = History::of_cuts(50, 4).await;
    let disks = history.rig.hosts[0].clone();
    let (volume, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
    volume.write(100, Bytes::from_static(&[7; 700]), false).await.unwrap();
    volume.flush().await.unwrap();
    let wanted = content(&volume).await;
    drop(volume);
    history.names("manifests/").iter().for_each(|name| history.remove(name));
    let repair = Repair { base: Some(history.rebuild().await.unwrap().base), ..Repair::default() };
    let agreed = Agreed { takeover: true, ..Agreed::default() };
    // The manifest that this host put last is gone: whether anything is lost with it cannot be known.
    let refused = history.open(&disks, agreed, &repair).await.unwrap_err();
    assert!(matches!(refused, VolumeError::RolledBack { .. }), "{refused}");
    let agreed = Agreed { rollback: true, ..agreed };
    let (volume, report) = history.open(&disks, agreed, &repair).await.unwrap();
    assert!(report.has_log && report.replayed.tally.records() == 1, "{report:?}");
    assert_eq!(content(&volume).await, wanted);
}

#[tokio::test(start_paused = true)]
async fn falling_back_and_rebuilding_may_be_interrupted_at_any_operation() {
    for scan in [false, true] {
        let damaged = async || {
            let history = History::of_cuts(60, 5).await;
            for (back, name) in history.names("manifests/").iter().rev().enumerate() {
                match (scan, back) {
                    (true, _) => history.remove(name),
                    (false, 0) => history.damage(name, 3),
                    (false, _) => {}
                }
            }
            history
        };
        let recover = async |history: &mut History, disks: &Disks| -> Result<(), VolumeError> {
            let env = env(history.rig.store.clone(), disks, 5, "a new host");
            let bucket = unlock(&env).await;
            let normal = inspect(&env, &bucket, WHATEVER, &Repair::default()).await;
            let repair = match (normal, scan) {
                (Ok(_), _) => Repair::default(),
                (Err(_), true) => Repair { base: Some(history.rebuild().await?.base), ..Repair::default() },
                (Err(_), false) => history.fall_back().await.0,
            };
            let (volume, _) = history.open(disks, WHATEVER, &repair).await?;
            volume.close().await
        };
        let mut whole = damaged().await;
        let (before, disks) = (whole.rig.faulty.counts().changes(), Disks::new());
        recover(&mut whole, &disks).await.unwrap();
        let changes = whole.rig.faulty.counts().changes() - before;
        let counts = [disks.state.operations(), disks.wal.operations(), changes];
        for (part, count) in counts.into_iter().enumerate() {
            for at in 1..=count {
                let (mut history, disks) = (damaged().await, Disks::new());
                match part {
                    0 => disks.state.die_at(at),
                    1 => disks.wal.die_at(at),
                    _ => history.rig.faulty.set_crash_after(Some(at - 1)),
                }
                let _ = tokio::time::timeout(Duration::from_secs(3600), recover(&mut history, &disks)).await;
                history.rig.faulty.set_crash_after(None);
                let disks = disks.crash(at);
                let again = recover(&mut history, &disks).await;
                again.unwrap_or_else(|error| panic!("scan {scan}, {part}, {at}: {error}"));
                let opened = history.open(&Disks::new(), Agreed::default(), &Repair::default()).await;
                let found = content(&opened.unwrap().0).await;
                assert!(found == history.images[if scan { 5 } else { 4 }], "scan {scan}, {part}, {at}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_seen_names_the_way_on() {
    let mut history = History::of_cuts(80, 2).await;
    let disks = history.rig.hosts[0].clone();
    assert!(disks.state.flip_bit("seen", 60, 1));
    let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::SeenDamaged { .. }), "{refused}");
    assert!(refused.to_string().contains("--accept-rollback"), "{refused}");
    let agreed = Agreed { rollback: true, ..Agreed::default() };
    let (volume, _) = history.open(&disks, agreed, &Repair::default()).await.unwrap();
    assert!(content(&volume).await == history.images[2]);
    drop(volume);
    history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_older_copy_of_ones_own_state_is_not_called_another_writer() {
    let mut history = History::of_cuts(90, 2).await;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    volume.write(0, Bytes::from_static(b"in the copy"), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    let copy = history.rig.hosts[0].snapshot();
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    volume.close().await.unwrap();
    history.rig.hosts[0] = copy;
    let refused = history.rig.open(0, Agreed::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Diverged { held: Tally { writes: 1, .. }, .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("older copy of its state directory") && !text.contains("another writer"), "{text}");
    // Really another one.
    let other = with_a_fenced_writer(91, 1).await;
    let mut other = other;
    let refused = other.rig.open(0, Agreed::default()).await.unwrap_err();
    assert!(refused.to_string().contains("another writer (a new host)"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_another_host_went_on_from_is_found() {
    let mut history = History::of_cuts(160, 2).await;
    let old = history.memory().snapshot();
    let disks = history.rig.hosts[0].clone();
    let (volume, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
    let mut prng = Prng::new(161);
    for _ in 0..4 {
        history.cut(&volume, &mut prng).await;
    }
    volume.close().await.unwrap();
    drop(volume);
    history.memory().restore(old);
    // Twice, so that its generation is above all that was seen.
    let other = Disks::new();
    for _ in 0..2 {
        let (volume, _) = history.open(&other, WHATEVER, &Repair::default()).await.unwrap();
        volume.close().await.unwrap();
    }
    let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::RolledBack { .. }), "{refused}");
}

/// What the log held of a line that is no more was published there, and is nowhere else now.
#[tokio::test(start_paused = true)]
async fn what_an_older_bucket_lacks_stays_in_the_log_when_somebody_else_takes_it_before_it_is_published_again()
 {
    let mut history = History::of_cuts(170, 2).await;
    let mut prng = Prng::new(171);
    let disks = history.rig.hosts[0].clone();
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    history.cut(&volume, &mut prng).await;
    let old = history.memory().snapshot();
    volume.write(0, Bytes::from_static(b"published, and gone with the bucket"), true).await.unwrap();
    volume.sync().await.unwrap();
    drop(volume);
    history.memory().restore(old);
    let agreed = Agreed { rollback: true, takeover: true, discard: false };
    let (volume, report) = history.rig.open(0, agreed).await.unwrap();
    assert_eq!(report.replayed.tally.writes, 1);
    drop(volume);
    // Another host goes on, until nothing of ours is kept.
    let (other, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
    for _ in 0..60 {
        history.cut(&other, &mut prng).await;
    }
    other.close().await.unwrap();
    let agreed = Agreed { takeover: true, ..Agreed::default() };
    let refused = history.open(&disks, agreed, &Repair::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Diverged { held: Tally { writes: 1, .. }, .. }), "{refused}");
}
