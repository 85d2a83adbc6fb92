//! A host: its disks, which outlive processes and deaths, and the process that has the volume open.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use s3bd::{
    format::{
        envelope::Content,
        ids::VolumeId,
        local::{LOG, LogIdentity},
    },
    nbd::Device,
    store::{
        Store,
        faulty::{Faulty, SeededPlan},
    },
    volume::{
        Volume,
        bucket::Bucket,
        env::{Local, LocalRoot},
        error::{Kind, VolumeError},
        local,
        open::{Agreed, OpenReport, open_read_only},
        settings::Settings,
    },
};
use tokio::time::Instant;
use wal::disk::sim::Prng;

use crate::{
    alone::Descent,
    bucket::{Watched, below},
    host::{Disks, env, open_with},
    line::{Death, Line},
    promises::{Key, Promises},
    rig::retrying,
};

/// A host's name, as it signs claims and manifests.
pub fn name(host: usize) -> String {
    format!("host {host}")
}

/// The disks as they are, without their faults.
pub fn snapshot(disks: &Disks) -> Disks {
    Disks { state: disks.state.snapshot(), wal: disks.wal.snapshot(), cache: disks.cache.snapshot() }
}

/// What a host's disk still holds of the last tenure that served there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    Nothing,
    Flushed,
    Acknowledged,
}

/// The folders of a host, while another process has them.
#[derive(Debug)]
struct Held;

impl LocalRoot for Held {
    fn open(&self, _: VolumeId) -> io::Result<Option<Local>> {
        Ok(None)
    }

    fn describe(&self, _: VolumeId) -> String {
        "simulated".to_owned()
    }
}

/// What all hosts of a volume have in common.
#[derive(Clone)]
pub struct Common {
    pub watched: Watched,
    /// Its name in the bucket.
    pub volume: String,
    pub promises: Arc<Mutex<Promises>>,
    /// The volume, unlocked, over the store without faults.
    pub direct: Bucket,
    pub settings: Settings,
    pub faults: SeededPlan,
    /// As the volume was made.
    pub size_bytes: u64,
}

impl Common {
    pub fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap()
    }

    pub fn count(&self, event: &'static str) {
        self.watched.journal().count(event);
    }

    /// The bucket, with the faults of the store.
    pub fn faulty(&self, seed: u64) -> Faulty<Watched> {
        Faulty::with_plan(self.watched.clone(), SeededPlan { seed, ..self.faults })
    }

    /// The bucket as a new process has it, and its line there.
    pub fn connect(&self, seed: u64, death: Option<Death>) -> (Line, Arc<dyn Store>) {
        let line = Line::new(Arc::new(self.faulty(seed)), death);
        (line.clone(), retrying(line, seed))
    }
}

/// An open volume.
pub struct Process {
    pub volume: Volume,
    pub key: Key,
    pub line: Line,
}

pub struct Machine {
    pub number: usize,
    pub common: Common,
    pub disks: Disks,
    pub copies: Vec<Disks>,
    pub process: Option<Process>,
    pub last: Option<Key>,
    pub kept: Kept,
    /// An opening was allowed to give up what the log holds of a lost line, since the last tenure here.
    may_discard: bool,
    /// A disk of this host was told to fail.
    pub sick: bool,
    /// Its disk was full at some time.
    pub full: bool,
    /// Generation and epoch that its state directory has seen.
    pub seen: (u64, u64),
    /// The same, before an opening that may go on with an older bucket.
    forgotten: (u64, u64),
    pub prng: Prng,
    /// When this host came to be.
    pub since: Instant,
    opened: u64,
}

impl Machine {
    pub fn new(number: usize, common: Common, seed: u64) -> Self {
        Self {
            number,
            common,
            disks: Disks::new(),
            copies: Vec::new(),
            process: None,
            last: None,
            kept: Kept::Nothing,
            may_discard: false,
            sick: false,
            full: false,
            seen: (0, 0),
            forgotten: (0, 0),
            prng: Prng::new(seed),
            since: Instant::now(),
            opened: seed,
        }
    }

