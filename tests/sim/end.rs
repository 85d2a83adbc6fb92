//! The end of a history: all is healed, everything agrees, and every volume can do without those that it does not depend on.

use std::{sync::Arc, time::Duration};

use s3bd::{
    format::manifest::CloneRef,
    fsck::{self, Finding, Level, Options, Sample, Severity},
    nbd::Device,
    volume::{open::Agreed, remove::clear},
};

use crate::{
    act::Act,
    bucket::below,
    family::{FIRST, is_independent, is_volume, keys_of, may_depend},
    host::{Disks, env},
    machine::{Common, Machine},
    rig::WHATEVER,
    world::World,
};

impl World {
    /// No more faults; one host takes each volume, and everything agrees.
    pub async fn heal(&mut self) {
        self.watched.journal().note("all is healed");
        self.hosts.iter_mut().for_each(Machine::heal);
        tokio::time::sleep(Duration::from_secs(120)).await;
        self.settle().await;
        self.check_bucket().await;
        self.clear_leftovers().await;
        for volume in self.volumes() {
            self.take(&volume).await;
        }
        self.part().await;
    }

    /// What commands left that did not come to their end.
    async fn clear_leftovers(&mut self) {
        let contents = self.watched.memory.snapshot();
        let names: Vec<String> = self.watched.family().members.keys().cloned().collect();
        for name in names {
            if !is_volume(&contents, &name) && keys_of(&contents, &name).next().is_some() {
                let store = below(Arc::new(self.watched.clone()), &name);
                let cleared = clear(&env(store, &Disks::new(), 1, "who clears"), |_| ()).await;
                cleared.unwrap_or_else(|error| panic!("{name} is not cleared: {error}"));
                self.assert_gone(&name);
            }
        }
    }

    fn assert_gone(&self, volume: &str) {
        assert_eq!(keys_of(&self.watched.memory.snapshot(), volume).next(), None, "{volume} is removed");
    }

    /// The volumes there are, clones before what they are made of.
    fn volumes(&self) -> Vec<String> {
        let contents = self.watched.memory.snapshot();
        let family = self.watched.family();
        let names = family.members.keys().filter(|name| is_volume(&contents, name));
        let mut names: Vec<String> = names.cloned().collect();
        names.sort_by_key(|name| std::cmp::Reverse(family.needs(&contents, name).len()));
        names
    }

    /// Opens a volume on one of its hosts.
    async fn open(&mut self, volume: &str) -> usize {
        let of_it = self.hosts.iter().enumerate().filter(|(_, host)| host.common.volume == volume);
        let of_it: Vec<usize> = of_it.map(|(at, _)| at).collect();
        let host = of_it[self.prng.below(of_it.len() as u64) as usize];
        self.hosts[host].open(Agreed { rollback: true, ..WHATEVER }, None).await;
        assert!(self.hosts[host].process.is_some(), "nothing keeps {volume} from being opened");
        host
    }

    async fn do_and_close(&mut self, host: usize, act: Act) {
        for act in [act, Act::Close] {
            self.hosts[host].request(act).await;
        }
        assert!(self.hosts[host].process.is_none(), "it is closed");
        self.check_bucket().await;
    }

    async fn take(&mut self, volume: &str) {
        let host = self.open(volume).await;
        let host = &self.hosts[host];
        let process = host.process.as_ref().expect("it is open");
        let (key, size_bytes) = (process.key, process.volume.info().size_bytes as u32);
        let before = process.volume.read(0, size_bytes).await.expect("it can be read").concat();
        host.read_snapshots(process).await;
        process.volume.close().await.expect("it can be closed");
        let common = host.common.clone();
        self.check_bucket().await;
        {
            let mut promises = common.promises();
            let last = promises.last(key);
            promises.publish(key, last);
            assert!(before == *promises.image(key), "what is read at the end is not what was written");
        }
        let contents = self.watched.memory.snapshot();
        if self.watched.family().needs(&contents, volume).len() == 1 {
            common.check_without_manifests(contents, key).await;
        }
        if self.check_stale(&common).await {
            let host = self.open(volume).await;
            self.do_and_close(host, Act::Collect).await;
            assert!(!self.check_stale(&common).await, "stale pins are released");
        }
    }

    /// Has all of it checked; whether what is kept for clones that are gone is all there is to be said.
    async fn check_stale(&self, common: &Common) -> bool {
        let options = Options { level: Level::ReadData(Sample::ALL), concurrency: 4 };
        let report = fsck::check(&common.direct, &options, &()).await.expect("a store that answers");
        let contents = self.watched.memory.snapshot();
        let (stale, faults): (Vec<_>, Vec<_>) = report
            .findings
            .iter()
            .filter(|found| found.severity() > Severity::Note)
            // Of a clone that was not made, put once more after that was taken back.
            .filter(|found| !(self.faults.late > 0 && matches!(found, Finding::SlotForeign { .. })))
            .partition(|found| matches!(found, Finding::PinStale { .. }));
        assert!(faults.is_empty(), "fsck of {}: {faults:#?}", common.volume);
        for found in &stale {
            let Finding::PinStale { clone, volume, .. } = found else { continue };
            let clone = CloneRef { volume: *volume, name: clone.clone() };
            assert!(!may_depend(&contents, &clone), "{} is kept for {clone:?}", common.volume);
            common.count("stale pin found");
        }
        !stale.is_empty()
    }

    /// Every clone is flattened or removed, and then the first volume goes: what is left can do without it.
    async fn part(&mut self) {
        let volumes = self.volumes();
        for volume in &volumes {
            let contents = self.watched.memory.snapshot();
            let clones = self.watched.family().clones(&contents, volume, None);
            if !clones.is_empty() {
                self.remove(volume).await;
                assert!(is_volume(&self.watched.memory.snapshot(), volume), "{clones:?} depend on {volume}");
            }
        }
        for volume in volumes.iter().filter(|volume| *volume != FIRST) {
            if is_independent(&self.watched.memory.snapshot(), volume) {
                continue;
            }
            if self.prng.below(2) == 0 {
                self.remove(volume).await;
                self.assert_gone(volume);
            } else {
                let host = self.open(volume).await;
                self.do_and_close(host, Act::Flatten { offset: 0, length: 1, death: None }).await;
                assert!(is_independent(&self.watched.memory.snapshot(), volume), "{volume} is flattened");
            }
        }
        self.remove(FIRST).await;
        self.assert_gone(FIRST);
        self.settle().await;
        for volume in self.volumes() {
            let common = self.commons[&volume].clone();
            let host = self.open(&volume).await;
            self.do_and_close(host, Act::Collect).await;
            assert!(!self.check_stale(&common).await, "{volume} has no clones");
        }
    }

    async fn remove(&mut self, volume: &str) {
        let host = self.hosts.iter_mut().find(|host| host.common.volume == volume);
        host.expect("every volume has a host").remove(false, None).await;
        self.check_bucket().await;
    }
}
