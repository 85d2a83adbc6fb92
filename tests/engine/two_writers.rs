//! Several hosts that open, write and publish at once: one line of manifests, and nothing that was called published is lost.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    store::{
        Store,
        faulty::{Call, Fault, Faulty, SeededPlan},
        memory::Memory,
    },
    volume::{
        Volume,
        base::find_whole,
        error::VolumeError,
        open::{Agreed, OpenReport, Repair, open_repaired},
        settings::Settings,
        tally::Tally,
    },
};
use wal::disk::sim::Prng;

use crate::{
    host::{Disks, env, make_with, open_with, small_settings, unlock},
    oracle::{Oracle, Windows},
    rig::{WHATEVER, clip, for_seeds, noise, retrying},
};

const SIZE: u64 = 32 << 10;
const HOSTS: usize = 3;

/// A host with its own line to the bucket.
struct Host {
    disks: Disks,
    faulty: Faulty<Memory>,
    store: Arc<dyn Store>,
    volume: Option<Volume>,
    opened: u64,
    gc_idle: Duration,
}

impl Host {
    fn new(memory: &Memory, seed: u64) -> Self {
        let faulty = Faulty::new(memory.clone());
        let store = retrying(faulty.clone(), seed);
        Self {
            disks: Disks::new(),
            faulty,
            store,
            volume: None,
            opened: seed * 1000,
            gc_idle: Duration::from_secs(30),
        }
    }

    async fn open(&mut self, agreed: Agreed) -> Result<(Volume, OpenReport), VolumeError> {
        self.opened += 1;
        let env = env(Arc::clone(&self.store), &self.disks, self.opened, "one of them");
        let settings = Settings { checkpoint_objects: 2, gc_idle: self.gc_idle, ..small_settings() };
        open_with(env, settings, agreed).await
    }
}

fn generation(volume: &Volume) -> u64 {
    volume.core().progress.borrow().generation.0
}

/// Whether it holds what it has not published.
fn is_behind(volume: &Volume) -> bool {
    volume.core().state().end > volume.core().published.reached()
}

/// What each tenure that ever served has done, by generation.
struct World {
    hosts: Vec<Host>,
    prng: Prng,
    tenures: BTreeMap<u64, Oracle>,
    trace: Vec<String>,
}

/// What a host did.
#[allow(clippy::large_enum_variant, reason = "a few of them, in a test")]
enum Done {
    Opened(Result<(Volume, OpenReport), VolumeError>),
    Synced(Result<(), VolumeError>),
    Wrote(bool),
    Nothing,
}

/// What a host is to do.
#[derive(Clone, Debug)]
enum Act {
    Open(Agreed),
    Crash,
    Write(u64, Vec<u8>),
    Sync,
    Sleep(u64),
}

impl Host {
    async fn act(&mut self, act: Act) -> Done {
        match (act, &self.volume) {
            (Act::Open(agreed), _) => {
                self.volume = None;
                Done::Opened(self.open(agreed).await)
            }
            (Act::Write(offset, data), Some(volume)) => {
                Done::Wrote(volume.write(offset, Bytes::from(data), false).await.is_ok())
            }
            (Act::Sync, Some(volume)) => Done::Synced(volume.sync().await),
            (Act::Crash, Some(_)) => {
                self.volume = None;
                self.disks = self.disks.crash(self.opened);
                Done::Nothing
            }
            (Act::Sleep(ms), _) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Done::Nothing
            }
            _ => Done::Nothing,
        }
    }
}

impl World {
    fn new(memory: &Memory, seed: u64) -> Self {
        let hosts: Vec<Host> = (0..HOSTS as u64).map(|host| Host::new(memory, seed * 10 + host)).collect();
        let windows = Windows::new(vec![0..SIZE]);
        let tenures = BTreeMap::from([(0, Oracle::new(windows, SIZE))]);
        Self { hosts, prng: Prng::new(seed), tenures, trace: Vec::new() }
    }

    fn draw(&mut self) -> Act {
        match self.prng.below(20) {
            0..4 => Act::Open(WHATEVER),
            4 => Act::Open(Agreed { discard: true, ..Agreed::default() }),
            5 => Act::Crash,
            6..13 => {
                let range = clip(self.prng.below(SIZE), 1 + self.prng.below(3000), SIZE);
                Act::Write(range.start, noise(&mut self.prng, (range.end - range.start) as usize))
            }
            13..17 => Act::Sync,
            _ => Act::Sleep(self.prng.below(6000)),
        }
    }

