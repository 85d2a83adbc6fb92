//! Clones in a history: commands make them, flatten them and remove them, and die anywhere on the way.
//!
//! # Overview
//! What a clone holds at first is settled when it is asked for. A command reaches the store by a line of its own, so it dies
//! with its host or without it. What is left of one that died is a volume, or something that is no volume, and that the next
//! one finds and clears.

use std::{sync::Arc, time::Duration};

use s3bd::{
    format::slot::Argon2,
    seal::slot::Secret,
    store::Store,
    volume::{
        bucket::Bucket,
        clone::{NewClone, begin},
        error::VolumeError,
        open::{Agreed, manifest_of_snapshot},
        remove::{clear, has_remains, remove},
    },
};
use wal::disk::sim::Prng;

use crate::{
    act::Act,
    bucket::below,
    family::{FIRST, LATE, depends, is_independent, is_volume, keys_of},
    host::{Disks, env},
    line::Death,
    machine::{Machine, Process, name},
    snapshots::Known,
};

/// Of a key, cheap.
const COST: Argon2 = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };

/// A clone to be made.
struct Wanted {
    name: String,
    /// Of this snapshot; of none: as the volume is now.
    snapshot: Option<String>,
    /// What is left of an earlier attempt is cleared.
    clear_first: bool,
    seed: u64,
}

/// How far a command came that makes a clone.
enum Made {
    Whole,
    /// The host that has the origin open did not pin its snapshot.
    NotPinned(VolumeError),
    /// What is there of an earlier attempt was left as it is.
    Refused,
}

impl Machine {
    /// Has a clone made of the volume that this host has open, or of a snapshot of it; the command may die on its way.
    /// Whether it did.
    pub async fn make_clone(&mut self, death: Option<Death>) -> bool {
        let seed = self.prng.next_u64();
        let mut prng = Prng::new(seed);
        let process = self.process.as_ref().expect("it is up");
        let (snapshot, image) = {
            let promises = self.common.promises();
            let chosen = Self::choose(process, seed).filter(|_| prng.below(2) == 0);
            // What takeovers take, and what was taken for another clone, is known roughly.
            let held = |name: &String| promises.snapshots.images.get(name).cloned();
            let known = chosen.and_then(|chosen| held(&chosen.name).map(|image| (chosen.name, image)));
            match known {
                Some((name, image)) => (Some(name), image),
                None => (None, promises.image(process.key)),
            }
        };
        let contents = self.common.watched.memory.snapshot();
        let again = prng.below(8) > 0;
        let named = self.common.watched.family().begin(&contents, &self.common.volume, &image, again);
        let Some(name) = named else { return false };
        let wanted = Wanted { name, snapshot, clear_first: prng.below(2) == 0, seed };
        let Wanted { name, snapshot, .. } = &wanted;
        self.note(format!("makes {name} of {} at {snapshot:?}, {death:?}", self.common.volume));
        let (line, store) = self.common.connect(seed, death);
        let (is_beside, interval) = (prng.below(2) == 0, Duration::from_millis(1 + prng.below(50)));
        // Others let go meanwhile of what no clone needs; how they fare is nothing to the clone.
        let beside = async {
            loop {
                let _ = process.volume.core().release_stale(None).await;
                tokio::time::sleep(interval).await;
            }
        };
        let done = tokio::select! {
            biased;
            () = line.died() => None,
            done = self.make(process, &store, &wanted) => Some(done),
            () = beside, if is_beside => None,
        };
        line.cut();
        self.common.watched.family().ended(name);
        match done {
            None => {
                self.note(format!("who makes {name} died"));
                self.count("clone's maker died");
                return true;
            }
            Some(Ok(Made::Whole)) => {
                self.count("clone made");
                if self.common.watched.family().members[&self.common.volume].origin.is_some() {
                    self.count("clone of a clone made");
                }
            }
            Some(Ok(Made::Refused)) => self.count("leftover refused"),
            // It died, and is looked at by whoever waits for that.
            Some(Ok(Made::NotPinned(_))) if self.process.as_ref().unwrap().line.is_dead() => {}
            Some(Ok(Made::NotPinned(error))) => {
                self.judge("a snapshot was not pinned", &error);
                self.die();
            }
            Some(Err(VolumeError::Store(error))) if self.common.faults.denied > 0 => {
                self.note(format!("{name} is not made: {error}"));
            }
            Some(Err(error)) => panic!("{name} is not made: {error}"),
        }
        false
    }

    /// The same, where nobody has it open: the command opens it.
    pub async fn make_clone_offline(&mut self, death: Option<Death>) {
        self.open(Agreed::default(), None).await;
        if self.process.is_none() {
            return;
        }
        if self.make_clone(death).await {
            // They are one process.
            self.die();
        } else if self.process.is_some() {
            self.request(Act::Close).await;
        }
    }

