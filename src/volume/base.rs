//! What a volume is opened on top of where its newest manifest cannot be used: an older whole one, or one made from the
//! objects. Finding it changes nothing; opening on it takes a claim and publishes on top, as any writer does.
//!
//! # Invariants
//! - Only manifests of the winning line are candidates: a readable one says its parent; of a tenure of which none can be
//!   read, the claim says what it began from.
//! - A candidate is whole: its bytes, the indexes it lists and its pages open, and every object they name exists.

use std::collections::BTreeSet;

use super::{
    bucket::{Bucket, Published},
    error::{Kind, VolumeError},
    open::load_delta,
    walk::{Direct, Walk},
};
use crate::format::{
    ids::{Epoch, Generation, Sequence},
    index::MapKind,
    manifest::ManifestLink,
    names,
    page::{Page, Target},
};

/// Pages under way at once.
const PAGE_LOADS_MAX: usize = 16;

type ManifestName = (Generation, Epoch);

/// What to open a volume on instead of its newest manifest.
#[derive(Clone, Debug)]
pub struct Base {
    /// The manifest.
    pub published: Published,
    /// It was made from the objects, and is nobody's parent.
    pub rebuilt: bool,
    /// All manifests in the bucket when it was chosen.
    pub(super) listed: Vec<ManifestName>,
    /// The highest tenure of which anything is in the bucket.
    pub(super) floor: Generation,
}

impl Base {
    /// Whether a manifest was in the bucket when this was chosen, whole or not.
    #[must_use]
    pub fn lists(&self, manifest: (Generation, Epoch)) -> bool {
        self.listed.binary_search(&manifest).is_ok()
    }

    /// The manifest, if no other was put since it was chosen.
    pub(super) async fn load(&self, bucket: &Bucket) -> Result<Published, VolumeError> {
        let now = bucket.list_manifests().await?;
        if now == self.listed { Ok(self.published.clone()) } else { Err(VolumeError::MovedOn) }
    }
}

/// The oldest manifest from which on none is missing up to `newest`. Of a line that is gone back to, later epochs may have let
/// go of more than it says itself.
pub(super) fn oldest_there(listed: &[ManifestName], newest: ManifestName) -> Epoch {
    let there: BTreeSet<_> = listed.iter().filter(|name| **name <= newest).map(|name| name.1).collect();
    let mut oldest = newest.1;
    while let Some(before) = oldest.0.checked_sub(1).map(Epoch).filter(|before| there.contains(before)) {
        oldest = before;
    }
    oldest
}

/// A manifest that was passed over.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Its tenure.
    pub generation: Generation,
    /// Its epoch.
    pub epoch: Epoch,
    /// When it was published, milliseconds since 1970; none where it cannot be read.
    pub time_ms: Option<u64>,
    /// What is wrong with it.
    pub why: String,
}

/// The newest whole epoch, and what is given up with it.
#[derive(Clone, Debug)]
pub struct Fallback {
    /// The newest whole one; none where there is none.
    pub base: Option<Base>,
    /// Those above it in the line, newest first.
    pub passed: Vec<Passed>,
}

/// Where in the line the next candidate is.
enum Next {
    /// Any up to this name.
    UpTo(ManifestName),
    /// This one alone, with these bytes.
    Exactly(ManifestLink),
    /// The line has no older one.
    Nothing,
}