    /// All hosts act at once.
    async fn round(&mut self) {
        let acts: Vec<Act> = (0..HOSTS).map(|_| self.draw()).collect();
        for (host, act) in acts.iter().enumerate() {
            let text = match act {
                Act::Write(offset, data) => format!("{host}: write {offset} {}", data.len()),
                act => format!("{host}: {act:?}"),
            };
            self.trace.push(text);
        }
        let newest = *self.tenures.keys().next_back().unwrap();
        let before: Vec<Option<u64>> =
            self.hosts.iter().map(|host| host.volume.as_ref().map(generation)).collect();
        let unpublished: Vec<bool> =
            self.hosts.iter().map(|host| host.volume.as_ref().is_some_and(is_behind)).collect();
        for (host, act) in acts.iter().enumerate() {
            if let (Act::Write(offset, data), Some(generation)) = (act, before[host]) {
                let oracle = self.tenures.get_mut(&generation).unwrap();
                oracle.send(*offset, data.len() as u64, Some(data.clone()));
            }
        }
        let running = self.hosts.iter_mut().zip(acts).map(|(host, act)| host.act(act));
        let all = tokio::time::timeout(Duration::from_secs(86_400), futures::future::join_all(running));
        let mut opened = Vec::new();
        for (host, done) in all.await.expect("nothing moves").into_iter().enumerate() {
            match done {
                Done::Opened(Ok((volume, _))) => opened.push((generation(&volume), host, volume)),
                Done::Opened(Err(error)) => self.trace.push(format!("{host}: {error}")),
                Done::Wrote(true) => {
                    let volume = self.hosts[host].volume.as_ref().unwrap();
                    self.tenures.get_mut(&before[host].unwrap()).unwrap().acknowledge(volume);
                }
                Done::Synced(Ok(())) => {
                    let generation = before[host].unwrap();
                    let stale = generation < newest && unpublished[host];
                    assert!(
                        !stale,
                        "{generation} published after {newest} served\n{}",
                        self.trace.join("\n")
                    );
                    self.tenures.get_mut(&generation).unwrap().published();
                }
                Done::Synced(Err(error)) => self.trace.push(format!("{host}: {error}")),
                Done::Wrote(false) | Done::Nothing => {}
            }
        }
        opened.sort_by_key(|opened| opened.0);
        for (generation, host, volume) in opened {
            self.opened(generation, &volume).await;
            self.hosts[host].volume = Some(volume);
        }
        self.note_published();
    }

    /// What was published by the way.
    fn note_published(&mut self) {
        for volume in self.hosts.iter().filter_map(|host| host.volume.as_ref()) {
            let lsn = volume.core().progress.borrow().lsn;
            self.tenures.get_mut(&generation(volume)).unwrap().published_to(lsn);
        }
    }

    /// A tenure begins with a prefix of the newest one that published or served before it, and nothing of any other.
    async fn opened(&mut self, generation: u64, volume: &Volume) {
        let (_, last) = self.tenures.range(..generation).next_back().unwrap();
        let windows = last.windows.clone();
        let Some(found) = read_all(volume, &windows).await else {
            // Fenced already.
            self.tenures.insert(generation, last.clone());
            return;
        };
        // What it replayed from its own log is not published yet, so changes stay pending.
        let mut oracle = last.clone();
        if let Err(wrong) = oracle.survived_loss(&found) {
            panic!("generation {generation}: {wrong}\n{}", self.trace.join("\n"));
        }
        oracle.reopened();
        self.trace.push(format!("generation {generation} serves"));
        self.tenures.insert(generation, oracle);
    }
}

/// The image that the oracle knows; none from a volume that answers no more.
async fn read_all(volume: &Volume, windows: &Windows) -> Option<Vec<u8>> {
    let window = windows.ranges()[0].clone();
    let parts = volume.read(window.start, (window.end - window.start) as u32).await.ok()?;
    Some([parts.concat(), volume.info().size_bytes.to_le_bytes().to_vec()].concat())
}

async fn history(seed: u64) {
    let memory = Memory::new();
    memory.set_create_honoured(seed.is_multiple_of(2));
    make_with(&memory, SIZE, 512).await;
    let mut world = World::new(&memory, seed);
    for (host, line) in (0_u64..).zip(&world.hosts) {
        let faults = if seed.is_multiple_of(3) { 30 } else { 0 };
        let plan = SeededPlan {
            seed: seed * 31 + host,
            delay: 700,
            after: faults,
            late: faults,
            twice: faults,
            delay_max: Duration::from_millis(3000),
            ..SeededPlan::default()
        };
        line.faulty.set_plan(plan);
    }
    for _ in 0..25 {
        world.round().await;
    }
    world.hosts.iter_mut().for_each(|host| host.volume = None);
    let (volume, _) = Host::new(&memory, seed * 10 + 9).open(WHATEVER).await.unwrap();
    world.opened(generation(&volume), &volume).await;
}

