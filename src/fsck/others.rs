//! Objects of other volumes, of a clone: whether they are there. What is wrong with them otherwise, a check of those volumes
//! finds, and one that reads data.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Check, Level,
    listing::{Listing, NAMES_MAX},
};
use crate::{
    format::{
        ids::{FrameRef, Generation, Sequence, VolumeId},
        names,
        page::Target,
    },
    volume::error::VolumeError,
};

/// What is known of other volumes' objects. Of each volume, the names of all objects that it has, or had when first one was
/// needed: what a clone needs was there before the clone.
#[derive(Debug, Default)]
pub(super) struct Others {
    there: BTreeMap<VolumeId, BTreeSet<(Generation, Sequence)>>,
    missing: BTreeSet<Sequence>,
}

impl Check<'_> {
    /// Finds out which of the objects that `targets` are in are missing, where they are of other volumes.
    pub(super) async fn look_for_others(
        &mut self,
        targets: impl Iterator<Item = Target>,
    ) -> Result<(), VolumeError> {
        if self.options.level == Level::Quick {
            return Ok(());
        }
        let own = self.bucket().header.volume;
        for target in targets {
            let Target::Frame(frame, _) = target else { continue };
            if frame.object.owner != own {
                self.look_for_other(&frame).await?;
            }
        }
        Ok(())
    }

    async fn look_for_other(&mut self, frame: &FrameRef) -> Result<(), VolumeError> {
        let object = &frame.object;
        if !self.others.there.contains_key(&object.owner) {
            let names = self.names_of(object.owner).await?;
            self.others.there.insert(object.owner, names);
        }
        let name = (object.generation, object.sequence);
        let is_there = self.others.there.get(&object.owner).is_some_and(|there| there.contains(&name));
        // One that the newest manifest lists has been looked at.
        if !is_there && self.others.missing.insert(object.sequence) && !self.lost.knows(name) {
            self.lost.object(object.owner, name, None, 0, false);
        }
        Ok(())
    }

    async fn names_of(&self, owner: VolumeId) -> Result<BTreeSet<(Generation, Sequence)>, VolumeError> {
        let mut there = BTreeSet::new();
        if let Ok(store) = self.bucket().store_of(owner) {
            let mut listing = Listing::new(store, NAMES_MAX);
            while let Some(line) = listing.next_if(|_| true).await? {
                there.extend(names::parse_object(&line.key));
            }
        }
        Ok(there)
    }
}
