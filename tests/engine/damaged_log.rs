//! Logs of which a part is damaged, or was trimmed for a bucket that is gone: what is certain is had, the rest is named.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    volume::{
        error::VolumeError,
        open::{Agreed, Repair, inspect},
        replay::LogFault,
        tally::Tally,
    },
};
use wal::{
    Lsn,
    disk::{Disk, sim::Prng},
};

use crate::{
    history::{History, content, with_a_fenced_writer},
    host::{Disks, env, unlock},
    rescue::{Elsewhere, wanted},
    rig::WHATEVER,
};

const ROLLBACK: Agreed = Agreed { takeover: true, rollback: true, discard: false };

/// A bucket that was put back to its state before the last three cuts of a host, which had published `before` others in the
/// same tenure; with another tenure in its log, which calls all of them trimmed.
async fn rolled_back(seed: u64, before: usize) -> (History, Disks) {
    let mut history = History::of_cuts(seed, 2).await;
    let disks = history.rig.hosts[0].clone();
    let mut old = history.memory().snapshot();
    let (volume, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
    let mut prng = Prng::new(seed);
    for _ in 0..before {
        history.cut(&volume, &mut prng).await;
        old = history.memory().snapshot();
    }
    for _ in 0..3 {
        history.cut(&volume, &mut prng).await;
    }
    drop(volume);
    drop(history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap());
    history.memory().restore(old);
    (history, disks)
}

/// A host whose log holds, above what is published, one record for each step of 512 bytes, all of them flushed.
pub async fn with_a_log_of(steps: u64) -> History {
    let mut history = History::of_cuts(70, 2).await;
    let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    for step in 0..steps {
        volume.write(step * 4096, Bytes::from(vec![step as u8 + 1; 512]), false).await.unwrap();
        volume.flush().await.unwrap();
    }
    drop(volume);
    history
}

/// Damages the record that holds the write of this step, wherever the log has it.
pub fn damage_record(disks: &Disks, step: u64) {
    let scan = wal::scan(&disks.wal).unwrap();
    let records: Vec<_> =
        scan.records(scan.start).map(Result::unwrap).filter(|record| record.kind == 1).collect();
    flip_record(disks, records[records.len() - 30 + step as usize].lsn.0);
}

/// Damages the record at this LSN, in the segment that holds it.
pub fn flip_record(disks: &Disks, lsn: u64) {
    let names = disks.wal.list().unwrap();
    let first = |name: &str| u64::from_str_radix(name.strip_suffix(".wal")?, 16).ok();
    let segments = names.iter().filter_map(|name| Some((first(name)?, name)));
    let (first, name) = segments.filter(|(first, _)| *first <= lsn).max().unwrap();
    assert!(disks.wal.flip_bit(name, lsn - first + 40, 3));
}

#[tokio::test(start_paused = true)]
async fn of_a_damaged_log_what_is_before_the_damage_is_recovered_and_the_rest_is_named() {
    for step in [0, 7, 28] {
        let mut history = with_a_log_of(30).await;
        let disks = history.rig.hosts[0].clone();
        damage_record(&disks, step);
        let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
        let VolumeError::LogDamaged(damage) = &refused else { panic!("{refused}") };
        assert!(damage.joins);
        assert_eq!((damage.before.tally.records(), damage.before.tally.bytes), (step, step * 512));
        assert_eq!(damage.beyond.tally.records(), 29 - step);
        assert_eq!(damage.blocks.len() as u64, 29 - step);
        assert_eq!(damage.blocks[0].block, (step + 1) * 8);
        assert!(refused.to_string().contains("s3bd recover"), "{refused}");

        let repair = Repair { cut_log: true, ..Repair::default() };
        let (volume, report) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
        assert_eq!(report.replayed.tally.records(), step);
        let mut wanted = history.images[2].clone();
        (0..step).for_each(|step| wanted[step as usize * 4096..][..512].fill(step as u8 + 1));
        assert!(content(&volume).await == wanted, "step {step}");
        drop(volume);
        // It is a log like any other from then on.
        let (volume, _) =
            history.open(&disks.crash(step), Agreed::default(), &Repair::default()).await.unwrap();
        assert!(content(&volume).await == wanted, "step {step}: once more");
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn cutting_a_damaged_log_may_be_interrupted_at_any_operation() {
    let repair = Repair { cut_log: true, ..Repair::default() };
    let damaged = async || {
        let history = with_a_log_of(30).await;
        let disks = history.rig.hosts[0].snapshot();
        damage_record(&disks, 7);
        (history, disks)
    };
    let (mut history, disks) = damaged().await;
    let (volume, _) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
    volume.close().await.unwrap();
    drop(volume);
    let wanted = content(&history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap().0).await;
    let count = disks.wal.operations();
    for at in 1..=count {
        let (mut history, disks) = damaged().await;
        disks.wal.die_at(at);
        if let Ok((volume, _)) = history.open(&disks, Agreed::default(), &repair).await {
            let _ = tokio::time::timeout(Duration::from_secs(60), volume.close()).await;
        }
        let disks = disks.crash(at);
        let (volume, _) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
        assert!(content(&volume).await == wanted, "{at}");
    }
    assert!(count > 3, "{count}");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_log_with_a_damaged_record_is_not_given_up_without_a_word() {
    for back in [23, 31] {
        let mut history = with_a_log_of(30).await;
        let disks = history.rig.hosts[0].clone();
        let (volume, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
        volume.close().await.unwrap();
        let scan = wal::scan(&disks.wal).unwrap();
        let writes: Vec<_> =
            scan.records(scan.start).map(Result::unwrap).filter(|record| record.kind == 1).collect();
        // An overtaken one, or one that both lines have: then what is above can still be counted.
        flip_record(&disks, writes[writes.len() - back].lsn.0);
        let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
        match back {
            23 => assert!(matches!(refused, VolumeError::LogUncounted { .. }), "{refused}"),
            _ => assert!(
                matches!(refused, VolumeError::Diverged { held: Tally { writes: 30, .. }, .. }),
                "{refused}"
            ),
        }
        assert!(refused.to_string().contains("--discard"), "{refused}");
        let (_, report) = history.open(&disks, WHATEVER, &Repair::default()).await.unwrap();
        assert_eq!(report.given_up.uncounted.is_some(), back == 23, "{:?}", report.given_up);
    }
}

#[tokio::test(start_paused = true)]
async fn damage_below_what_the_log_calls_trimmed_is_found_over_an_older_bucket() {
    let (mut history, disks) = rolled_back(200, 1).await;
    let (volume, report) = history.open(&disks, ROLLBACK, &Repair::default()).await.unwrap();
    assert_eq!(report.replayed.tally.records(), 9);
    assert!(content(&volume).await == history.images[6]);
    drop(volume);

    let (mut history, disks) = rolled_back(200, 1).await;
    let scan = wal::scan(&disks.wal).unwrap();
    let writes: Vec<_> =
        scan.records(scan.start).map(Result::unwrap).filter(|record| record.kind == 1).collect();
    flip_record(&disks, writes[writes.len() - 4].lsn.0);
    let refused = history.open(&disks, ROLLBACK, &Repair::default()).await.unwrap_err();
    let VolumeError::LogDamaged(damage) = &refused else { panic!("{refused}") };
    assert_eq!((damage.before.tally.records(), damage.beyond.tally.records()), (5, 3), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn of_a_damaged_log_that_was_overtaken_what_is_before_the_damage_is_rescued() {
    let mut history = with_a_log_of(30).await;
    let disks = history.rig.hosts[0].clone();
    let (volume, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
    volume.close().await.unwrap();
    let whole = disks.snapshot();
    damage_record(&disks, 7);
    let mut new = Elsewhere::new();
    let rescued = new.rescue(&history).await.unwrap();
    assert_eq!((rescued.replayed.tally.writes, rescued.replayed.tally.bytes), (7, 7 * 512));
    let damage = rescued.damage.unwrap();
    assert_eq!(
        (damage.before.tally.records(), damage.beyond.tally.records(), damage.blocks[0].block),
        (7, 22, 64)
    );
    let mut wanted = history.images[2].clone();
    (0..7).for_each(|step| wanted[step * 4096..][..512].fill(step as u8 + 1));
    assert!(new.content().await == wanted);
    // Where nothing is certain, no volume is made of it.
    history.rig.hosts[0] = whole;
    damage_record(&history.rig.hosts[0], 0);
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::LogUncounted { .. }), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_a_fenced_host_held_is_rescued_although_the_newest_manifest_is_damaged() {
    let history = with_a_fenced_writer(210, 2).await;
    let newest = history.names("manifests/").pop().unwrap();
    history.damage(&newest, 3);
    let mut new = Elsewhere::new();
    let rescued = new.rescue(&history).await.unwrap();
    assert_eq!((rescued.replayed.tally.records(), rescued.damage.is_some()), (1, false));
    assert!(new.content().await == wanted(&history));
}

#[tokio::test(start_paused = true)]
async fn a_log_whose_base_is_gone_with_an_older_bucket_is_not_called_empty() {
    // Another host went on from a state in which this one had not written yet.
    let mut history = History::of_cuts(220, 0).await;
    let old = history.memory().snapshot();
    let disks = history.rig.hosts[1].clone();
    history.rig.hosts.swap(0, 1);
    let (volume, _) = history.open(&disks, WHATEVER, &Repair::default()).await.unwrap();
    let mut prng = Prng::new(221);
    for _ in 0..3 {
        history.cut(&volume, &mut prng).await;
    }
    volume.close().await.unwrap();
    history.memory().restore(old);
    let (volume, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
    volume.close().await.unwrap();
    let refused = history.open(&disks, ROLLBACK, &Repair::default()).await.unwrap_err();
    assert!(
        matches!(refused, VolumeError::Diverged { held: Tally { writes: 9, .. }, has_base: false, .. }),
        "{refused}"
    );
    assert!(!refused.to_string().contains("--rescue-to"), "{refused}");
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NoBase { held: Tally { writes: 9, .. }, .. }), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_lacks_what_an_older_bucket_needs_is_not_called_empty() {
    // The tenure that the older bucket goes up to is not in the log any more, and it had a cut more.
    let mut history = History::of_cuts(230, 2).await;
    let disks = history.rig.hosts[0].clone();
    let old = history.memory().snapshot();
    let mut prng = Prng::new(230);
    for cuts in [1, 3, 0] {
        let (volume, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
        for _ in 0..cuts {
            history.cut(&volume, &mut prng).await;
        }
    }
    history.memory().restore(old);
    let refused = history.open(&disks, ROLLBACK, &Repair::default()).await.unwrap_err();
    assert!(
        matches!(refused, VolumeError::Diverged { held: Tally { writes: 9, .. }, has_base: false, .. }),
        "{refused}"
    );
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NoBase { held: Tally { writes: 9, .. }, .. }), "{refused}");
    history.open(&disks, Agreed { discard: true, ..ROLLBACK }, &Repair::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_trimmed_up_to_where_an_older_bucket_ends_joins_on() {
    let (mut history, disks) = rolled_back(230, 0).await;
    let base = history.fall_back().await.0.base.unwrap().published.manifest;
    assert!(wal::start(&disks.wal).unwrap() > Lsn(base.log.lsn), "it is not trimmed");
    let (volume, report) = history.open(&disks, ROLLBACK, &Repair::default()).await.unwrap();
    assert_eq!(report.replayed.tally.writes, 9);
    assert!(content(&volume).await == history.images[5]);
}

/// Appends a record that is whole to the log, and that no seal of the volume opens.
fn append_foreign(disks: &Disks) {
    let options = wal::Options { segment_bytes: 1 << 20, log_bytes_max: 64 << 20, tag: [7; 32] };
    let (log, _) = wal::Log::open(Arc::new(disks.wal.clone()), options, None).unwrap();
    let writer = wal::Writer::start(log, Box::new(wal::PlainSeal), Box::new(|_| {}), wal::Mode::Inline);
    writer.append(1, &[0; 64], Bytes::from_static(&[1; 700])).unwrap();
    writer.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_record_that_does_not_open_ends_the_log_with_its_users_word_alone() {
    let mut history = with_a_log_of(30).await;
    let disks = history.rig.hosts[0].clone();
    append_foreign(&disks);
    let refused = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap_err();
    let VolumeError::LogDamaged(damage) = &refused else { panic!("{refused}") };
    assert!(matches!(damage.fault, LogFault::Unusable { kind: 1, .. }), "{refused}");
    assert_eq!((damage.joins, damage.before.tally.records()), (true, 30));
    assert!(refused.to_string().contains("s3bd recover"), "{refused}");

    let repair = Repair { cut_log: true, ..Repair::default() };
    let looking = env(history.rig.store.clone(), &disks, 600, "looking");
    let said = inspect(&looking, &unlock(&looking).await, Agreed::default(), &repair).await.unwrap();
    assert_eq!(said.replayed.tally.records(), 30);
    let (volume, report) = history.open(&disks, Agreed::default(), &repair).await.unwrap();
    assert_eq!(report.replayed.tally.records(), 30);
    let wanted = content(&volume).await;
    volume.write(0, Bytes::from_static(&[9; 512]), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    let (volume, _) = history.open(&disks, Agreed::default(), &Repair::default()).await.unwrap();
    assert!(content(&volume).await == [&[9; 512][..], &wanted[512..]].concat(), "a log like any other");
}
