//! What a fenced host held, made a volume of its own; and dying at each operation of that.

use std::{sync::Arc, time::Duration};

use s3bd::{
    format::slot::Argon2,
    nbd::Device,
    seal::slot::Secret,
    store::{faulty::Faulty, memory::Memory},
    volume::{
        bucket::Bucket,
        env::Env,
        error::VolumeError,
        open::Agreed,
        rescue::{Destination, Rescued, rescue},
    },
};

use crate::{
    bad_days::{History, SIZE, with_a_fenced_writer},
    host::{Disks, env, open_with, small_settings, unlock},
    rig::retrying,
};

/// Where the new volume goes.
pub struct Elsewhere {
    memory: Memory,
    faulty: Faulty<Memory>,
    disks: Disks,
    attempts: u64,
}

impl Elsewhere {
    pub fn new() -> Self {
        let memory = Memory::new();
        Self { faulty: Faulty::new(memory.clone()), memory, disks: Disks::new(), attempts: 500 }
    }

    fn env(&mut self) -> Env {
        self.attempts += 1;
        env(retrying(self.faulty.clone(), 3), &self.disks, self.attempts, "rescuer")
    }

    pub async fn rescue(&mut self, history: &History) -> Result<Rescued, VolumeError> {
        let old = env(history.rig.store.clone(), &history.rig.hosts[0], 77, "host 0");
        let bucket = unlock(&old).await;
        let secret = Secret::password("secret");
        let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
        let destination = Destination { env: self.env(), secret: &secret, cost, settings: small_settings() };
        rescue(&old, &bucket, destination, |_| {}).await
    }

    pub async fn content(&mut self) -> Vec<u8> {
        let env = env(Arc::new(self.memory.clone()), &Disks::new(), 900, "reader");
        let (volume, report) = open_with(env, small_settings(), Agreed::default()).await.unwrap();
        assert!(report.was_clean);
        volume.read(0, SIZE as u32).await.unwrap().concat()
    }
}

/// The base epoch with the one write that was overtaken.
pub fn wanted(history: &History) -> Vec<u8> {
    [&[0xee; 9000][..], &history.images[4][9000..]].concat()
}

#[tokio::test(start_paused = true)]
async fn what_a_fenced_host_held_becomes_a_volume_and_nothing_else_changes() {
    for cuts_after in [0, 2] {
        let history = with_a_fenced_writer(110 + cuts_after as u64, cuts_after).await;
        let operations =
            |disks: &Disks| [disks.state.operations(), disks.wal.operations(), disks.cache.operations()];
        let (bucket, before) = (history.rig.memory.snapshot(), operations(&history.rig.hosts[0]));
        let mut new = Elsewhere::new();
        let rescued = new.rescue(&history).await.unwrap();
        assert_eq!((rescued.replayed.records, rescued.replayed.bytes), (1, 9000));
        let mapped =
            history.images[4].chunks(512).filter(|block| block.iter().any(|byte| *byte != 0)).count();
        assert!(rescued.copied_bytes <= 512 * mapped as u64, "holes are no data");
        assert!(history.rig.memory.snapshot().iter().eq(bucket.iter()), "the bucket changed");
        assert_eq!(operations(&history.rig.hosts[0]), before, "the log changed");
        assert!(new.content().await == wanted(&history));
        let again = new.rescue(&history).await.unwrap_err();
        assert!(matches!(again, VolumeError::Exists { .. }), "{again}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_not_overtaken_has_nothing_to_rescue() {
    let history = History::of_cuts(120, 3).await;
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NothingFenced { .. }), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_rescue_whose_base_is_gone_says_so() {
    let history = with_a_fenced_writer(130, 1).await;
    // All that the fenced host's line has in common with the other.
    for name in history.names("manifests/").iter().filter(|name| name[10..26] < *"0000000000000003") {
        history.remove(name);
    }
    let refused = Elsewhere::new().rescue(&history).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NoBase { .. }), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_rescue_may_be_interrupted_at_any_operation_and_run_again() {
    let history = with_a_fenced_writer(140, 1).await;
    let mut whole = Elsewhere::new();
    whole.rescue(&history).await.unwrap();
    let counts =
        [whole.faulty.counts().changes(), whole.disks.state.operations(), whole.disks.wal.operations()];
    for (part, count) in counts.into_iter().enumerate() {
        assert!(count > 3, "{part}: {count}");
        for at in 1..=count {
            let mut new = Elsewhere::new();
            match part {
                0 => new.faulty.set_crash_after(Some(at - 1)),
                1 => new.disks.state.die_at(at),
                _ => new.disks.wal.die_at(at),
            }
            let ended = tokio::time::timeout(Duration::from_secs(3600), new.rescue(&history)).await;
            new.faulty.set_crash_after(None);
            new.disks = new.disks.crash(at);
            let done = matches!(ended, Ok(Ok(_)));
            match Bucket::header(&new.memory).await {
                Ok(_) => {}
                Err(VolumeError::NoVolume | VolumeError::Unfinished) if !done => {}
                Err(error) => panic!("{part}, {at}: {error}"),
            }
            match new.rescue(&history).await {
                Ok(_) | Err(VolumeError::Exists { .. }) => {}
                Err(error) => panic!("{part}, {at}: {error}"),
            }
            assert!(new.content().await == wanted(&history), "{part}, {at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_rescue_is_not_continued_with_another_log() {
    let (history, other) = (with_a_fenced_writer(150, 1).await, with_a_fenced_writer(151, 1).await);
    let mut new = Elsewhere::new();
    new.faulty.set_crash_after(Some(8));
    let cut = tokio::time::timeout(Duration::from_secs(3600), new.rescue(&history)).await;
    assert!(!matches!(cut, Ok(Ok(_))));
    new.faulty.set_crash_after(None);
    new.disks = new.disks.crash(1);
    let unfinished = Bucket::header(&new.memory).await;
    assert!(matches!(unfinished, Err(VolumeError::Unfinished)), "it was begun");
    let refused = new.rescue(&other).await.unwrap_err();
    assert!(matches!(refused, VolumeError::Invalid(_)), "{refused}");
    new.rescue(&history).await.unwrap();
    assert!(new.content().await == wanted(&history));
}
