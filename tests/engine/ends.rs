//! How tenures begin and end, where that is not simple.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    format::{ids::Codec, slot::Argon2},
    nbd::Device,
    seal::slot::Secret,
    store::{
        ErrorKind,
        faulty::{Call, Fault, Faulty, SeededPlan},
        memory::Memory,
    },
    volume::{
        error::VolumeError,
        init::{NewVolume, init},
        open::Agreed,
        settings::Settings,
    },
};
use wal::disk::Disk;

use crate::{
    host::{Disks, env, open_with, small_settings},
    rig::{Rig, WHATEVER},
};

const SIZE: u64 = 64 << 20;

async fn rig(settings: Settings) -> Rig {
    Rig::new(1, SIZE, 512, settings).await
}

#[tokio::test(start_paused = true)]
async fn every_write_that_was_answered_while_the_volume_closed_is_in_it() {
    for delay_ms in 1..30 {
        let mut rig = rig(small_settings()).await;
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        rig.faulty.set_plan(|_: &Call<'_>| Fault::Delay(Duration::from_millis(50)));
        let writing = async {
            let mut answered = 0_u32;
            while volume.write(0, Bytes::from((answered + 1).to_le_bytes().to_vec()), false).await.is_ok() {
                answered += 1;
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            }
            answered
        };
        let closing = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            volume.close().await
        };
        let (answered, closed) = tokio::join!(writing, closing);
        closed.unwrap();
        let (other, report) = rig.open(1, Agreed::default()).await.unwrap();
        assert!(report.was_clean);
        assert_eq!(other.read(0, 4).await.unwrap().concat(), answered.to_le_bytes(), "{delay_ms}");
    }
}

