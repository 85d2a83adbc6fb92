//! What a host does, and what happens to it, in one round.

use std::time::Duration;

use bytes::Bytes;
use s3bd::{
    nbd::Device,
    volume::{error::VolumeError, open::Agreed, settings::Durability},
};

use crate::{
    host::Disks,
    line::Death,
    machine::{Machine, Process, snapshot},
    rig::{clip, noise},
};

/// A day by a clock that only moves while everybody waits: longer is for ever.
pub const FOR_EVER: Duration = Duration::from_secs(86_400);

#[derive(Clone, Debug)]
pub enum Act {
    Open(Agreed, Option<Death>),
    Write {
        offset: u64,
        length: u64,
        flush: bool,
    },
    Zero {
        offset: u64,
        length: u64,
    },
    Resize {
        size_bytes: u64,
    },
    Flush,
    Sync,
    /// Writes while a sync is under way.
    SyncAndWrite {
        offset: u64,
        length: u64,
    },
    Read {
        offset: u64,
        length: u64,
    },
    TakeSnapshot,
    DeleteSnapshot,
    ReadSnapshot,
    RollBack {
        keep: bool,
    },
    /// Of the volume, as it is open or by a command that opens it.
    MakeClone(Option<Death>),
    /// Writes while that goes on.
    Flatten {
        offset: u64,
        length: u64,
        death: Option<Death>,
    },
    Collect,
    Remove {
        takeover: bool,
        death: Option<Death>,
    },
    Sleep(u64),
    Close,
    Die,
    DieAtCall(Death),
    DieAtDisk {
        state: bool,
        operations: u64,
    },
    Pause(u64),
    DiskFull(u64),
    FailSyncs,
    CacheDies,
    CopyState,
    SecondProcess,
    LoseState,
    PutStateBack,
}

impl Machine {
    /// What to do next. `others` are up.
    pub fn draw(&mut self, others: bool) -> Act {
        match &self.process {
            None if self.common.promises().torn => Act::Sleep(self.sleep_ms()),
            None => self.draw_down(others),
            Some(_) => match self.draw_up() {
                Act::SecondProcess | Act::MakeClone(_) | Act::Flatten { .. } | Act::Collect
                    if self.common.promises().torn =>
                {
                    Act::Sleep(self.sleep_ms())
                }
                act => act,
            },
        }
    }

    fn draw_down(&mut self, others: bool) -> Act {
        match self.prng.below(100) {
            0..8 => Act::LoseState,
            8..18 if !self.copies.is_empty() => Act::PutStateBack,
            18..40 => Act::Sleep(self.sleep_ms()),
            40..44 => {
                let death = self.perhaps(40);
                Act::MakeClone(death)
            }
            44..49 if self.may_remove() => {
                let death = self.perhaps(30);
                Act::Remove { takeover: self.prng.below(2) == 0, death }
            }
            _ if others && self.prng.below(4) > 0 => Act::Sleep(self.sleep_ms()),
            _ => {
                let agreed = Agreed {
                    takeover: self.prng.below(2) == 0,
                    rollback: self.prng.below(3) == 0,
                    discard: self.prng.below(3) == 0,
                };
                let death = (self.prng.below(5) == 0).then(|| self.death(30));
                if self.prng.below(8) == 0 {
                    let state = self.prng.below(2) == 0;
                    let operations = 1 + self.prng.below(12);
                    self.arm_disk(state, operations);
                }
                Act::Open(agreed, death)
            }
        }
    }

    fn draw_up(&mut self) -> Act {
        let process = self.process.as_ref().expect("it is up");
        let size_bytes = self.common.promises().image(process.key).len() as u64;
        let length_max = [600, 3000, 6000][self.prng.below(3) as usize];
        let range = clip(self.prng.below(size_bytes), 1 + self.prng.below(length_max), size_bytes);
        let (offset, length) = (range.start, range.end - range.start);
        match self.prng.below(1000) {
            0..15 => Act::SecondProcess,
            15..30 => {
                let death = self.perhaps(30);
                Act::Flatten { offset, length, death }
            }
            30..38 => Act::Collect,
            38..60 => {
                let death = self.perhaps(40);
                Act::MakeClone(death)
            }
            60..265 => Act::Write { offset, length, flush: self.prng.below(8) == 0 },
            265..290 => Act::TakeSnapshot,
            290..310 => Act::DeleteSnapshot,
            310..325 => Act::ReadSnapshot,
            325..330 => Act::RollBack { keep: self.prng.below(2) == 0 },
            330..350 => Act::Resize { size_bytes: self.size_bytes() },
            350..400 => Act::Zero {
                offset,
                length: clip(offset, self.prng.below(size_bytes), size_bytes).end - offset,
            },
            400..490 => Act::Flush,
            490..560 => Act::Sync,
            560..610 => Act::SyncAndWrite { offset, length },
            610..700 => Act::Read { offset, length },
            700..820 => Act::Sleep(self.sleep_ms()),
            820..850 => Act::Close,
            850..880 => Act::Die,
            880..910 => Act::DieAtCall(self.death(12)),
            910..935 => {
                Act::DieAtDisk { state: self.prng.below(4) == 0, operations: 1 + self.prng.below(12) }
            }
            935..955 => Act::Pause(self.sleep_ms() * 4),
            955..967 => Act::DiskFull(1000 + self.prng.below(60_000)),
            967..977 => Act::FailSyncs,
            977..982 => Act::CacheDies,
            _ => Act::CopyState,
        }
    }