    pub fn note(&self, text: impl AsRef<str>) {
        self.common.promises().note(format!("{}: {}", name(self.number), text.as_ref()));
    }

    pub fn count(&self, event: &'static str) {
        self.common.count(event);
    }

    fn is_disk_dead(&self) -> bool {
        self.disks.wal.is_dead() || self.disks.state.is_dead()
    }

    /// Whether an error of the log or of a file may be.
    fn has_disk_trouble(&self) -> bool {
        self.sick || self.is_disk_dead()
    }

    /// Opens the volume; the process may die on the way.
    pub async fn open(&mut self, agreed: Agreed, death: Option<Death>) {
        self.note(format!("open {} {agreed:?} {death:?}", self.common.volume));
        self.opened = self.opened.wrapping_add(1);
        self.may_discard |= agreed.discard;
        let seed = self.opened;
        let (line, store) = self.common.connect(seed, death);
        let env = env(below(store, &self.common.volume), &self.disks, seed, &name(self.number));
        let durable = self.common.promises().durable();
        if agreed.rollback {
            // From here on it may be noted that the older bucket is what was wanted.
            self.forgotten = std::mem::take(&mut self.seen);
        }
        let opening = open_with(env, self.common.settings.clone(), agreed);
        let opened = tokio::select! {
            biased;
            () = line.died() => None,
            opened = opening => Some(opened),
        };
        match opened {
            None => self.die(),
            Some(Err(error)) => {
                line.cut();
                self.refused(agreed, error).await;
            }
            Some(Ok((volume, report))) => self.serve(volume, report, line, agreed, durable).await,
        }
    }

    /// What was found has to be what was promised; then the tenure begins.
    async fn serve(
        &mut self,
        volume: Volume,
        report: OpenReport,
        line: Line,
        agreed: Agreed,
        durable: usize,
    ) {
        let newest = &report.newest;
        let found = (newest.generation.0, newest.epoch.0);
        let goes_on =
            found == self.seen || (found > self.seen && found.1 > self.seen.1) || self.seen == (0, 0);
        assert!(agreed.rollback || goes_on, "opened {found:?}, and has seen {:?}", self.seen);
        let mut tenures = self.tenures();
        let key = tenures.pop().expect("it was just written");
        let size_bytes = volume.info().size_bytes as u32;
        let image = tokio::select! {
            biased;
            () = line.died() => None,
            read = volume.read(0, size_bytes) => Some(read),
        };
        self.process = Some(Process { volume, key, line });
        let image = match image {
            None => return self.die(),
            Some(Ok(parts)) => parts.concat(),
            Some(Err(_)) => {
                let process = self.process.as_ref().unwrap();
                let fault =
                    process.volume.core().check().expect_err("a read fails only where everything does");
                self.judge("the first read", &fault);
                return self.die();
            }
        };
        let descent = self.common.descent(newest).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let own = self.is_all_of_it(&descent);
        let mut promises = self.common.promises();
        let kept = self.last.map_or(0, |last| match self.kept {
            Kept::Nothing => 0,
            Kept::Flushed => promises.tenures[&last].flushed,
            Kept::Acknowledged => promises.tenures[&last].acknowledged,
        });
        let mut from = descent.key;
        let mut at = promises.find(from, &image, durable, if own { kept } else { 0 });
        // Over an older bucket the log may go on through all tenures under which it was written since.
        if at.is_err() && promises.rolled_back {
            let later = tenures.iter().rev().filter(|tenure| promises.tenures.contains_key(tenure));
            let found = later.map(|tenure| (*tenure, promises.find(*tenure, &image, durable, 0)));
            if let Some((tenure, found)) = found.into_iter().find(|(_, found)| found.is_ok()) {
                (from, at) = (tenure, found);
            }
        }
        let at = at.unwrap_or_else(|wrong| panic!("{} opened: {wrong}", name(self.number)));
        if let Some(last) = self.last
            && !own
            && !self.may_discard
        {
            assert!(
                promises.contains(from, at, last, kept),
                "{} gave up {kept} points of {last:?} without a word",
                name(self.number)
            );
        }
        promises.begin(key, self.number, from, at);
        let what = format!("{}: serves as {key:?}, from point {at} of {from:?}", name(self.number));
        promises.note(what);
        promises.count("opened");
        if promises.tenures[&from].host != self.number {
            promises.count("took over");
        }
        if report.replayed.tally.records() > 0 {
            promises.count("replayed");
        }
        if report.given_up.tally.records() > 0 {
            promises.count("discarded");
        }
        if agreed.rollback && found < self.forgotten {
            promises.count("rollback accepted");
        }
        drop(promises);
        (self.last, self.kept, self.seen) = (Some(key), Kept::Acknowledged, (0, 0));
        self.may_discard = false;
        self.note_published();
    }

