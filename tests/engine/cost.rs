//! What things cost in requests.

use std::time::Duration;

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::faulty::CallCounts,
    volume::{Volume, open::Agreed, settings::Settings},
};

use crate::{
    host::small_settings,
    rig::{Rig, noise},
};
use wal::disk::sim::Prng;

const PEBIBYTE: u64 = 1 << 50;

pub fn settings() -> Settings {
    Settings { checkpoint_objects: 64, ..small_settings() }
}

struct Metered {
    rig: Rig,
    volume: Volume,
    before: CallCounts,
}

impl Metered {
    async fn new(settings: Settings) -> Self {
        let mut rig = Rig::new(1, PEBIBYTE, 4096, settings).await;
        let (volume, _) = rig.open(0, Agreed::default()).await.unwrap();
        let before = rig.faulty.counts();
        Self { rig, volume, before }
    }

    /// Puts, lists, and all others since the last call.
    fn spent(&mut self) -> (u64, u64, u64) {
        let now = self.rig.faulty.counts();
        let before = std::mem::replace(&mut self.before, now);
        let (puts, lists) = (now.puts - before.puts, now.lists - before.lists);
        (puts, lists, now.total() - before.total() - puts - lists)
    }

    async fn write(&self, offset: u64, length: usize) {
        let data = noise(&mut Prng::new(offset), length);
        self.volume.write(offset, Bytes::from(data), false).await.unwrap();
    }

    async fn reopen(&mut self) {
        self.volume.close().await.unwrap();
        self.spent();
        self.volume = self.rig.open(0, Agreed::default()).await.unwrap().0;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_clean_volume_makes_no_request() {
    let mut metered = Metered::new(settings()).await;
    metered.write(0, 5000).await;
    metered.volume.sync().await.unwrap();
    metered.spent();
    // The maps are brought up to date, and manifests let go.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let (puts, lists, others) = metered.spent();
    assert!(puts <= 4 && lists <= 4 && others <= 6, "{puts} {lists} {others}");
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert_eq!(metered.spent(), (0, 0, 0), "after a publish");
    metered.reopen().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    metered.spent();
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert_eq!(metered.spent(), (0, 0, 0), "after opening");
    metered.volume.sync().await.unwrap();
    metered.volume.flush().await.unwrap();
    assert_eq!(metered.spent(), (0, 0, 0), "nothing to sync");
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_an_object_a_manifest_and_a_list() {
    let mut metered = Metered::new(settings()).await;
    for commit in 0..20 {
        metered.write(commit * 1_000_000, 4096).await;
        metered.write(commit << 40, 4096).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(metered.spent(), (2, 1, 0), "commit {commit}");
    }
}

#[tokio::test(start_paused = true)]
async fn trimming_terabytes_is_one_object_at_the_next_cut() {
    let mut metered = Metered::new(settings()).await;
    for place in 0..50 {
        metered.write(place << 34, 4096).await;
    }
    metered.volume.sync().await.unwrap();
    metered.spent();
    metered.volume.trim(0, 2 << 40, false).await.unwrap();
    assert_eq!(metered.spent(), (0, 0, 0), "not before the cut");
    metered.volume.sync().await.unwrap();
    assert_eq!(metered.spent(), (2, 1, 0));
    assert!(metered.volume.read(1 << 34, 4096).await.unwrap().concat().iter().all(|byte| *byte == 0));
    assert_eq!(metered.spent(), (0, 0, 0), "a hole is known without its page");
}

#[tokio::test(start_paused = true)]
async fn pages_that_lie_together_are_read_together() {
    const LEAVES: u64 = 2000;
    let mut metered = Metered::new(Settings { cache_bytes_max: 0, ..settings() }).await;
    for leaf in 0..LEAVES {
        metered.write(leaf << 21, 4096).await;
    }
    let up_to_date = Duration::from_secs(3600);
    tokio::time::sleep(up_to_date).await;
    metered.reopen().await;
    let before = metered.rig.faulty.counts().gets;
    metered.volume.trim(0, LEAVES << 21, false).await.unwrap();
    // What each object loses is in its leaves alone.
    tokio::time::sleep(up_to_date).await;
    let gets = metered.rig.faulty.counts().gets - before;
    assert!(gets < LEAVES / 40, "{gets} gets for {LEAVES} leaves");
    assert!(metered.volume.read(7 << 21, 4096).await.unwrap().concat().iter().all(|byte| *byte == 0));
}

#[tokio::test(start_paused = true)]
async fn opening_a_petabyte_reads_a_few_small_objects() {
    let mut metered = Metered::new(settings()).await;
    for place in 0..30 {
        metered.write(place << 45, 4096).await;
        metered.volume.sync().await.unwrap();
    }
    metered.reopen().await;
    let (puts, lists, others) = metered.spent();
    assert_eq!(puts, 2, "a claim and a manifest");
    assert!(lists <= 8 && others <= 8, "{lists} lists, {others} others");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_costs_what_changed_and_not_what_is_there() {
    let mut spent = Vec::new();
    for there in [10_u64, 400] {
        let mut metered =
            Metered::new(Settings { memory_bytes_max: 0, cache_bytes_max: 0, ..settings() }).await;
        for place in 0..there {
            metered.write(place << 40, 4096).await;
        }
        metered.reopen().await;
        metered.write(7 << 40, 4096).await;
        metered.spent();
        let bytes: usize = metered.rig.memory.snapshot().iter().map(|(_, bytes)| bytes.len()).sum();
        metered.volume.close().await.unwrap();
        let after: usize = metered.rig.memory.snapshot().iter().map(|(_, bytes)| bytes.len()).sum();
        spent.push((metered.spent(), after - bytes));
    }
    let [(few, few_bytes), (many, many_bytes)] = spent[..] else { panic!() };
    assert_eq!((few.0, few.1), (many.0, many.1), "puts and lists");
    assert!(many.2 <= few.2 + 8, "reads: {few:?} {many:?}");
    assert!(many_bytes < few_bytes + 40_000, "bytes: {few_bytes} {many_bytes}");
}