    /// From a block to twice what the volume began with.
    fn size_bytes(&mut self) -> u64 {
        let block_bytes = u64::from(self.common.direct.block_bytes());
        (1 + self.prng.below(2 * self.common.size_bytes / block_bytes)) * block_bytes
    }

    fn sleep_ms(&mut self) -> u64 {
        let bound = [50, 1000, 6000, 30_000][self.prng.below(4) as usize];
        1 + self.prng.below(bound)
    }

    /// A death at some time, or none.
    fn perhaps(&mut self, calls_max: u64) -> Option<Death> {
        (self.prng.below(3) == 0).then(|| self.death(calls_max))
    }

    fn death(&mut self, calls_max: u64) -> Death {
        Death { calls: self.prng.below(calls_max), applied: self.prng.below(2) == 0 }
    }

    fn arm_disk(&self, state: bool, operations: u64) {
        let disk = if state { &self.disks.state } else { &self.disks.wal };
        self.note(format!(
            "{} dies {operations} operations on",
            if state { "state disk" } else { "log disk" }
        ));
        disk.die_at(disk.operations() + operations);
    }

    /// Does it, and looks what became of the process.
    pub async fn act(&mut self, act: Act) {
        if self.process.as_ref().is_some_and(|process| process.line.is_dead()) {
            return self.die();
        }
        let done = tokio::time::timeout(FOR_EVER, async {
            match act {
                Act::Open(agreed, death) => self.open(agreed, death).await,
                Act::Sleep(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Act::Die => self.die(),
                Act::SecondProcess => self.second_process().await,
                Act::MakeClone(death) if self.process.is_some() => drop(self.make_clone(death).await),
                Act::MakeClone(death) => self.make_clone_offline(death).await,
                Act::Remove { takeover, death } => self.remove(takeover, death).await,
                Act::LoseState => {
                    self.note("the state directory is lost");
                    self.count("state lost");
                    self.replace_disks(Disks::new());
                }
                Act::PutStateBack => self.put_state_back(),
                Act::Pause(_) | Act::DieAtCall(_) | Act::DieAtDisk { .. } | Act::DiskFull(_) => {
                    self.arm(&act)
                }
                Act::FailSyncs | Act::CacheDies | Act::CopyState => self.arm(&act),
                _ => self.request(act).await,
            }
        });
        assert!(done.await.is_ok(), "nothing moves");
        if self.process.as_ref().is_some_and(|process| process.line.is_dead())
            || self.disks.wal.is_dead()
            || self.disks.state.is_dead()
        {
            self.die();
        }
        self.note_published();
    }

    fn put_state_back(&mut self) {
        let count = self.copies.len() as u64;
        let copy = self.copies[self.prng.below(count) as usize].crash(self.prng.next_u64());
        self.note("an older copy of the state directory is put back");
        self.count("state put back");
        self.replace_disks(copy);
    }

    /// What only happens later.
    fn arm(&mut self, act: &Act) {
        self.note(format!("{act:?}"));
        match *act {
            Act::Pause(ms) => {
                self.count("paused");
                self.process.as_ref().unwrap().line.hold(Duration::from_millis(ms));
            }
            Act::DieAtCall(death) => self.process.as_ref().unwrap().line.set_death(death),
            Act::DieAtDisk { state, operations } => self.arm_disk(state, operations),
            Act::DiskFull(ms) => {
                self.count("disk full");
                self.full = true;
                let disk = self.disks.wal.clone();
                disk.set_capacity(Some(disk.used_bytes()));
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    disk.set_capacity(None);
                });
            }
            Act::FailSyncs => {
                self.count("sync failed");
                self.sick = true;
                self.disks.wal.fail_syncs(true);
            }
            Act::CacheDies => self.disks.cache.die(),
            Act::CopyState => self.copies.push(snapshot(&self.disks)),
            _ => unreachable!("it happens at once"),
        }
    }

    /// A request of a client; the process may die meanwhile.
    pub async fn request(&mut self, act: Act) {
        self.note(format!("{act:?}"));
        let close = matches!(act, Act::Close);
        let noise_seed = self.prng.next_u64();
        let process = self.process.as_ref().unwrap();
        let done = tokio::select! {
            biased;
            () = process.line.died() => None,
            done = self.answer(process, &act, noise_seed) => Some(done),
        };
        match done {
            None => {
                if matches!(act, Act::Flatten { .. }) {
                    self.count("flattening died");
                }
                self.die();
            }
            Some(Ok(())) if close => {
                self.note_published();
                self.process.take().unwrap().line.cut();
            }
            Some(Ok(())) => {}
            Some(Err(error)) => {
                self.judge("failed", &error);
                self.die();
            }
        }
    }

    async fn answer(&self, process: &Process, act: &Act, noise_seed: u64) -> Result<(), VolumeError> {
        match *act {
            Act::Write { offset, length, flush } => {
                self.write(process, offset, length, noise_seed).await?;
                if flush { self.flush(process).await } else { Ok(()) }
            }
            Act::Zero { offset, length } => {
                let at = self.common.promises().send(process.key, offset, length, None);
                process.volume.core().zero(offset, length).await?;
                self.acknowledge(process, at);
                Ok(())
            }
            Act::Resize { size_bytes } => self.resize(process, size_bytes).await,
            Act::Flush => self.flush(process).await,
            Act::Sync => self.sync(process).await,
            Act::SyncAndWrite { offset, length } => {
                let both = tokio::join!(self.sync(process), self.write(process, offset, length, noise_seed));
                both.0.and(both.1)
            }
            Act::Read { offset, length } => self.read(process, offset, length).await,
            Act::TakeSnapshot => self.take_snapshot(process).await,
            Act::DeleteSnapshot => self.delete_snapshot(process, noise_seed).await,
            Act::Flatten { offset, length, death } => {
                self.flatten(process, death, self.write(process, offset, length, noise_seed)).await
            }
            Act::Collect => self.collect(process).await,
            Act::RollBack { keep } => self.roll_back(process, noise_seed, keep).await,
            Act::ReadSnapshot => self.read_snapshot(process, noise_seed).await,
            Act::Close => {
                let at = self.common.promises().last(process.key);
                process.volume.close().await?;
                self.common.promises().publish(process.key, at);
                Ok(())
            }
            _ => unreachable!("no request"),
        }
    }

    fn acknowledge(&self, process: &Process, at: usize) {
        let end = process.volume.core().state().end;
        self.common.promises().acknowledge(process.key, at, end);
    }

    async fn write(&self, process: &Process, offset: u64, length: u64, seed: u64) -> Result<(), VolumeError> {
        let data = noise(&mut wal::disk::sim::Prng::new(seed), length as usize);
        let at = self.common.promises().send(process.key, offset, length, Some(&data));
        process.volume.core().write(offset, Bytes::from(data)).await?;
        self.acknowledge(process, at);
        Ok(())
    }

    /// Answered like a flush.
    async fn resize(&self, process: &Process, size_bytes: u64) -> Result<(), VolumeError> {
        let core = process.volume.core();
        let before = process.volume.info().size_bytes;
        if before == size_bytes {
            return core.resize(before, size_bytes).await;
        }
        let at = self.common.promises().send_size(process.key, size_bytes);
        core.resize(before, size_bytes).await?;
        self.acknowledge(process, at);
        self.flushed(process, at);
        self.count("resized");
        Ok(())
    }

    async fn flush(&self, process: &Process) -> Result<(), VolumeError> {
        let at = self.common.promises().tenures[&process.key].acknowledged;
        process.volume.core().flush().await?;
        self.flushed(process, at);
        Ok(())
    }

    fn flushed(&self, process: &Process, at: usize) {
        let mut promises = self.common.promises();
        match self.common.settings.durability {
            Durability::Local => promises.flush(process.key, at),
            Durability::Remote => promises.publish(process.key, at),
        }
    }

    async fn sync(&self, process: &Process) -> Result<(), VolumeError> {
        let at = self.common.promises().tenures[&process.key].acknowledged;
        process.volume.sync().await?;
        self.common.promises().publish(process.key, at);
        Ok(())
    }

    async fn read(&self, process: &Process, offset: u64, length: u64) -> Result<(), VolumeError> {
        let core = process.volume.core();
        let Ok(parts) = process.volume.read(offset, length as u32).await else {
            return core.check().and(Err(VolumeError::Invalid("a read failed".to_owned())));
        };
        let image = self.common.promises().image(process.key);
        let expected = &image[offset as usize..(offset + length) as usize];
        assert!(
            parts.concat() == expected,
            "a read of {length} bytes at {offset:#x} is not what was written"
        );
        Ok(())
    }
}