    /// What `s3bd clone` does, where the volume is open.
    async fn make(
        &self,
        process: &Process,
        store: &Arc<dyn Store>,
        wanted: &Wanted,
    ) -> Result<Made, VolumeError> {
        let secret = Secret::password("secret");
        let origin = Bucket::unlock(below(Arc::clone(store), &self.common.volume), &secret).await?;
        let env = env(below(Arc::clone(store), &wanted.name), &Disks::new(), wanted.seed, "maker");
        if wanted.clear_first && has_remains(&*env.store).await? {
            clear(&env, |_| ()).await?;
            self.count("leftover cleared");
        }
        let new = NewClone { name: &wanted.name, secret: &secret, cost: COST };
        let begun = match begin(&env, &origin, &new).await {
            Err(VolumeError::Unfinished) if !wanted.clear_first => return Ok(Made::Refused),
            begun => begun?,
        };
        let at = self.common.promises().last(process.key);
        let pinned = tokio::select! {
            biased;
            () = process.line.died() => Err(VolumeError::Closed),
            pinned = process.volume.core().pin(wanted.snapshot.as_deref(), begun.reference()) => pinned,
        };
        let pinned = match pinned {
            Ok(pinned) => pinned.name,
            Err(error) => {
                begun.undo().await?;
                return Ok(Made::NotPinned(error));
            }
        };
        self.common.watched.family().pinned(&wanted.name, &pinned);
        self.changed(process, at, &pinned, Known::Taken, "pinned");
        let manifest = manifest_of_snapshot(&origin, &pinned).await?;
        begun.finish(&origin, &self.common.volume, &manifest).await?;
        Ok(Made::Whole)
    }

    /// Makes the clone independent of its origin, while there is a `write`; the process may die. Snapshots of its own keep it
    /// from that, so they go first.
    pub async fn flatten(
        &self,
        process: &Process,
        death: Option<Death>,
        write: impl Future<Output = Result<(), VolumeError>>,
    ) -> Result<(), VolumeError> {
        let core = process.volume.core();
        let snapshots: Vec<_> = core.state().snapshots.iter().cloned().collect();
        for snapshot in snapshots {
            self.delete(process, &snapshot).await?;
        }
        let at = self.common.promises().tenures[&process.key].acknowledged;
        if let Some(death) = death {
            process.line.set_death(death);
        }
        let (flattened, written) = tokio::join!(core.flatten(|_| ()), write);
        written?;
        match flattened {
            Ok(done) if done.origin.is_some() => {
                let contents = self.common.watched.memory.snapshot();
                assert!(is_independent(&contents, &self.common.volume), "it does not say so");
                self.count("flattened");
                self.common.promises().publish(process.key, at);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(VolumeError::HasSnapshots { names }) => {
                assert!(!core.state().snapshots.is_empty(), "there is no {names:?}");
                Ok(())
            }
            Err(VolumeError::Store(error)) if self.common.faults.denied > 0 => {
                self.note(format!("not flattened: {error}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What `s3bd gc` does: lets go of what clones do not need any more, and collects.
    pub async fn collect(&self, process: &Process) -> Result<(), VolumeError> {
        let core = process.volume.core();
        match core.release_stale(None).await {
            Ok(released) => {
                let contents = self.common.watched.memory.snapshot();
                for clone in released {
                    self.count("pin released");
                    assert!(!depends(&contents, &clone), "{} is not kept for {clone:?}", self.common.volume);
                }
            }
            Err(VolumeError::Store(error)) if self.common.faults.denied > 0 => {
                self.note(format!("nothing is released: {error}"));
            }
            Err(error) => return Err(error),
        }
        core.collect().await.map(drop)
    }

    /// What `s3bd remove` does, on a host that has the volume not open.
    pub async fn remove(&mut self, takeover: bool, death: Option<Death>) {
        let seed = self.prng.next_u64();
        self.note(format!("removes {}, {death:?}", self.common.volume));
        let (line, store) = self.common.connect(seed, death);
        let env = env(below(store, &self.common.volume), &self.disks, seed, &name(self.number));
        let before = self.common.watched.memory.snapshot();
        let removing = async {
            let bucket = Bucket::unlock(Arc::clone(&env.store), &Secret::password("secret")).await?;
            remove(&env, &bucket, takeover, |_| ()).await
        };
        let done = tokio::select! {
            biased;
            () = line.died() => None,
            done = removing => Some(done),
        };
        line.cut();
        self.common.watched.family().ended(&self.common.volume);
        let after = self.common.watched.memory.snapshot();
        match done {
            None => {
                self.count("removal died");
                self.die();
            }
            Some(Ok(_)) => {
                self.count("removed");
                let clones = self.common.watched.family().clones(&after, &self.common.volume, None);
                assert!(clones.is_empty(), "{} is removed under {clones:?}", self.common.volume);
                assert!(!is_volume(&after, &self.common.volume), "{} is there still", self.common.volume);
            }
            Some(Err(VolumeError::InUse { .. })) => assert!(!takeover, "it is taken over"),
            Some(Err(VolumeError::HasClones { clones })) => {
                let is_there = |clone: &String| {
                    let is_left = |contents| keys_of(contents, clone).next().is_some();
                    is_left(&before) || is_left(&after)
                };
                assert!(clones.iter().any(is_there), "{} is kept for {clones:?}", self.common.volume);
                self.count("removal refused");
            }
            Some(Err(VolumeError::Store(error))) if self.common.faults.denied > 0 => {
                self.note(format!("not removed: {error}"));
            }
            Some(Err(error)) => panic!("{} is not removed: {error}", self.common.volume),
        }
    }

    /// Whether what others did about the volume before it was this host's is over.
    pub fn may_remove(&self) -> bool {
        self.common.volume != FIRST && self.since.elapsed() > LATE
    }
}
