//! Making a manifest from objects and claims alone, where there is none.
//!
//! # Overview
//! The index at an object's end says of which cut it is, which part of how many, and on which cut that one was built. The
//! newest claims say which tenure came last and what it began from. From there the line of cuts goes back, parent by
//! parent, to the first; its objects, in that order, are the volume.
//!
//! # Invariants
//! - A cut is taken whole or not at all, and with all that it was built on or not at all.
//! - What a tenure put after a later one had begun is not in its line, and so is not taken: a cut that a fenced writer
//!   uploaded. Where a tenure left no cut, its claim decides; what it may have found beyond that is left out and counted.
//!
//! # Not handled
//! Snapshots: their table is in pages of manifests that are gone. Cuts whose objects were collected: the line ends there.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{StreamExt, TryStreamExt};

use super::{
    base::{Base, began_from},
    bucket::{Bucket, Published},
    claims,
    env::Env,
    error::{Kind, VolumeError},
};
use crate::{
    format::{
        ids::{Epoch, Generation, LogId, Sequence},
        manifest::{Manifest, ManifestLink, Roots, Totals},
        names,
        page::Target,
    },
    map::delta::{Delta, NewObject},
    store::Listed,
};

/// Objects looked at at once.
const LOADS_MAX: usize = 16;

/// A cut's name.
type CutName = (Generation, Epoch);

/// What the objects add up to.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// What to open the volume on.
    pub base: Base,
    /// The newest cut taken.
    pub epoch: Epoch,
    /// When it was packed, milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the volume, bytes.
    pub size_bytes: u64,
    /// Blocks that hold data, bytes.
    pub used_bytes: u64,
    /// Cuts taken.
    pub cuts: u64,
    /// Cuts left out, and why, newest first.
    pub left_out: Vec<(Epoch, Generation, String)>,
    /// Objects that cannot be read.
    pub damaged: Vec<String>,
}

/// The objects of one cut.
#[derive(Clone, Debug, Default)]
struct Cut {
    parts: Vec<NewObject>,
}

impl Cut {
    /// Why it is not whole.
    fn fault(&self) -> Option<String> {
        let wanted = self.parts.first().map_or(0, |part| part.index.parts);
        let there: BTreeSet<u32> = self.parts.iter().map(|part| part.index.part).collect();
        let agree = self.parts.iter().all(|part| {
            let (a, b) = (&part.index, &self.parts[0].index);
            (a.parts, a.parent, a.log, a.size_bytes) == (b.parts, b.parent, b.log, b.size_bytes)
        });
        if !agree {
            return Some("its objects contradict each other".to_owned());
        }
        let whole = there.len() == wanted as usize && self.parts.len() == there.len();
        (!whole).then(|| format!("{} of its {wanted} objects are there", there.len()))
    }

    fn parent(&self) -> Option<CutName> {
        self.parts.first().and_then(|part| part.index.parent)
    }
}

/// Reads the indexes of all objects, and puts the newest cut of the winning line together. Changes nothing.
///
/// # Errors
/// `NoManifest` where no whole cut can be found: the text says why.
pub async fn rebuild(bucket: &Bucket, env: &Env, advance: impl Fn(u64, u64)) -> Result<Rebuilt, VolumeError> {
    let listed = bucket.store.list(names::OBJECTS, None, None).await?;
    let total = listed.len() as u64;
    let mut cuts: BTreeMap<CutName, Cut> = BTreeMap::new();
    let mut damaged = Vec::new();
    let (mut highest, mut floor) = (Sequence(0), Generation(0));
    let mut loads =
        futures::stream::iter(listed.iter().map(|line| explain(bucket, line))).buffered(LOADS_MAX);
    let mut done = 0;
    while let Some(explained) = loads.try_next().await? {
        done += 1;
        advance(done, total);
        match explained {
            Ok(Some(new)) => {
                highest = highest.max(new.listed.sequence);
                floor = floor.max(new.listed.generation);
                if new.index.parts > 0 {
                    cuts.entry((new.index.generation, new.index.epoch)).or_default().parts.push(new);
                }
            }
            Ok(None) => {}
            Err(text) => damaged.push(text),
        }
    }
    drop(loads);
    let head = find_head(bucket, &cuts).await?;
    let line = trace(&cuts, head)?;
    let left_out = left_out(&cuts, &line);
    assemble(bucket, env, Found { cuts, line, left_out, damaged, highest, floor }).await
}

