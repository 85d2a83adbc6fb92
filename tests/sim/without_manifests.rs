//! A volume of which every manifest is gone: what its objects and claims alone add up to.

use std::sync::Arc;

use s3bd::{
    format::names,
    nbd::Device,
    store::memory::{Contents, Memory},
    volume::{
        bucket::Bucket,
        error::VolumeError,
        open::{Repair, open_repaired},
        rebuild::rebuild,
    },
};

use crate::{
    bucket::below,
    host::{Disks, env},
    machine::{Common, name},
    promises::Key,
    rig::WHATEVER,
};

impl Common {
    /// Of a volume that was closed by the tenure `key`, and whose objects are all its own, the newest content.
    pub async fn check_without_manifests(&self, mut contents: Contents, key: Key) {
        let prefix = format!("{}/{}", self.volume, names::MANIFESTS);
        let keys: Vec<String> = contents.iter().map(|(key, _)| key.to_owned()).collect();
        for manifest in keys.iter().filter(|key| key.starts_with(&prefix)) {
            contents.remove(manifest);
        }
        let memory = Memory::new();
        memory.restore(contents);
        let bucket = Bucket { store: below(Arc::new(memory), &self.volume), ..self.direct.clone() };
        let env = env(Arc::clone(&bucket.store), &Disks::new(), 1, &name(usize::MAX));
        let found = rebuild(&bucket, &env, |_, _| {}).await;
        let found = match found {
            // No object is of the line, where nothing was ever written in it.
            Err(VolumeError::NoManifest { .. })
                if self.promises().image(key).iter().all(|byte| *byte == 0) =>
            {
                return;
            }
            found => found.unwrap_or_else(|error| panic!("{} without manifests: {error}", self.volume)),
        };
        let what = format!(
            "epoch {}, checkpoint {:?}, {} cuts; passed {:?}; left out {:?}",
            found.epoch, found.checkpoint, found.cuts, found.passed, found.left_out
        );
        let repair = Repair { base: Some(found.base), ..Repair::default() };
        let opened = open_repaired(env, bucket, self.settings.clone(), WHATEVER, &repair).await;
        let (volume, _) = opened.unwrap_or_else(|error| panic!("{} without manifests: {error}", self.volume));
        let size_bytes = volume.info().size_bytes as u32;
        let read = volume.read(0, size_bytes).await.expect("it can be read").concat();
        let is_newest = self.promises().is_newest_of_objects(key, &read);
        assert!(is_newest, "{} without manifests is another: {what}", self.volume);
        self.count("rebuilt without manifests");
    }
}