/// Goes back along the line of manifests to the newest whole one.
pub async fn find_whole(bucket: &Bucket) -> Result<Fallback, VolumeError> {
    let listed = bucket.list_manifests().await?;
    let mut found = Fallback { base: None, passed: Vec::new() };
    let Some(newest) = listed.last().copied() else { return Ok(found) };
    let mut next = Next::UpTo(newest);
    loop {
        let (name, wanted) = match next {
            Next::UpTo(highest) => match listed.iter().rfind(|name| **name <= highest) {
                Some(name) => (*name, None),
                None => return Ok(found),
            },
            Next::Exactly(link) => ((link.generation, link.epoch), Some(link)),
            Next::Nothing => return Ok(found),
        };
        let mut pass = |time_ms, why| {
            found.passed.push(Passed { generation: name.0, epoch: name.1, time_ms, why });
        };
        let published = match bucket.load_manifest(name.0, name.1).await {
            Ok(Some(published)) if wanted.is_none_or(|wanted| wanted == published.link) => published,
            Ok(Some(_)) => {
                pass(None, "it is not the one that its successor was built on".to_owned());
                next = below(bucket, &listed, name).await?;
                continue;
            }
            Ok(None) => {
                pass(None, "it is missing".to_owned());
                next = below(bucket, &listed, name).await?;
                continue;
            }
            Err(error) if error.kind() == Kind::Corrupt => {
                pass(None, error.to_string());
                next = below(bucket, &listed, name).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match what_is_missing(bucket, &published).await? {
            None => {
                let floor = newest.0;
                found.base = Some(Base { published, rebuilt: false, listed, floor });
                return Ok(found);
            }
            Some(why) => pass(Some(published.manifest.time_ms), why),
        }
        next = published.manifest.parent.map_or(Next::Nothing, Next::Exactly);
    }
}

/// Below a manifest that cannot be read: the one before it of the same tenure, or what that tenure began from.
async fn below(bucket: &Bucket, listed: &[ManifestName], name: ManifestName) -> Result<Next, VolumeError> {
    let before = listed.iter().rfind(|other| other.0 == name.0 && other.1 < name.1);
    if let Some(before) = before {
        return Ok(Next::UpTo(*before));
    }
    Ok(began_from(bucket, name.0).await?.map_or(Next::Nothing, Next::UpTo))
}

/// What a tenure began from, as its claim says. Of several claims of one generation the highest: each is of a manifest
/// that was there.
pub(super) async fn began_from(
    bucket: &Bucket,
    generation: Generation,
) -> Result<Option<ManifestName>, VolumeError> {
    let mut from = None;
    for (claimed, nonce) in bucket.list_claims(None).await? {
        if claimed != generation {
            continue;
        }
        match bucket.load_claim(claimed, nonce).await {
            Ok(claim) => from = from.max(claim.from),
            Err(error) if error.kind() == Kind::Corrupt => {
                tracing::warn!(%error, "what this tenure began from cannot be known");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(from)
}

/// Why a manifest that can be read is not whole; `None` where it is.
async fn what_is_missing(bucket: &Bucket, published: &Published) -> Result<Option<String>, VolumeError> {
    let damage = |error: VolumeError| match error.kind() {
        Kind::Corrupt => Ok(Some(error.to_string())),
        _ => Err(error),
    };
    let delta = match load_delta(bucket, &published.manifest).await {
        Ok(delta) => delta,
        Err(error) => return damage(error),
    };
    let mut needed: BTreeSet<(Generation, Sequence)> = BTreeSet::new();
    let own = bucket.header.volume;
    let mut need = |target: &Target| {
        if let Target::Frame(frame, _) = target
            && frame.object.owner == own
        {
            needed.insert((frame.object.generation, frame.object.sequence));
        }
    };
    delta.extents.iter().for_each(|extent| need(&extent.target));
    let direct = Direct::new(bucket.clone());
    let roots = &published.manifest.roots;
    let maps = [
        (MapKind::Blocks, roots.blocks.as_ref()),
        (MapKind::Objects, roots.objects.as_ref()),
        (MapKind::Snapshots, roots.snapshots.as_ref()),
    ];
    for (map, root) in maps {
        let mut walk = Walk::new(&direct, map, root, PAGE_LOADS_MAX, |_, _| true);
        while let Some((_, page)) = walk.next().await {
            match page {
                Ok(page) => {
                    if let Page::Blocks(extents) = &*page {
                        extents.iter().for_each(|extent| need(&extent.target));
                    }
                }
                Err(error) => return damage(error),
            }
        }
    }
    let listed = bucket.store.list(names::OBJECTS, None, None).await?;
    let there: BTreeSet<_> = listed.iter().filter_map(|line| names::parse_object(&line.key)).collect();
    let mut gone = needed.difference(&there);
    Ok(gone.next().map(|first| {
        let count = gone.count() + 1;
        format!("{count} objects that it needs are not in the bucket any more, the first {}", {
            names::object(first.0, first.1)
        })
    }))
}