    /// Generations and nonces of the tenures under which the log was written, the last of which was just noted.
    fn tenures(&self) -> Vec<Key> {
        let keys = &self.common.direct.keys;
        // A disk may die right after.
        let disk = self.disks.state.snapshot();
        let identity: Option<LogIdentity> =
            local::load(&disk, keys, Content::LogIdentity, LOG).expect("it was just written");
        let tenures = identity.expect("it was just written").tenures;
        tenures.into_iter().map(|tenure| (tenure.generation.0, tenure.nonce)).collect()
    }

    /// Another process on this host finds the folder locked: it changes nothing, and may read.
    pub async fn second_process(&mut self) {
        self.opened = self.opened.wrapping_add(1);
        let seed = self.opened;
        let faulty = self.common.faulty(seed);
        let store = below(retrying(faulty.clone(), seed), &self.common.volume);
        let mut env = env(store, &self.disks, seed, &name(self.number));
        env.local = Arc::new(Held);
        let settings = self.common.settings.clone();
        let whatever = Agreed { takeover: true, rollback: true, discard: true };
        match open_with(env.clone(), settings.clone(), whatever).await {
            Err(VolumeError::Locked { .. }) => self.count("locked"),
            Err(VolumeError::Store(error)) => assert!(self.common.faults.denied > 0, "{error}"),
            Err(error) => panic!("not for the lock: {error}"),
            Ok(_) => panic!("two processes of one host have the volume open"),
        }
        assert_eq!(faulty.counts().changes(), 0, "a process without the lock changed the bucket");
        let durable = self.common.promises().durable();
        let bucket = Bucket { store: Arc::clone(&env.store), ..self.common.direct.clone() };
        let volume = match open_read_only(env, bucket, settings).await {
            Ok(volume) => volume,
            Err(VolumeError::Store(_)) if self.common.faults.denied > 0 => return,
            // Others publish many times between two of its requests.
            Err(error) => return self.note(format!("a reader did not open: {error}")),
        };
        let (size_bytes, parts) = loop {
            let size_bytes = volume.info().size_bytes;
            let read = volume.read(0, size_bytes as u32).await;
            // On the way it may have gone on with an epoch of another size.
            if volume.info().size_bytes == size_bytes {
                break (size_bytes, read);
            }
        };
        let parts = parts.expect("a reader that opened reads");
        assert_eq!(parts.concat().len() as u64, size_bytes, "a reader reads all of it");
        let progress = *volume.core().progress.borrow();
        let manifest = self.common.direct.load_manifest(progress.generation, progress.epoch).await;
        let Ok(Some(manifest)) = manifest else { return };
        let descent = self.common.descent(&manifest.manifest).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let found = self.common.promises().find(descent.key, &parts.concat(), durable, 0);
        found.unwrap_or_else(|wrong| panic!("a reader on {}: {wrong}", name(self.number)));
        self.count("read beside a writer");
    }

