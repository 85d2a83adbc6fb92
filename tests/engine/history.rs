//! Cuts of a volume, and what it held after each: to be damaged, taken over, and found again.

use std::time::Duration;

use bytes::Bytes;
use s3bd::{
    format::object::{FOOTER_BYTES, Footer},
    nbd::Device,
    store::{
        faulty::{Call, Fault},
        memory::Memory,
    },
    volume::{
        Volume,
        base::find_whole,
        env::Env,
        error::VolumeError,
        open::{Agreed, OpenReport, Repair, open_repaired},
        rebuild::{Rebuilt, rebuild},
    },
};
use wal::disk::sim::Prng;

use crate::{
    host::{BLOCK_BYTES, Disks, env, small_settings, unlock},
    rig::{Rig, WHATEVER, noise},
};
pub const SIZE: u64 = 512 << 10;

/// The volume's content after each cut of the winning line, the empty one first.
pub struct History {
    pub rig: Rig,
    pub images: Vec<Vec<u8>>,
    /// Where each ends in the log.
    ends: Vec<u64>,
    opened: u64,
}

impl History {
    /// Cuts published by host 0, with checkpoints between them.
    pub async fn of_cuts(seed: u64, cuts: usize) -> Self {
        let mut settings = small_settings();
        settings.checkpoint_objects = 3;
        let rig = Rig::new(seed, SIZE, BLOCK_BYTES, settings).await;
        let mut history = Self { rig, images: vec![vec![0; SIZE as usize]], ends: vec![0], opened: 1000 };
        let (volume, _) = history.rig.open(0, Agreed::default()).await.unwrap();
        let mut prng = Prng::new(seed);
        for _ in 0..cuts {
            history.cut(&volume, &mut prng).await;
        }
        drop(volume);
        history
    }

    pub async fn cut(&mut self, volume: &Volume, prng: &mut Prng) {
        let mut image = self.images.last().unwrap().clone();
        for _ in 0..3 {
            let data = noise(prng, 2500);
            let at = prng.below(SIZE - 2500);
            image[at as usize..][..data.len()].copy_from_slice(&data);
            volume.write(at, Bytes::from(data), false).await.unwrap();
        }
        self.publish(volume, image).await;
    }

    pub async fn publish(&mut self, volume: &Volume, image: Vec<u8>) {
        volume.sync().await.unwrap();
        self.images.push(image);
        self.ends.push(volume.core().state().end.0);
    }

    /// The image that a base holds: some epochs publish a checkpoint alone.
    pub fn image_of(&self, repair: &Repair) -> usize {
        let lsn = repair.base.as_ref().unwrap().published.manifest.log.lsn;
        self.ends.iter().rposition(|end| *end <= lsn).unwrap()
    }

    pub fn memory(&self) -> &Memory {
        &self.rig.memory
    }

    pub fn names(&self, prefix: &str) -> Vec<String> {
        let contents = self.memory().snapshot();
        contents.iter().map(|(name, _)| name.to_owned()).filter(|name| name.starts_with(prefix)).collect()
    }

    pub fn damage(&self, name: &str, at_end: usize) {
        let mut contents = self.memory().snapshot();
        let mut bytes = contents.get(name).unwrap().to_vec();
        let at = bytes.len() - 1 - at_end;
        bytes[at] ^= 1;
        contents.set(name, bytes.into());
        self.memory().restore(contents);
    }

    /// Damages the index of an object, or the mirror of it.
    pub fn damage_index(&self, name: &str, mirror: bool) {
        let bytes = self.memory().snapshot().get(name).unwrap().clone();
        let end_bytes = Footer::decode(&bytes, bytes.len() as u64).unwrap().end_bytes() as usize;
        self.damage(name, FOOTER_BYTES + if mirror { end_bytes } else { 0 });
    }

    pub fn remove(&self, name: &str) {
        let mut contents = self.memory().snapshot();
        assert!(contents.remove(name), "{name}");
        self.memory().restore(contents);
    }

    pub async fn open(
        &mut self,
        disks: &Disks,
        agreed: Agreed,
        repair: &Repair,
    ) -> Result<(Volume, OpenReport), VolumeError> {
        self.opened += 1;
        let env = env(self.rig.store.clone(), disks, self.opened, "a new host");
        let bucket = unlock(&env).await;
        open_repaired(env, bucket, self.rig.settings.clone(), agreed, repair).await
    }

    /// A host that only looks.
    pub fn looker(&self) -> Env {
        env(self.rig.store.clone(), &Disks::new(), 1, "looking")
    }

    pub async fn fall_back(&self) -> (Repair, Vec<u64>) {
        let found = find_whole(&unlock(&self.looker()).await).await.unwrap();
        (
            Repair { base: found.base, ..Repair::default() },
            found.passed.iter().map(|passed| passed.epoch.0).collect(),
        )
    }

    pub async fn rebuild(&self) -> Result<Rebuilt, VolumeError> {
        let env = self.looker();
        rebuild(&unlock(&env).await, &env, |_, _| {}).await
    }

    /// Opens with the repair on a new host, closes, opens as usual: which image it is.
    pub async fn image_after(&mut self, repair: &Repair) -> usize {
        let disks = Disks::new();
        let (volume, _) = self.open(&disks, WHATEVER, repair).await.unwrap();
        let found = content(&volume).await;
        volume.close().await.unwrap();
        let (volume, report) = self.open(&Disks::new(), Agreed::default(), &Repair::default()).await.unwrap();
        assert!(report.was_clean);
        assert_eq!(content(&volume).await, found, "once more");
        volume.write(0, Bytes::from_static(&[9; 512]), false).await.unwrap();
        volume.close().await.unwrap();
        self.images.iter().rposition(|image| *image == found).expect("it is one of the cuts")
    }
}

pub async fn content(volume: &Volume) -> Vec<u8> {
    volume.read(0, SIZE as u32).await.unwrap().concat()
}

/// Host 0 is overtaken with a cut on its way; the cut's manifest comes late.
pub async fn with_a_fenced_writer(seed: u64, cuts_after: usize) -> History {
    let mut history = History::of_cuts(seed, 3).await;
    let (first, _) = history.rig.open(0, Agreed::default()).await.unwrap();
    let mut prng = Prng::new(seed + 1);
    history.cut(&first, &mut prng).await;
    history.rig.faulty.set_plan(|call: &Call<'_>| {
        match call.operation == "put" && call.key.starts_with("manifests/") {
            true => Fault::Delay(Duration::from_secs(600)),
            false => Fault::None,
        }
    });
    first.write(0, Bytes::from(vec![0xee; 9000]), false).await.unwrap();
    let late = async { first.sync().await.unwrap_err() };
    let faulty = history.rig.faulty.clone();
    let taken = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        faulty.set_plan(|_: &Call<'_>| Fault::None);
        let (second, _) = history.open(&Disks::new(), WHATEVER, &Repair::default()).await.unwrap();
        for _ in 0..cuts_after {
            history.cut(&second, &mut prng).await;
        }
    };
    let (fenced, ()) = tokio::join!(late, taken);
    assert!(matches!(fenced, VolumeError::Fenced { .. }), "{fenced}");
    history
}