fn damage_pages(memory: &Memory, from: usize) {
    let mut contents = memory.snapshot();
    let objects: Vec<String> =
        contents.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with("objects/")).collect();
    for key in &objects[from..] {
        let mut bytes = contents.get(key).unwrap().to_vec();
        bytes[70] ^= 1;
        contents.set(key, bytes.into());
    }
    memory.restore(contents);
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_map_is_damaged_can_be_written_and_closed() {
    let settings =
        Settings { memory_bytes_max: 0, cache_bytes_max: 0, checkpoint_objects: 1000, ..small_settings() };
    let mut rig = rig(settings).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    volume.write(0, Bytes::from_static(&[1; 512]), false).await.unwrap();
    volume.sync().await.unwrap();
    let data_objects = rig.memory.snapshot().iter().filter(|(key, _)| key.starts_with("objects/")).count();
    volume.close().await.unwrap();
    damage_pages(&rig.memory, data_objects);
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    assert!(volume.read(0, 512).await.is_err());
    volume.write(1024, Bytes::from_static(&[2; 512]), false).await.unwrap();
    volume.sync().await.unwrap();
    volume.close().await.expect("a checkpoint only spares the next opening some reading");
    let (volume, report) = rig.open(1, Agreed::default()).await.unwrap();
    assert!(report.was_clean);
    assert_eq!(volume.read(1024, 512).await.unwrap().concat(), [2; 512]);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_a_damaged_page_stops_is_made_when_all_of_that_page_was_written() {
    let settings =
        Settings { memory_bytes_max: 0, cache_bytes_max: 0, checkpoint_objects: 2, ..small_settings() };
    let mut rig = rig(settings).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    for offset in [0, 1 << 20] {
        volume.write(offset, Bytes::from_static(&[1; 512]), false).await.unwrap();
    }
    volume.sync().await.unwrap();
    let data_objects = rig.memory.snapshot().iter().filter(|(key, _)| key.starts_with("objects/")).count();
    volume.close().await.unwrap();
    damage_pages(&rig.memory, data_objects);
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    let core = Arc::clone(volume.core());
    let cuts = async |at: u64| {
        for number in 0..8 {
            volume.write(at + 512 * number, Bytes::from(vec![2; 512]), false).await.unwrap();
            volume.sync().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        core.state().roots.epoch
    };
    let before = core.state().roots.epoch;
    assert_eq!(cuts(1024).await, before, "the page cannot be read");
    let noted = core.status().last_error.unwrap().error;
    assert!(noted.contains("the map cannot be brought up to date"), "{noted}");
    // All that the page covers.
    volume.write(0, Bytes::from(vec![3; 512 * 512]), false).await.unwrap();
    assert!(cuts(2 << 20).await > before);
    volume.close().await.unwrap();
    let (volume, _) = rig.open(1, Agreed::default()).await.unwrap();
    assert_eq!(volume.read(0, 512 * 512).await.unwrap().concat(), [3; 512 * 512]);
    assert_eq!(volume.read(1 << 20, 512).await.unwrap().concat(), [1; 512]);
    assert_eq!(volume.read(2 << 20, 8 * 512).await.unwrap().concat(), [2; 8 * 512]);
}

#[tokio::test(start_paused = true)]
async fn a_log_whose_identity_was_lost_is_not_cleared_without_a_word() {
    let mut rig = rig(small_settings()).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    volume.write(0, Bytes::from_static(b"only here"), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    let both = rig.hosts[0].state.snapshot();
    both.remove("log").unwrap();
    both.remove("log.copy").unwrap();
    // One of the two is enough.
    for lost in ["log", "log.copy"] {
        let host =
            Disks { state: rig.hosts[0].state.snapshot(), wal: rig.hosts[0].wal.snapshot(), ..Disks::new() };
        host.state.remove(lost).unwrap();
        rig.hosts[1] = host;
        let (volume, report) = rig.open(1, Agreed::default()).await.unwrap();
        assert_eq!((report.has_log, report.replayed.tally.records()), (true, 1), "{lost}");
        assert_eq!(volume.read(0, 9).await.unwrap().concat(), b"only here");
        drop(volume);
        rig.hosts[0] = rig.hosts[1].clone();
    }
    // The identity is part of the records' key: what they say is lost with it, but that there are some is not.
    rig.hosts[0].state.put_back(&both);
    let refused = rig.open(0, Agreed { takeover: true, ..Agreed::default() }).await.unwrap_err();
    assert!(matches!(refused, VolumeError::LogUnknown { records: 1.., .. }), "{refused}");
    let (_, report) = rig.open(0, WHATEVER).await.unwrap();
    assert!(report.given_up.uncounted.is_some());
}

#[tokio::test(start_paused = true)]
async fn openings_that_come_to_nothing_do_not_make_a_log_forget_its_own_tenure() {
    let mut rig = rig(small_settings()).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    volume.write(0, Bytes::from_static(b"flushed"), false).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    rig.faulty.set_plan(|call: &Call<'_>| {
        match call.key.starts_with("manifests/") && call.operation == "put" {
            true => Fault::Before(ErrorKind::Invalid),
            false => Fault::None,
        }
    });
    for _ in 0..70 {
        rig.open(0, Agreed::default()).await.unwrap_err();
    }
    rig.faulty.set_plan(|_: &Call<'_>| Fault::None);
    let (volume, report) = rig.open(0, Agreed::default()).await.unwrap();
    assert_eq!(report.replayed.tally.records(), 1);
    assert_eq!(volume.read(0, 7).await.unwrap().concat(), b"flushed");
}

#[tokio::test(start_paused = true)]
async fn a_write_beyond_the_end_writes_nothing() {
    let mut rig = rig(small_settings()).await;
    let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
    let long = Bytes::from(vec![7; 3 << 20]);
    for offset in [SIZE - (2 << 20), SIZE, u64::MAX - 5] {
        let core = Arc::clone(volume.core());
        assert!(matches!(core.write(offset, long.clone()).await, Err(VolumeError::OutOfRange { .. })));
    }
    assert!(volume.read(SIZE - (2 << 20), 2 << 20).await.unwrap().concat().iter().all(|byte| *byte == 0));
}

#[tokio::test(start_paused = true)]
async fn of_inits_at_once_one_makes_a_volume_and_the_others_leave_it_alone() {
    let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    let secret = Secret::password("secret");
    let new =
        NewVolume { size_bytes: SIZE, block_bytes: 512, secret: &secret, cost, compression: Codec::Zstd };
    for seed in 0..60 {
        let memory = Memory::new();
        let slow = |host: u64| {
            let seed = seed * 2 + host;
            let delay_max = Duration::from_millis(20);
            let plan = SeededPlan { seed, delay: 900, delay_max, ..SeededPlan::default() };
            env(Arc::new(Faulty::with_plan(memory.clone(), plan)), &Disks::new(), seed, "one of two")
        };
        let (one, two) = (slow(0), slow(1));
        let (one, two) = tokio::join!(init(&one, &new), init(&two, &new));
        let made = usize::from(one.is_ok()) + usize::from(two.is_ok());
        assert!(made <= 1, "{seed}");
        if made == 1 {
            let (volume, _) = open_with(slow(0), small_settings(), Agreed::default()).await.unwrap();
            volume.close().await.unwrap();
        }
    }
}
