//! One history: hosts that act at once, round after round, over a bucket that has troubles of its own; then all is healed.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use s3bd::{
    format::{ids::Generation, names},
    fsck::{self, Level, Options, Sample, Severity},
    nbd::Device,
    store::{faulty::SeededPlan, memory::Memory},
    volume::{open::Agreed, settings::Durability},
};
use wal::disk::sim::Prng;

use crate::{
    bucket::{self, Watched},
    host::make_with,
    machine::{Common, Machine},
    promises::{Copy, Moment, Promises},
    rig::{WHATEVER, tight_settings},
};

const ROUNDS: u64 = 40;
/// Longer than any change is under way whose caller is gone.
const LATE: Duration = Duration::from_secs(20);

struct World {
    common: Common,
    hosts: Vec<Machine>,
    copies: Vec<Copy>,
    prng: Prng,
}

/// Runs the history of a seed; gives back what it counted.
pub async fn history(seed: u64, trace: Arc<Mutex<Vec<String>>>) -> Promises {
    let mut world = World::new(seed, trace).await;
    for _ in 0..ROUNDS {
        world.round().await;
    }
    world.heal().await;
    let promises = Arc::clone(&world.common.watched.promises);
    let fresh = Promises::new(0, Arc::default());
    std::mem::replace(&mut promises.lock().unwrap(), fresh)
}

impl World {
    async fn new(seed: u64, trace: Arc<Mutex<Vec<String>>>) -> Self {
        let mut prng = Prng::new(seed);
        let (block_bytes, blocks) = [(512, 48), (4096, 10)][prng.below(2) as usize];
        let size_bytes = u64::from(block_bytes) * blocks;
        let memory = Memory::new();
        // A store that refuses conditional puts is one that ignores them, from this seam on: `store::s3` asks without.
        memory.set_create_honoured(prng.below(2) == 0);
        let direct = make_with(&memory, size_bytes, block_bytes).await;
        let promises = Arc::new(Mutex::new(Promises::new(size_bytes, trace)));
        let mut settings = tight_settings(&mut prng);
        settings.wal_segment_bytes_min = [16 << 10, 64 << 10][prng.below(2) as usize];
        settings.wal_bytes_max = settings.wal_segment_bytes_min * (4 + prng.below(8));
        settings.object_bytes = [2 << 10, 8 << 10, 64 << 10][prng.below(3) as usize];
        if prng.below(4) == 0 {
            settings.durability = Durability::Remote;
        }
        let nasty = [0, 0, 10, 40][prng.below(4) as usize];
        let faults = SeededPlan {
            delay: [0, 300, 800][prng.below(3) as usize] / 2,
            before: nasty,
            denied: nasty / 4,
            after: nasty,
            late: nasty,
            twice: nasty,
            delay_max: Duration::from_millis([30, 1000, 6000][prng.below(3) as usize]),
            ..SeededPlan::default()
        };
        let watched = Watched::new(memory, promises);
        let common = Common { watched, direct, settings, faults, size_bytes };
        let count = 2 + prng.below(2) as usize;
        let hosts = (0..count).map(|host| Machine::new(host, common.clone(), prng.next_u64())).collect();
        Self { common, hosts, copies: Vec::new(), prng }
    }

    /// All hosts act at once.
    async fn round(&mut self) {
        self.trouble().await;
        self.act_all().await;
        self.check_bucket().await;
    }

    async fn act_all(&mut self) {
        let up: Vec<bool> = self.hosts.iter().map(|host| host.process.is_some()).collect();
        let acting = self.hosts.iter_mut().enumerate().map(|(number, host)| {
            let others = up.iter().enumerate().any(|(other, up)| *up && other != number);
            let act = host.draw(others);
            host.act(act)
        });
        futures::future::join_all(acting).await;
    }

