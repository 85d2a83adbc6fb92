//! A store that is slow, away, forgetful or damaged is waited for: no request fails, nothing is lost, bounds hold.

use std::time::Duration;

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::{
        ErrorKind,
        faulty::{Call, Fault, SeededPlan},
    },
    volume::{Volume, open::Agreed, settings::Settings},
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, small_settings},
    oracle::{Oracle, Windows},
    rig::{Rig, WHATEVER, clip, for_seeds, noise},
};

const SIZE: u64 = 256 << 10;

struct Session {
    rig: Rig,
    volume: Volume,
    oracle: Oracle,
    prng: Prng,
}

impl Session {
    async fn new(seed: u64, settings: Settings) -> Self {
        let mut rig = Rig::new(seed, SIZE, 4096, settings).await;
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        Self { rig, volume, oracle: Oracle::new(Windows::new(vec![0..SIZE]), SIZE), prng: Prng::new(seed) }
    }

    async fn write(&mut self) {
        let range = clip(self.prng.below(SIZE), 1 + self.prng.below(30_000), SIZE);
        let data = noise(&mut self.prng, (range.end - range.start) as usize);
        self.oracle.send(range.start, range.end - range.start, Some(data.clone()));
        self.volume.write(range.start, Bytes::from(data), false).await.expect("no write fails");
        self.oracle.acknowledge(&self.volume);
    }

    async fn check(&self) {
        let found = self.oracle.windows.read(&self.volume).await;
        self.oracle.check(&found).unwrap();
    }