    /// Not opened: was there a reason?
    async fn refused(&mut self, agreed: Agreed, error: VolumeError) {
        self.note(format!("not opened: {error}"));
        if self.has_disk_trouble() {
            return self.die();
        }
        match &error {
            VolumeError::InUse { .. } => {
                assert!(!agreed.takeover, "{error}");
                self.count("in use");
            }
            VolumeError::Fenced { .. } => self.count("fenced"),
            VolumeError::RolledBack { .. } => {
                assert!(!agreed.rollback && self.common.promises().rolled_back, "{error}");
                self.count("rollback found");
            }
            VolumeError::Diverged { .. } => {
                assert!(!agreed.discard, "{error}");
                assert!(!self.is_own().await, "all of it is in the winning line: {error}");
                self.count("diverged");
            }
            VolumeError::Store(_) => assert!(self.common.faults.denied > 0, "{error}"),
            error if error.kind() == Kind::Full => assert!(self.full, "{error}"),
            // Between the listing and the reading others published many times.
            VolumeError::NoManifest { .. } => {}
            error => panic!("{} not opened: {error}", name(self.number)),
        }
    }

    /// Whether the newest manifest is of this host's last tenure, and its disk is whole.
    async fn is_own(&self) -> bool {
        if self.kept == Kept::Nothing {
            return false;
        }
        let newest = self.common.direct.newest_manifest().await.expect("a bucket that is whole").manifest;
        let descent = self.common.descent(&newest).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        self.is_all_of_it(&descent)
    }

    /// Whether it goes back to this host's last tenure, through manifests of this host alone.
    fn is_all_of_it(&self, descent: &Descent) -> bool {
        self.last == Some(descent.key) && descent.hosts.iter().all(|host| *host == name(self.number))
    }

    /// An error of a volume that was open: was there a reason?
    pub fn judge(&self, what: &str, error: &VolumeError) {
        self.note(format!("{what}: {error}"));
        match error {
            VolumeError::Fenced { .. } => self.count("fenced"),
            VolumeError::Closed => {}
            // What a read needs may be gone with it.
            _ if self.common.promises().torn => {}
            VolumeError::ClaimGone { .. } => panic!("{what} on {}: {error}", name(self.number)),
            error => assert!(self.has_disk_trouble(), "{what} on {}: {error}", name(self.number)),
        }
    }

    /// What the volume itself takes for published.
    pub fn note_published(&mut self) {
        let Some(process) = &self.process else { return };
        let progress = *process.volume.core().progress.borrow();
        if !self.disks.state.is_dead() {
            self.seen = self.seen.max((progress.generation.0, progress.epoch.0));
        }
        let mut promises = self.common.promises();
        // Until its first read nothing is known of it.
        if promises.tenures.contains_key(&process.key) {
            promises.publish_to(process.key, progress.lsn);
        }
    }

    /// The process is gone, or the power.
    pub fn die(&mut self) {
        if self.disks.state.is_dead() {
            self.seen = (0, 0);
        }
        self.note_published();
        if let Some(process) = self.process.take() {
            process.line.cut();
        }
        let disks = &self.disks;
        if self.prng.below(2) == 0 {
            // Another process has its own files: the old one's tasks cannot reach them.
            self.disks = snapshot(disks);
            self.note("killed");
            self.count("killed");
        } else {
            self.disks = disks.crash(self.prng.next_u64());
            self.kept = self.kept.min(Kept::Flushed);
            self.note("power lost");
            self.count("power lost");
        }
        self.sick = false;
    }

    /// No more faults here.
    pub fn heal(&mut self) {
        if self.process.is_some() {
            self.die();
        }
        self.disks = snapshot(&self.disks);
        self.common.faults = SeededPlan::default();
    }

    /// Other disks are in the machine.
    pub fn replace_disks(&mut self, disks: Disks) {
        self.disks = disks;
        (self.kept, self.seen) = (Kept::Nothing, (0, 0));
    }

    /// Somebody put an older copy of the bucket back: what this disk has beyond it was promised of another line.
    pub fn bucket_put_back(&mut self) {
        self.kept = Kept::Nothing;
    }
}
