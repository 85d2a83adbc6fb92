//! One history: hosts that act at once, round after round, over a bucket that has troubles of its own; then all is healed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use s3bd::{
    format::{ids::Generation, names},
    seal::slot::Secret,
    store::{faulty::SeededPlan, memory::Memory},
    volume::{
        bucket::Bucket,
        settings::{Durability, Settings},
    },
};
use wal::disk::sim::Prng;

use crate::{
    bucket::{Watched, below},
    family::{Copy, FIRST, Family, LATE, is_volume},
    host::make_in,
    journal::Journal,
    machine::{Common, Machine},
    promises::{Moment, Promises},
    rig::tight_settings,
};

const ROUNDS: u64 = 40;

pub struct World {
    pub watched: Watched,
    settings: Settings,
    pub faults: SeededPlan,
    /// Of each volume that there ever was.
    pub commons: BTreeMap<String, Common>,
    pub hosts: Vec<Machine>,
    hosts_made: usize,
    copies: Vec<Copy>,
    pub prng: Prng,
}

/// Runs the history of a seed; gives back what it counted.
pub async fn history(seed: u64, trace: Arc<Mutex<Vec<String>>>) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, trace).await;
    for _ in 0..ROUNDS {
        world.round().await;
    }
    world.heal().await;
    std::mem::take(&mut world.watched.journal().events)
}

impl World {
    async fn new(seed: u64, trace: Arc<Mutex<Vec<String>>>) -> Self {
        let mut prng = Prng::new(seed);
        let (block_bytes, blocks) = [(512, 48), (4096, 10)][prng.below(2) as usize];
        let size_bytes = u64::from(block_bytes) * blocks;
        let memory = Memory::new();
        // A store that refuses conditional puts is one that ignores them, from this seam on: `store::s3` asks without.
        memory.set_create_honoured(prng.below(2) == 0);
        let journal = Arc::new(Mutex::new(Journal::new(trace)));
        let first = Promises::new(vec![0; size_bytes as usize], Arc::clone(&journal));
        let family = Family::new(first, Arc::clone(&journal));
        let watched = Watched::new(memory, family, journal);
        make_in(below(Arc::new(watched.clone()), FIRST), size_bytes, block_bytes).await;
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
        let (commons, hosts, copies) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut world = Self { watched, settings, faults, commons, hosts, hosts_made: 0, copies, prng };
        for _ in 0..2 + world.prng.below(2) {
            world.add_host(FIRST).await;
        }
        world
    }

    async fn add_host(&mut self, volume: &str) {
        if !self.commons.contains_key(volume) {
            let store = below(Arc::new(self.watched.memory.clone()), volume);
            let direct = Bucket::unlock(store, &Secret::password("secret")).await.expect("it is a volume");
            let promises = Arc::clone(&self.watched.family().members[volume].promises);
            let size_bytes = promises.lock().unwrap().image((0, 0)).len() as u64;
            let (settings, faults) = (self.settings.clone(), self.faults);
            let (watched, volume) = (self.watched.clone(), volume.to_owned());
            let common =
                Common { watched, volume: volume.clone(), promises, direct, settings, faults, size_bytes };
            self.commons.insert(volume, common);
        }
        let seed = self.prng.next_u64();
        self.hosts.push(Machine::new(self.hosts_made, self.commons[volume].clone(), seed));
        self.hosts_made += 1;
    }

    /// Every volume has a host, as long as it is there.
    pub async fn settle(&mut self) {
        let contents = self.watched.memory.snapshot();
        for host in &mut self.hosts {
            if host.process.is_some() && !is_volume(&contents, &host.common.volume) {
                host.die();
            }
        }
        self.hosts.retain(|host| is_volume(&contents, &host.common.volume));
        let names: Vec<String> = self.watched.family().members.keys().cloned().collect();
        for name in names {
            let has_host = self.hosts.iter().any(|host| host.common.volume == name);
            if is_volume(&contents, &name) && !has_host {
                self.add_host(&name).await;
            }
        }
    }