    /// Everything is in the bucket, for a host that never saw it.
    async fn check_bucket(&mut self) {
        self.volume.sync().await.expect("publishing resumes");
        self.oracle.published();
        self.rig.faulty.set_plan(|_: &Call<'_>| Fault::None);
        let (other, _) = self.rig.open(1, WHATEVER).await.unwrap();
        let found = self.oracle.windows.read(&other).await;
        self.oracle.check(&found).unwrap();
    }
}

fn settings() -> Settings {
    Settings { object_bytes: 64 << 10, ..small_settings() }
}

async fn stormy(seed: u64) {
    let plan = SeededPlan {
        seed,
        before: 60,
        denied: 40,
        after: 60,
        late: 60,
        twice: 60,
        delay: 200,
        cut_short: 0,
        flip_bit: 0,
        delay_max: Duration::from_secs(20),
    };
    let mut session =
        Session::new(seed, Settings { cache_bytes_max: 0, memory_bytes_max: 0, ..settings() }).await;
    session.rig.memory.set_create_honoured(seed.is_multiple_of(2));
    session.rig.faulty.set_plan(plan);
    for step in 0..30 {
        session.write().await;
        if step % 5 == 0 {
            tokio::time::sleep(Duration::from_secs(seed % 7 * 3)).await;
            session.check().await;
        }
        if step == 20 {
            session.volume.close().await.expect("closing waits");
            session.oracle.reopened();
            session.volume = session.rig.open(0, Agreed::default()).await.expect("opening waits").0;
        }
    }
    session.check().await;
    session.check_bucket().await;
}

#[test]
fn lost_late_and_doubled_answers_lose_nothing_whether_the_store_honours_create_or_not() {
    for_seeds(30, stormy);
}

/// Bytes damaged on their way are fetched again.
async fn noisy_line(seed: u64) {
    let mut session =
        Session::new(seed, Settings { cache_bytes_max: 0, memory_bytes_max: 0, ..settings() }).await;
    for _ in 0..20 {
        session.write().await;
    }
    session.volume.sync().await.unwrap();
    // One get in ten: three in a row are damage, and happen to one frame in a thousand.
    let plan = SeededPlan { seed, cut_short: 30, flip_bit: 30, ..SeededPlan::default() };
    session.rig.faulty.set_plan(plan);
    session.check().await;
    session.volume.close().await.unwrap();
    session.volume = session
        .rig
        .open(1, Agreed::default())
        .await
        .expect("what is read at opening is fetched again, too")
        .0;
    session.check().await;
}

#[test]
fn bytes_that_are_damaged_on_the_line_are_fetched_again() {
    for_seeds(30, noisy_line);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_an_hour_is_no_error() {
    let mut session = Session::new(3, settings()).await;
    for _ in 0..20 {
        session.write().await;
    }
    session.volume.sync().await.unwrap();
    session.check().await;
    session.rig.faulty.set_away(true);
    for _ in 0..60 {
        session.write().await;
        session.volume.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        session.check().await;
    }
    session.rig.faulty.set_away(false);
    session.check_bucket().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_listings_for_a_while_holds_up_publishing_and_nothing_else() {
    let mut session = Session::new(4, settings()).await;
    session.write().await;
    session.volume.sync().await.unwrap();
    session.rig.faulty.set_list_refused(true);
    session.write().await;
    let sync = tokio::time::timeout(Duration::from_secs(600), session.volume.sync()).await;
    assert!(sync.is_err(), "a cut counts as published only after the claims were listed");
    session.write().await;
    session.volume.flush().await.unwrap();
    session.check().await;
    session.rig.faulty.set_list_refused(false);
    session.check_bucket().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_for_the_store_is_answered_when_it_is_back() {
    let mut session =
        Session::new(5, Settings { cache_bytes_max: 0, memory_bytes_max: 0, ..settings() }).await;
    for _ in 0..10 {
        session.write().await;
    }
    session.volume.sync().await.unwrap();
    session.rig.faulty.set_away(true);
    let back = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        session.rig.faulty.set_away(false);
    };
    tokio::join!(back, session.check());
}

#[tokio::test(start_paused = true)]
async fn writers_wait_on_a_full_log_and_go_on_and_bounds_hold_meanwhile() {
    let mut session = Session::new(
        6,
        Settings { wal_bytes_max: 8 << 20, unpublished_memory_bytes_max: 1 << 20, ..settings() },
    )
    .await;
    session.rig.faulty.set_away(true);
    let data = Bytes::from(noise(&mut session.prng, SIZE as usize));
    let volume = &session.volume;
    let writing = async {
        for _ in 0..100 {
            volume.write(0, data.clone(), false).await.expect("no write fails");
        }
    };
    tokio::pin!(writing);
    let waited = tokio::time::timeout(Duration::from_secs(3600), &mut writing).await;
    assert!(waited.is_err(), "25 MiB do not fit into a log of 8");
    let used = session.rig.hosts[0].wal.used_bytes();
    assert!(used <= 8 << 20, "{used} bytes of log");
    let memory = volume.core().payloads.used_bytes();
    assert!(memory <= (1 << 20) + SIZE, "{memory} bytes of payloads");
    session.rig.faulty.set_away(false);
    writing.await;
    volume.sync().await.unwrap();
    assert_eq!(volume.read(0, SIZE as u32).await.unwrap().concat(), data);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_finds_no_room_on_its_disk_goes_on_when_there_is_some() {
    let session = Session::new(7, settings()).await;
    let disks: Disks = session.rig.hosts[0].clone();
    disks.wal.set_capacity(Some(disks.wal.used_bytes()));
    let data = Bytes::from(noise(&mut Prng::new(1), SIZE as usize));
    let volume = &session.volume;
    let writing = async {
        for _ in 0..40 {
            volume.write(0, data.clone(), false).await.expect("no write fails");
        }
    };
    tokio::pin!(writing);
    let waited = tokio::time::timeout(Duration::from_secs(3600), &mut writing).await;
    assert!(waited.is_err(), "10 MiB do not fit into a segment of 4");
    disks.wal.set_capacity(None);
    tokio::time::timeout(Duration::from_secs(60), writing).await.expect("room again");
    volume.sync().await.unwrap();
    assert_eq!(volume.read(0, SIZE as u32).await.unwrap().concat(), data);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_failed_leaves_a_volume_that_can_be_read() {
    let mut session = Session::new(8, settings()).await;
    session.write().await;
    session.rig.hosts[0].wal.fail_syncs(true);
    assert!(session.volume.flush().await.is_err());
    assert!(session.volume.write(0, Bytes::from_static(b"x"), false).await.is_err());
    session.check().await;
    assert!(session.volume.flush().await.is_err(), "and stays so");
}

#[tokio::test(start_paused = true)]
async fn a_flaky_put_of_an_object_holds_up_its_cut_and_those_behind_it() {
    let mut session = Session::new(9, settings()).await;
    session.rig.faulty.set_plan(|call: &Call<'_>| match call.operation {
        "put" if call.key.starts_with("objects/") && call.index < 60 => Fault::Before(ErrorKind::Retry),
        _ => Fault::None,
    });
    for _ in 0..20 {
        session.write().await;
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    session.check().await;
    session.check_bucket().await;
}

/// Objects in an archive class are nowhere to be read until somebody restores them.
#[tokio::test(start_paused = true)]
async fn reads_of_an_archived_object_fail_at_once_and_a_cut_that_needs_it_waits_for_it() {
    let bare = Settings { cache_bytes_max: 0, memory_bytes_max: 0, ..settings() };
    let mut session = Session::new(10, bare).await;
    let whole = noise(&mut session.prng, SIZE as usize);
    session.volume.write(0, Bytes::from(whole.clone()), false).await.unwrap();
    session.volume.sync().await.unwrap();
    session.rig.faulty.set_plan(|call: &Call<'_>| match call.operation {
        "get" if call.key.starts_with("objects/") => Fault::Before(ErrorKind::Archived),
        _ => Fault::None,
    });
    let volume = &session.volume;
    let read = tokio::time::timeout(Duration::from_secs(1), volume.read(0, 4096)).await;
    read.expect("nobody waits").expect_err("it is in an archive");
    volume.write(1000, Bytes::from_static(b"part of a block"), true).await.unwrap();
    let sync = tokio::time::timeout(Duration::from_secs(3600), volume.sync()).await;
    assert!(sync.is_err(), "the rest of the block is not there");
    let said = volume.core().status().last_error.unwrap().error;
    assert!(said.contains("waits for an object"), "{said}");
    // Other blocks are written and read meanwhile.
    volume.write(8192, Bytes::from(vec![7; 4096]), true).await.unwrap();
    assert_eq!(volume.read(8192, 4096).await.unwrap().concat(), [7; 4096]);
    session.rig.faulty.set_plan(|_: &Call<'_>| Fault::None);
    volume.sync().await.unwrap();
    let mut expected = whole;
    expected[1000..1015].copy_from_slice(b"part of a block");
    expected[8192..12288].fill(7);
    assert_eq!(volume.read(0, SIZE as u32).await.unwrap().concat(), expected);
}
