//! What a repair needs to know beyond the findings: what the maps have in damaged places, and where whole copies are.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::stream::{StreamExt, TryStreamExt};

use super::{original::Known, plan::Suspects};
use crate::{
    format::{
        ids::{Epoch, FrameRef, Generation},
        index::{MapKind, Run},
        manifest::{Manifest, Roots},
        page::{Extent, Page, Target},
    },
    fsck::Blocks,
    map::{delta::Delta, tree::PageAt},
    volume::{
        earlier::{self, EarlierMaps},
        error::VolumeError,
        open::load_delta,
        walk::{Copy, Direct, Walk},
    },
};

/// Requests under way at once, as when the volume is checked.
const LOADS_MAX: usize = 32;

/// A frame of data in a damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFrame {
    /// Which.
    pub frame: FrameRef,
    /// The blocks that are read from it.
    pub blocks: Blocks,
    /// Where it is whole.
    pub copy: Option<Copy>,
}

/// A page in a damaged place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundPage {
    /// Which.
    pub page: PageAt,
    /// Where it is whole.
    pub copy: Option<Copy>,
}

/// What the maps of the newest epoch have in damaged places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The epoch.
    pub epoch: Epoch,
    /// The tenure that published it.
    pub generation: Generation,
    /// Size of the volume, blocks.
    pub size_blocks: u64,
    /// Frames, in no order.
    pub frames: Vec<FoundFrame>,
    /// Pages, in the order of the maps.
    pub pages: Vec<FoundPage>,
    /// Objects that can be put back under their own names, as they were uploaded: none of their frames is in `frames`.
    pub originals: Vec<Known>,
    /// Maps that say the same without a page that has no whole copy; `frames` and `pages` are theirs.
    pub earlier: Option<EarlierMaps>,
}

impl Survey {
    /// Leaves out the frames and pages that are whole in objects that are put back.
    pub(super) fn forget_originals(&mut self) {
        let objects: HashSet<_> = self.originals.iter().map(|known| known.object).collect();
        let stays = |frame: &FrameRef, copy: Option<Copy>| {
            copy != Some(Copy::Bucket) || !objects.contains(&frame.object)
        };
        self.frames.retain(|found| stays(&found.frame, found.copy));
        self.pages.retain(|found| stays(&found.page.frame, found.copy));
    }
}

/// Walks the maps of the newest epoch for what they have among `suspects`, and looks where it is whole. Memory grows
/// with the damage, not with the volume.
///
/// # Errors
/// What keeps the volume from being opened, and what the store refuses.
pub async fn survey(direct: &Direct, suspects: &Suspects) -> Result<Survey, VolumeError> {
    let bucket = &direct.bucket;
    let newest = bucket.newest_manifest().await?;
    let delta = load_delta(bucket, &newest.manifest).await?;
    let mut survey = look(direct, suspects, &newest.manifest.roots, &delta).await?;
    let gone = survey.pages.iter().filter(|found| found.copy.is_none()).map(|found| found.page.frame.object);
    let gone: BTreeSet<_> = gone.map(|object| (object.generation, object.sequence)).collect();
    if !gone.is_empty()
        && let Some(earlier) = earlier::find(direct, &newest, &gone).await?
    {
        survey = look(direct, suspects, &earlier.roots, &earlier.delta(bucket).await?).await?;
        survey.earlier = Some(earlier);
    }
    let Manifest { epoch, generation, size_bytes, .. } = newest.manifest;
    Ok(Survey { epoch, generation, size_blocks: size_bytes / u64::from(bucket.block_bytes()), ..survey })
}

/// What maps have among `suspects`.
pub(super) async fn look(
    direct: &Direct,
    suspects: &Suspects,
    roots: &Roots,
    delta: &Delta,
) -> Result<Survey, VolumeError> {
    let mut survey = Survey::default();
    let mut frames: BTreeMap<(FrameName, u64), (FrameRef, Blocks)> = BTreeMap::new();
    let mut take = |extent: &Extent| {
        if let Target::Frame(frame, _) = &extent.target
            && suspects.contains(frame)
        {
            let entry = frames.entry((name(frame), frame.offset)).or_insert((**frame, Blocks::default()));
            entry.1.add(Run { block: extent.block, count: extent.count });
        }
    };
    delta.extents.iter().for_each(|extent| take(&extent));
    for (map, root) in [(MapKind::Blocks, roots.blocks), (MapKind::Objects, roots.objects)] {
        let mut walk = Walk::new(direct, map, root.as_ref(), LOADS_MAX, |_, _| true);
        while let Some((at, page)) = walk.next().await {
            match page {
                Err(error) if error.is_damage() => survey.pages.push(FoundPage { page: at, copy: None }),
                Err(error) => return Err(error),
                Ok(page) => {
                    if suspects.contains(&at.frame) {
                        survey.pages.push(FoundPage { page: at, copy: whole(direct, &at.frame).await? });
                    }
                    let Page::Blocks(extents) = &*page else { continue };
                    for extent in extents {
                        let run = Run { block: extent.block, count: extent.count };
                        for Run { block, count } in delta.extents.resolve(&[run], &mut Vec::new()) {
                            take(&Extent { block, count, target: extent.target.skip(block - extent.block) });
                        }
                    }
                }
            }
        }
    }
    let looks = frames.into_values().map(|(frame, blocks)| async move {
        let copy = whole(direct, &frame).await?;
        Ok::<_, VolumeError>(FoundFrame { frame, blocks, copy })
    });
    survey.frames = futures::stream::iter(looks).buffered(LOADS_MAX).try_collect().await?;
    Ok(survey)
}

type FrameName = (Generation, crate::format::ids::Sequence, u32);

fn name(frame: &FrameRef) -> FrameName {
    (frame.object.generation, frame.object.sequence, frame.number)
}

async fn whole(direct: &Direct, frame: &FrameRef) -> Result<Option<Copy>, VolumeError> {
    match direct.find(frame).await {
        Ok((_, copy)) => Ok(Some(copy)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}
