//! A volume as the bucket alone has it, at one moment: what can be made of it, held against what was promised.

use std::{collections::BTreeSet, sync::Arc};

use s3bd::{
    format::{manifest::Manifest, names},
    nbd::Device,
    store::{
        PutMode, Store,
        memory::{Contents, Memory},
    },
    volume::{bucket::Bucket, open::open_read_only, settings::Settings},
};

use crate::{
    bucket::below,
    host::{Disks, env},
    machine::{Common, name},
    promises::{Key, Moment},
    snapshots,
};

/// The tenure whose line a manifest continues, and the hosts of all manifests down to there.
#[derive(Clone, Debug)]
pub struct Descent {
    pub key: Key,
    pub hosts: Vec<String>,
}

impl Common {
    /// Follows a manifest back to a tenure that served: first manifests say what their parents said.
    pub async fn descent(&self, manifest: &Manifest) -> Result<Descent, String> {
        let mut hosts = Vec::new();
        let mut manifest = manifest.clone();
        loop {
            let key = (manifest.generation.0, manifest.nonce);
            hosts.push(manifest.writer.host.clone());
            if self.promises().tenures.contains_key(&key) {
                return Ok(Descent { key, hosts });
            }
            let link = manifest.parent.ok_or("a manifest without a parent, and of no tenure that served")?;
            // A tenure that does not serve yet may have removed it from the bucket.
            let bytes = self.promises().manifests.get(&link.digest).cloned();
            let bytes = bytes.ok_or_else(|| format!("no parent: {link:?}"))?;
            let alone = Memory::new();
            let name = names::manifest(link.generation, link.epoch);
            alone.put(&name, &[bytes], PutMode::Create).await.map_err(|error| error.to_string())?;
            let alone = Bucket { store: Arc::new(alone), ..self.direct.clone() };
            let parent = alone.load_manifest(link.generation, link.epoch).await;
            manifest = parent.map_err(|error| error.to_string())?.expect("it was put").manifest;
        }
    }

    /// The volume in a bucket that has nothing but what it needs.
    fn alone(&self, mut contents: Contents, needs: &[String]) -> Bucket {
        let owner = |key: &str| key.split_once('/').map(|(owner, _)| owner.to_owned());
        let is_needed = |key: &str| owner(key).is_some_and(|owner| needs.contains(&owner));
        let others: BTreeSet<String> =
            contents.iter().map(|(key, _)| key.to_owned()).filter(|key| !is_needed(key)).collect();
        for key in others {
            contents.remove(&key);
        }
        let memory = Memory::new();
        memory.restore(contents);
        Bucket { store: below(Arc::new(memory), &self.volume), ..self.direct.clone() }
    }

    /// Reads all of it, as of the newest manifest: the point of its line, which has all that was durable.
    async fn open_alone(&self, bucket: &Bucket, settings: Settings, durable: usize) -> Result<usize, String> {
        let newest = bucket.newest_manifest().await.map_err(|error| error.to_string())?.manifest;
        let descent = self.descent(&newest).await?;
        let env = env(Arc::clone(&bucket.store), &Disks::new(), 1, &name(usize::MAX));
        let volume =
            open_read_only(env, bucket.clone(), settings).await.map_err(|error| error.to_string())?;
        let found = volume.read(0, newest.size_bytes as u32).await;
        let found = found.map_err(|error| error.to_string())?.concat();
        self.promises().find(descent.key, &found, durable, 0)
    }

    /// Rebuilds the volume from the bucket alone: a prefix of the winning line with all that was durable by then.
    /// With `thorough`, the content of each of its snapshots, too.
    pub async fn check(&self, moment: Moment, thorough: bool) {
        let bucket = self.alone(moment.contents, &moment.needs);
        let checked = async {
            let settings = Settings { cache_bytes_max: 0, ..self.settings.clone() };
            let newest = bucket.newest_manifest().await.map_err(|error| error.to_string())?.manifest;
            snapshots::check(self, &bucket, &settings, &newest, &moment.snapshots, thorough).await?;
            self.open_alone(&bucket, settings, moment.durable).await
        };
        if let Err(wrong) = checked.await {
            panic!("{} from the bucket alone, after {}: {wrong}", self.volume, moment.change);
        }
        self.count("bucket checked");
    }
}