/// The object's index; its own words for why it has none.
async fn explain(bucket: &Bucket, listed: &Listed) -> Result<Result<Option<NewObject>, String>, VolumeError> {
    let Some((generation, sequence)) = names::parse_object(&listed.key) else { return Ok(Ok(None)) };
    match bucket.explain_once(generation, sequence).await {
        Ok(new) => Ok(Ok(Some(new))),
        Err(error) if error.kind() == Kind::Corrupt => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// The newest cut of the winning line: of the highest tenure, or of what that one began from.
async fn find_head(bucket: &Bucket, cuts: &BTreeMap<CutName, Cut>) -> Result<Option<CutName>, VolumeError> {
    let claims = bucket.list_claims(None).await?;
    let claimed = claims.last().map(|claim| claim.0);
    let mut tenure = claimed.max(cuts.keys().next_back().map(|cut| cut.0)).unwrap_or_default();
    let mut highest = Epoch(u64::MAX);
    loop {
        let of_tenure = cuts.range((tenure, Epoch(0))..=(tenure, highest)).map(|(name, _)| *name);
        if let Some(head) = newest_with_all(cuts, of_tenure.rev()) {
            return Ok(Some(head));
        }
        // None that can be used: then what the first of them was built on, or the claim says it.
        let first = cuts.range((tenure, Epoch(0))..=(tenure, highest)).next();
        let below = match first.and_then(|(_, cut)| cut.parent()) {
            Some(parent) if parent.0 < tenure => Some(parent),
            _ => began_from(bucket, tenure).await?,
        };
        match below {
            Some((generation, epoch)) if generation < tenure => (tenure, highest) = (generation, epoch),
            Some(_) | None => return Ok(None),
        }
    }
}

/// The first of these that is whole with all that it was built on.
fn newest_with_all(
    cuts: &BTreeMap<CutName, Cut>,
    mut candidates: impl Iterator<Item = CutName>,
) -> Option<CutName> {
    candidates.find(|name| trace(cuts, Some(*name)).is_ok())
}

/// The line of cuts up to `head`, oldest first.
fn trace(cuts: &BTreeMap<CutName, Cut>, head: Option<CutName>) -> Result<Vec<CutName>, VolumeError> {
    let refuse = |detail| Err(VolumeError::NoManifest { detail });
    let Some(head) = head else {
        return refuse(
            "no object belongs to a whole cut of the last writer's line, together with all that it was built on".to_owned(),
        );
    };
    let mut line = vec![head];
    loop {
        let (generation, epoch) = line[line.len() - 1];
        let Some(cut) = cuts.get(&(generation, epoch)) else {
            return refuse(format!("of epoch {epoch} of generation {generation} nothing is there"));
        };
        if let Some(fault) = cut.fault() {
            return refuse(format!("epoch {epoch} of generation {generation}: {fault}"));
        }
        match cut.parent() {
            None => break,
            // Epochs only fall on the way back: what says otherwise leads nowhere.
            Some(parent) if parent.1 >= epoch || parent.0 > generation => {
                return refuse(format!(
                    "epoch {epoch} of generation {generation} names a later one as its base"
                ));
            }
            Some(parent) => line.push(parent),
        }
    }
    line.reverse();
    Ok(line)
}

fn left_out(cuts: &BTreeMap<CutName, Cut>, line: &[CutName]) -> Vec<(Epoch, Generation, String)> {
    let taken: BTreeSet<_> = line.iter().collect();
    let others = cuts.iter().rev().filter(|(name, _)| !taken.contains(name));
    let why = |cut: &Cut| cut.fault().unwrap_or_else(|| "it is not in the last writer's line".to_owned());
    others.map(|(name, cut)| (name.1, name.0, why(cut))).collect()
}

struct Found {
    cuts: BTreeMap<CutName, Cut>,
    line: Vec<CutName>,
    left_out: Vec<(Epoch, Generation, String)>,
    damaged: Vec<String>,
    highest: Sequence,
    floor: Generation,
}

async fn assemble(bucket: &Bucket, env: &Env, mut found: Found) -> Result<Rebuilt, VolumeError> {
    let mut delta = Delta::new(bucket.block_bytes(), Epoch(0));
    for name in &found.line {
        let Some(mut cut) = found.cuts.remove(name) else { continue };
        cut.parts.sort_unstable_by_key(|part| part.index.part);
        cut.parts.iter().for_each(|part| delta.apply(part));
        if found.line.last() != Some(name) {
            continue;
        }
        let index = &cut.parts[0].index;
        let listed = bucket.list_manifests().await?;
        let floor = listed.last().map_or(found.floor, |name| name.0.max(found.floor));
        let data = delta.extents.iter().filter(|extent| extent.target != Target::Hole);
        let used: u64 = data.map(|extent| extent.count).sum();
        let manifest = Manifest {
            volume: bucket.header.volume,
            generation: name.0,
            nonce: nonce_of(bucket, name.0, index.log.log).await?,
            epoch: name.1,
            parent: None,
            oldest_kept: name.1,
            header: bucket.header_digest,
            data_cut: Some(*name),
            log: index.log,
            writer: claims::writer(env),
            time_ms: index.time_ms,
            size_bytes: index.size_bytes,
            next_sequence: found.highest.next(),
            closed: false,
            unpublished_bytes: 0,
            roots: Roots { epoch: Epoch(0), blocks: None, objects: None, snapshots: None },
            objects: delta.listed.clone(),
            inherited: Vec::new(),
            snapshots: Vec::new(),
            // Numbers of snapshots are never used twice, and there was none without an epoch of its own.
            next_snapshot: name.1.0.saturating_add(1),
            owners: Vec::new(),
            totals: Totals {
                objects: delta.listed.len() as u64,
                object_bytes: delta.listed.iter().map(|listed| listed.bytes).sum(),
                mapped_blocks: 0,
            },
        };
        let link = ManifestLink { generation: name.0, epoch: name.1, digest: [0; 32] };
        return Ok(Rebuilt {
            epoch: name.1,
            time_ms: index.time_ms,
            size_bytes: index.size_bytes,
            used_bytes: used * u64::from(bucket.block_bytes()),
            cuts: found.line.len() as u64,
            left_out: found.left_out,
            damaged: found.damaged,
            base: Base { published: Published { manifest, link }, rebuilt: true, floor, listed },
        });
    }
    Err(VolumeError::NoManifest { detail: "there is no cut".to_owned() })
}

/// The nonce of the claim under which a log was written in a tenure: by it a host knows its own log.
async fn nonce_of(bucket: &Bucket, generation: Generation, log: LogId) -> Result<u64, VolumeError> {
    for (claimed, nonce) in bucket.list_claims(None).await? {
        if claimed != generation {
            continue;
        }
        match bucket.load_claim(claimed, nonce).await {
            Ok(claim) if claim.log == log => return Ok(nonce),
            Ok(_) => {}
            Err(error) if error.kind() == Kind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    Ok(0)
}