    /// All hosts act at once.
    async fn round(&mut self) {
        self.trouble().await;
        self.act_all().await;
        self.settle().await;
        self.check_bucket().await;
    }

    async fn act_all(&mut self) {
        let up = self.hosts.iter().filter(|host| host.process.is_some());
        let up: Vec<(usize, String)> = up.map(|host| (host.number, host.common.volume.clone())).collect();
        let acting = self.hosts.iter_mut().map(|host| {
            let is_other =
                |(number, volume): &(usize, String)| *number != host.number && *volume == host.common.volume;
            let others = up.iter().any(is_other);
            let act = host.draw(others);
            host.act(act)
        });
        futures::future::join_all(acting).await;
    }

    /// What happens to the bucket.
    async fn trouble(&mut self) {
        let watched = self.watched.clone();
        let time = Duration::from_millis(500 + self.prng.below(60_000));
        match self.prng.below(100) {
            0..3 => {
                self.watched.journal().note(format!("the store is away for {time:?}"));
                watched.set_away(true);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    watched.set_away(false);
                });
            }
            3..6 => {
                self.watched.journal().note(format!("listings are refused for {time:?}"));
                watched.set_list_refused(true);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    watched.set_list_refused(false);
                });
            }
            6..12 => {
                let copy = watched.family().copy(watched.memory.snapshot());
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
        let is_same = self.hosts[from].common.volume == self.hosts[to].common.volume;
        if from == to || !is_same || self.hosts[to].process.is_some() {
            return;
        }
        // At one moment, as of a disk: what was not synced may be missing.
        let disks = self.hosts[from].disks.crash(self.prng.next_u64());
        self.hosts[to].note(format!("gets a copy of the state directory of host {from}"));
        self.watched.journal().count("state copied");
        self.hosts[to].replace_disks(disks);
    }

    /// Somebody restores the bucket while hosts write to it. Whose claim is not in the copy stops at its next publish; what
    /// was put meanwhile is nobody's, so then it is done again as it should be.
    async fn put_bucket_back_under_writers(&mut self) {
        let claims: Vec<_> = self.hosts.iter().filter_map(claim).collect();
        let lacks_claims = |copy: &&Copy| {
            claims.iter().all(|claim| copy.contents.get(claim).is_none()) && !claims.is_empty()
        };
        let Some(copy) = self.copies.iter().rev().find(lacks_claims).cloned() else { return };
        self.check_bucket().await;
        self.watched.journal().note("an older copy of the bucket is put back under running writers");
        self.watched.journal().count("put back under writers");
        self.watched.family().set_torn(true);
        self.watched.memory.restore(copy.contents.clone());
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
            let has_claim =
                claim(host).is_some_and(|claim| self.watched.memory.snapshot().get(&claim).is_some());
            assert!(
                has_claim || published <= 1,
                "host {} went on publishing: {published} epochs",
                host.number
            );
        }
        self.restore(copy).await;
        self.watched.family().set_torn(false);
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
        self.watched.journal().note("an older copy of the bucket is put back");
        self.watched.family().put_back(&copy);
        self.watched.memory.restore(copy.contents);
        self.hosts.iter_mut().for_each(Machine::bucket_put_back);
        self.settle().await;
    }

    /// The volumes as the bucket alone had them, after each change since the last look.
    pub async fn check_bucket(&mut self) {
        for common in self.commons.values() {
            let moments = std::mem::take(&mut common.promises().moments);
            let mut moments = moments.into_iter().peekable();
            while let Some(moment) = moments.next() {
                // What one deletion of several took is missing after the last of them, too.
                let is_deletion = |moment: &Moment| moment.change.starts_with("delete");
                let thorough = is_deletion(&moment) && !moments.peek().is_some_and(is_deletion);
                common.check(moment, thorough).await;
            }
        }
    }
}

/// The claim of the process that a host runs.
fn claim(host: &Machine) -> Option<String> {
    let (generation, nonce) = host.process.as_ref()?.key;
    Some(format!("{}/{}", host.common.volume, names::claim(Generation(generation), nonce)))
}
