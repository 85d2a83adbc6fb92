//! The objects that the newest manifest lists on top of its maps: their indexes make the delta that an open starts with.

use std::collections::BTreeMap;

use futures::stream::{StreamExt, TryStreamExt};

use super::{
    Check, Finding, Level, Stage,
    object::{Found, Known, look},
};
use crate::{
    format::{
        ids::{Epoch, Sequence},
        manifest::{ListedObject, Manifest},
    },
    map::delta::{Delta, NewObject},
    volume::error::VolumeError,
};

/// What the newest manifest lists.
#[derive(Debug)]
pub(super) struct Listed {
    /// What could be read of it.
    pub(super) delta: Delta,
    /// All of it that is this volume's, by number.
    pub(super) objects: BTreeMap<Sequence, ListedObject>,
}

impl Check<'_> {
    /// Reads the indexes, and the headers too unless the check is a quick one.
    pub(super) async fn check_listed(&mut self, manifest: &Manifest) -> Result<Listed, VolumeError> {
        let total = manifest.inherited.len() + manifest.objects.len();
        self.progress.begin(Stage::Listed, Some(total as u64));
        let direct = self.direct.clone();
        let bucket = &direct.bucket;
        let own = bucket.header.volume;
        let header = self.options.level != Level::Quick;
        let inherited = manifest.inherited.iter().map(|inherited| (inherited.owner, inherited.object));
        let all = inherited.chain(manifest.objects.iter().map(|listed| (own, *listed)));
        let looks = all.map(|(owner, listed)| async move {
            let found = look(bucket, &Known::of_listed(owner, listed), header).await?;
            Ok::<_, VolumeError>((owner, listed, found))
        });
        let mut looks = futures::stream::iter(looks).buffered(self.loads_max()).boxed();
        let mut delta = Delta::new(bucket.block_bytes(), manifest.roots.epoch);
        let mut objects = BTreeMap::new();
        let mut cuts: BTreeMap<Epoch, (u64, u32)> = BTreeMap::new();
        let mut is_whole = true;
        while let Some((owner, listed, found)) = looks.try_next().await? {
            self.progress.advance(1);
            let is_own = owner == own;
            if is_own {
                self.report.counts.objects += 1;
                self.report.counts.object_bytes += listed.bytes;
                objects.insert(listed.sequence, listed);
            }
            let name = (listed.generation, listed.sequence);
            let index = match found {
                Found::Missing => {
                    self.lost.object(owner, name, None, listed.bytes, true);
                    None
                }
                Found::Other(remnant) => {
                    self.lost.object(owner, name, Some(remnant), listed.bytes, true);
                    None
                }
                Found::Here(index, findings) => {
                    findings.into_iter().for_each(|finding| self.add(finding));
                    index
                }
            };
            match index {
                Some(index) => {
                    if index.parts > 0 {
                        let cut = cuts.entry(listed.epoch).or_default();
                        *cut = (cut.0 + 1, index.parts.max(cut.1));
                    }
                    let new = NewObject { listed, object: listed.place(owner), index };
                    if is_own { delta.apply(&new) } else { delta.inherit(&new) }
                }
                None => is_whole = false,
            }
        }
        // Of what could not be read it is not known which cut's it was, and the loss has been told.
        for (epoch, (found, parts)) in cuts.into_iter().filter(|_| is_whole) {
            if found != u64::from(parts) {
                self.add(Finding::CutIncomplete { epoch, found, parts });
            }
        }
        Ok(Listed { delta, objects })
    }
}