    /// What happens to the bucket.
    async fn trouble(&mut self) {
        let watched = self.common.watched.clone();
        let time = Duration::from_millis(500 + self.prng.below(60_000));
        match self.prng.below(100) {
            0..3 => {
                self.common.promises().note(format!("the store is away for {time:?}"));
                watched.set_away(true);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    watched.set_away(false);
                });
            }
            3..6 => {
                self.common.promises().note(format!("listings are refused for {time:?}"));
                watched.set_list_refused(true);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    watched.set_list_refused(false);
                });
            }
            6..12 => {
                let copy = self.common.promises().copy(watched.memory.snapshot());
                self.copies.push(copy);
            }
            12..15 if !self.copies.is_empty() => self.put_bucket_back().await,
            15..18 if !self.copies.is_empty() => self.put_bucket_back_under_writers().await,
            18..24 => self.copy_state_to_another_host(),
            _ => {}
        }
    }

    /// A host goes on with a copy of the disks of another one, which has them still.
    fn copy_state_to_another_host(&mut self) {
        let count = self.hosts.len() as u64;
        let (from, to) = (self.prng.below(count) as usize, self.prng.below(count) as usize);
        if from == to || self.hosts[to].process.is_some() {
            return;
        }
        // At one moment, as of a disk: what was not synced may be missing.
        let disks = self.hosts[from].disks.crash(self.prng.next_u64());
        self.hosts[to].note(format!("gets a copy of the state directory of host {from}"));
        self.common.promises().count("state copied");
        self.hosts[to].replace_disks(disks);
    }

    /// Somebody restores the bucket while hosts write to it. Whose claim is not in the copy stops at its next publish; what
    /// was put meanwhile is nobody's, so then it is done again as it should be.
    async fn put_bucket_back_under_writers(&mut self) {
        let running: Vec<_> = self.hosts.iter().filter_map(|host| host.process.as_ref()).collect();
        let claims: Vec<_> =
            running.iter().map(|process| names::claim(Generation(process.key.0), process.key.1)).collect();
        let lacks_claims = |copy: &&Copy| {
            claims.iter().all(|claim| copy.contents.get(claim).is_none()) && !claims.is_empty()
        };
        let Some(copy) = self.copies.iter().rev().find(lacks_claims).cloned() else { return };
        self.check_bucket().await;
        {
            let mut promises = self.common.promises();
            promises.note("an older copy of the bucket is put back under running writers");
            promises.count("put back under writers");
            promises.torn = true;
        }
        self.common.watched.memory.restore(copy.contents.clone());
        let epoch = |host: &Machine| {
            host.process.as_ref().map(|process| process.volume.core().progress.borrow().epoch.0)
        };
        let before: Vec<_> = self.hosts.iter().map(epoch).collect();
        for _ in 0..1 + self.prng.below(3) {
            self.act_all().await;
        }
        for (host, before) in self.hosts.iter().zip(before) {
            // One may have been checked already when it happened.
            let published = epoch(host).zip(before).map_or(0, |(now, before)| now - before);
            // A put of its claim that landed late, or once more, brought that back.
            let has_claim = host.process.as_ref().is_some_and(|process| {
                let claim = names::claim(Generation(process.key.0), process.key.1);
                self.common.watched.memory.snapshot().get(&claim).is_some()
            });
            assert!(
                has_claim || published <= 1,
                "host {} went on publishing: {published} epochs",
                host.number
            );
        }
        self.restore(copy).await;
        self.common.promises().torn = false;
    }

    /// Somebody restores the bucket from a backup, as it should be done.
    async fn put_bucket_back(&mut self) {
        let count = self.copies.len() as u64;
        let copy = self.copies[self.prng.below(count) as usize].clone();
        self.restore(copy).await;
    }

    /// Everybody is down, and nothing is under way: then the bucket is put back.
    async fn restore(&mut self, copy: Copy) {
        for host in &mut self.hosts {
            if host.process.is_some() {
                host.die();
            }
        }
        tokio::time::sleep(LATE).await;
        self.check_bucket().await;
        let mut promises = self.common.promises();
        promises.note("an older copy of the bucket is put back");
        promises.put_back(&copy);
        drop(promises);
        self.common.watched.memory.restore(copy.contents);
        self.hosts.iter_mut().for_each(Machine::bucket_put_back);
    }

    /// The volume as the bucket alone had it, after each change since the last look.
    async fn check_bucket(&mut self) {
        let moments = std::mem::take(&mut self.common.promises().moments);
        let mut moments = moments.into_iter().peekable();
        while let Some(moment) = moments.next() {
            let promises = &self.common.watched.promises;
            // What one deletion of several took is missing after the last of them, too.
            let is_deletion = |moment: &Moment| moment.change.starts_with("delete");
            let thorough = is_deletion(&moment) && !moments.peek().is_some_and(is_deletion);
            bucket::check(&self.common.direct, &self.common.settings, promises, moment, thorough).await;
        }
    }

    /// The end: no more faults, one host takes the volume, and everything agrees.
    async fn heal(&mut self) {
        self.common.promises().note("all is healed");
        self.hosts.iter_mut().for_each(Machine::heal);
        tokio::time::sleep(Duration::from_secs(120)).await;
        self.check_bucket().await;
        let count = self.hosts.len() as u64;
        let chosen = self.prng.below(count) as usize;
        self.hosts[chosen].open(Agreed { rollback: true, ..WHATEVER }, None).await;
        let host = &self.hosts[chosen];
        let process = host.process.as_ref().expect("nothing keeps it from opening");
        let (key, size_bytes) = (process.key, process.volume.info().size_bytes as u32);
        let before = process.volume.read(0, size_bytes).await.expect("it can be read").concat();
        host.read_snapshots(process).await;
        process.volume.close().await.expect("it can be closed");
        self.check_bucket().await;
        {
            let mut promises = self.common.promises();
            let last = promises.last(key);
            promises.publish(key, last);
            assert!(before == *promises.image(key), "what is read at the end is not what was written");
        }
        let options = Options { level: Level::ReadData(Sample::ALL), concurrency: 4 };
        let report = fsck::check(&self.common.direct, &options, &()).await.expect("a store that answers");
        let faults: Vec<_> =
            report.findings.iter().filter(|found| found.severity() > Severity::Note).collect();
        assert!(faults.is_empty(), "fsck: {faults:#?}");
    }
}