#[test]
fn hosts_that_take_the_volume_from_each_other_never_interleave_and_lose_nothing_published() {
    for_seeds(30, history);
}

/// Two hosts on one bucket, the first with a volume open.
async fn pair(create_honoured: bool) -> (Host, Host, Volume) {
    let memory = Memory::new();
    memory.set_create_honoured(create_honoured);
    make_with(&memory, SIZE, 512).await;
    let (mut first, second) = (Host::new(&memory, 1), Host::new(&memory, 2));
    let (volume, _) = first.open(Agreed::default()).await.unwrap();
    (first, second, volume)
}

async fn write(volume: &Volume, data: &[u8]) {
    volume.write(0, Bytes::copy_from_slice(data), false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_slept_through_a_takeover_publishes_nothing_wherever_it_fell_asleep() {
    for asleep_at in ["objects/", "manifests/", "claims/"] {
        for create_honoured in [true, false] {
            let (mut first, mut second, volume) = pair(create_honoured).await;
            // The manifest by which the sleeper's log is known to be in the line is not let go meanwhile.
            second.gc_idle = Duration::from_secs(1 << 20);
            write(&volume, b"published").await;
            volume.sync().await.unwrap();
            write(&volume, b"in flight").await;
            first.faulty.set_plan(move |call: &Call<'_>| match call.key.starts_with(asleep_at) {
                true => Fault::Delay(Duration::from_secs(3600)),
                false => Fault::None,
            });
            let sleeper = async {
                let fenced = volume.sync().await;
                assert!(matches!(fenced, Err(VolumeError::Fenced { .. })), "{asleep_at}: {fenced:?}");
            };
            let taker = async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                let (other, _) = second.open(WHATEVER).await.unwrap();
                let found = other.read(0, 9).await.unwrap().concat();
                // A manifest that was put and not counted may be built upon; both are prefixes.
                let wanted: &[u8] = if asleep_at == "claims/" { b"in flight" } else { b"published" };
                assert_eq!(found, wanted, "{asleep_at}");
                write(&other, b"the other").await;
                other.sync().await.unwrap();
                tokio::time::sleep(Duration::from_secs(7200)).await;
                write(&other, b"goes on..").await;
                other.sync().await.unwrap();
                other.close().await.unwrap();
            };
            tokio::join!(sleeper, taker);
            drop(volume);
            first.faulty.set_plan(|_: &Call<'_>| Fault::None);
            let again = first.open(Agreed::default()).await;
            if asleep_at == "claims/" {
                assert!(again.is_ok(), "everything it had is in the winning line: {:?}", again.err());
            } else {
                let refused = again.unwrap_err();
                assert!(
                    matches!(refused, VolumeError::Diverged { held: Tally { writes: 1, bytes: 9, .. }, .. }),
                    "{refused}"
                );
                let (again, report) = first.open(WHATEVER).await.unwrap();
                assert_eq!(
                    (report.given_up.tally.records(), again.read(0, 9).await.unwrap().concat()),
                    (1, b"goes on..".to_vec())
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_hosts_that_open_a_closed_volume_at_once_one_publishes() {
    for seed in 0..40_u64 {
        let (mut first, mut second, volume) = pair(seed.is_multiple_of(2)).await;
        volume.close().await.unwrap();
        drop(volume);
        for (host, line) in [&first, &second].into_iter().enumerate() {
            let delay_max = Duration::from_millis(40);
            line.faulty.set_plan(SeededPlan {
                seed: seed * 2 + host as u64,
                delay: 900,
                delay_max,
                ..SeededPlan::default()
            });
        }
        let (one, two) = tokio::join!(first.open(Agreed::default()), second.open(Agreed::default()));
        let mut serving = Vec::new();
        for opened in [one, two] {
            match opened {
                Ok((volume, _)) => serving.push(volume),
                Err(VolumeError::InUse { .. } | VolumeError::Fenced { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        let mut published = 0;
        for volume in &serving {
            write(volume, b"x").await;
            match volume.sync().await {
                Ok(()) => published += 1,
                Err(VolumeError::Fenced { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        assert_eq!(published, usize::from(!serving.is_empty()), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_looked_before_another_opened_finds_the_volume_in_use() {
    let (mut first, mut second, volume) = pair(true).await;
    volume.close().await.unwrap();
    // The first looks, and is slow to claim.
    first.faulty.set_plan(|call: &Call<'_>| match call.operation == "list" && call.key == "claims/" {
        true => Fault::Delay(Duration::from_secs(60)),
        false => Fault::None,
    });
    let late = async {
        tokio::time::sleep(Duration::from_secs(90)).await;
        second.open(Agreed::default()).await.unwrap().0
    };
    let (refused, serving) = tokio::join!(first.open(Agreed::default()), late);
    assert!(matches!(refused, Err(VolumeError::InUse { .. })), "{:?}", refused.err());
    write(&serving, b"x").await;
    serving.sync().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_remote_flush_answered_before_a_takeover_is_in_the_new_line() {
    for delay_ms in 0..40 {
        let (first, mut second, volume) = pair(false).await;
        first.faulty.set_plan(|_: &Call<'_>| Fault::Delay(Duration::from_millis(10)));
        second.faulty.set_plan(|_: &Call<'_>| Fault::Delay(Duration::from_millis(7)));
        write(&volume, b"flushed").await;
        let flushing = async {
            tokio::time::sleep(Duration::from_millis(3 * delay_ms)).await;
            volume.sync().await
        };
        let (flushed, taken) = tokio::join!(flushing, second.open(WHATEVER));
        let (other, _) = taken.unwrap();
        let found = other.read(0, 7).await.unwrap().concat();
        assert!(flushed.is_err() || found == b"flushed", "{delay_ms}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_under_which_an_older_bucket_was_put_back_stops_and_keeps_its_log() {
    let memory = Memory::new();
    make_with(&memory, SIZE, 512).await;
    let copy = memory.snapshot();
    let mut host = Host::new(&memory, 1);
    let (volume, _) = host.open(Agreed::default()).await.unwrap();
    write(&volume, b"published").await;
    volume.sync().await.unwrap();
    memory.restore(copy.clone());
    write(&volume, b"afterwards").await;
    let stopped = volume.sync().await.unwrap_err();
    assert!(matches!(stopped, VolumeError::ClaimGone { .. }), "{stopped}");
    assert!(volume.write(0, Bytes::from_static(b"x"), false).await.is_err());
    assert!(is_behind(&volume));
    drop(volume);
    // Put back once more, as it should be: this host has seen more than that, and its log has what nobody else has.
    memory.restore(copy);
    let refused = host.open(Agreed::default()).await.unwrap_err();
    assert!(matches!(refused, VolumeError::RolledBack { .. }), "{refused}");
    let rollback = Agreed { rollback: true, ..Agreed::default() };
    match host.open(rollback).await {
        Ok((volume, _)) => assert_eq!(volume.read(0, 10).await.unwrap().concat(), b"afterwards"),
        Err(error) => {
            assert!(matches!(error, VolumeError::Diverged { held: Tally { writes: 1.., .. }, .. }), "{error}")
        }
    }
}

/// It cannot know: what it published meanwhile is missing, and nothing of that is served as something else.
#[tokio::test(start_paused = true)]
async fn a_writer_whose_claim_is_in_the_older_bucket_goes_on_and_recover_goes_back_behind_it() {
    let memory = Memory::new();
    make_with(&memory, SIZE, 512).await;
    let mut host = Host::new(&memory, 1);
    let (volume, _) = host.open(Agreed::default()).await.unwrap();
    write(&volume, &[1; 512]).await;
    volume.sync().await.unwrap();
    let copy = memory.snapshot();
    volume.write(4096, Bytes::from(vec![2; 512]), false).await.unwrap();
    volume.sync().await.unwrap();
    memory.restore(copy);
    volume.write(8192, Bytes::from(vec![3; 512]), false).await.unwrap();
    volume.sync().await.unwrap();
    drop(volume);
    let mut other = Host::new(&memory, 2);
    match other.open(WHATEVER).await {
        Err(error) => assert!(error.is_of_line(), "{error}"),
        Ok((volume, _)) => assert!(volume.read(4096, 512).await.is_err(), "it is nowhere"),
    }
    let looking = env(Arc::clone(&other.store), &Disks::new(), 9, "looking");
    let whole = find_whole(&unlock(&looking).await).await.unwrap().base.expect("one is whole");
    let repair = Repair { base: Some(whole), ..Repair::default() };
    let bucket = unlock(&looking).await;
    let (volume, _) = open_repaired(looking, bucket, small_settings(), WHATEVER, &repair).await.unwrap();
    assert_eq!(volume.read(0, 512).await.unwrap().concat(), [1; 512]);
    assert_eq!(volume.read(4096, 512).await.unwrap().concat(), [0; 512], "as it was then");
}
