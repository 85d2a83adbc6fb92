//! Making a manifest from objects and claims alone, where there is none, or none of the newest epochs.
//!
//! # Overview
//! The index at an object's end says of which cut it is, which part of how many, and on which cut that one was built; the
//! last object of a checkpoint has its roots, and says which cut they map up to. The newest claims say which tenure came
//! last and what it began from. From there the line of cuts goes back, parent by parent, to one that a whole checkpoint
//! maps, or to the first; that checkpoint, with the cuts above it on top, is the volume.
//!
//! # Invariants
//! - A cut is taken whole or not at all, and with all that it was built on or not at all. A checkpoint stands for all up to
//!   its cut, and only with every page of its maps and every object that they name: what the collector deleted since is
//!   not looked for.
//! - What a tenure put after a later one had begun is not in its line, and so is not taken: a cut or a checkpoint that a
//!   fenced writer uploaded. Where a tenure left no cut, its claim decides.
//!
//! # Not handled
//! Changes of the snapshot table since the checkpoint: they were in manifests alone (and are taken from one that is whole). The keys of other volumes' objects:
//! a clone that still reads its origin's is refused.

mod maps;
mod pieces;

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{StreamExt, TryStreamExt};

use self::{
    maps::Known,
    pieces::{Checkpoint, CutName, Facts, Pieces},
};
use super::{
    base::{Base, began_from},
    bucket::{Bucket, Published},
    claims,
    env::Env,
    error::{Kind, VolumeError},
    snapshots::SnapshotTable,
};
use crate::{
    format::{
        ids::{Epoch, Generation, LogId},
        manifest::{ListedObject, Manifest, ManifestLink, Roots, SnapshotChange, Totals},
        page::Target,
    },
    map::delta::Delta,
};

/// Indexes read at once.
const LOADS_MAX: usize = 16;

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
    /// The checkpoint taken; none where all cuts were.
    pub checkpoint: Option<Epoch>,
    /// Cuts taken on top of it.
    pub cuts: u64,
    /// The snapshots.
    pub snapshots: SnapshotTable,
    /// As of when: of the checkpoint, or of a whole manifest that is later; none where there are none for want of both.
    pub snapshots_epoch: Option<Epoch>,
    /// Checkpoints passed over, and why, newest first.
    pub passed: Vec<(Epoch, Generation, String)>,
    /// Cuts left out, and why, newest first.
    pub left_out: Vec<(Epoch, Generation, String)>,
    /// Objects that cannot be read.
    pub damaged: Vec<String>,
}

impl Rebuilt {
    /// Whether the newest cut is later than a whole manifest: then that one is of an earlier epoch in the same line.
    #[must_use]
    pub fn is_beyond(&self, whole: &Base) -> bool {
        let (generation, epoch) = whole.published.name();
        self.base.published.link.generation >= generation && self.epoch > epoch
    }

    /// Takes the snapshots that a whole manifest has, where it is later than the checkpoint: no object tells of those.
    ///
    /// # Errors
    /// Damage to the manifest's snapshot table, and what the store refuses.
    pub async fn take_snapshots_of(&mut self, bucket: &Bucket, whole: &Base) -> Result<(), VolumeError> {
        let whole = &whole.published.manifest;
        if self.checkpoint.is_some_and(|checkpoint| checkpoint >= whole.epoch) {
            return Ok(());
        }
        let table = SnapshotTable::load(bucket, whole).await?;
        let ids: BTreeSet<_> = table.iter().map(|snapshot| snapshot.id).collect();
        let deleted = self.snapshots.iter().map(|snapshot| snapshot.id).filter(|id| !ids.contains(id));
        let changes = deleted.map(SnapshotChange::Deleted);
        let manifest = &mut self.base.published.manifest;
        manifest.snapshots = changes.chain(table.iter().cloned().map(SnapshotChange::Taken)).collect();
        manifest.next_snapshot = manifest.next_snapshot.max(whole.next_snapshot);
        (self.snapshots, self.snapshots_epoch) = (table, Some(whole.epoch));
        Ok(())
    }
}

/// Reads the indexes of all objects, and puts the newest cut of the winning line together. Changes nothing.
///
/// # Errors
/// `NoManifest` where no whole cut can be found, or where it is a clone's: the text says why.
pub async fn rebuild(bucket: &Bucket, env: &Env, advance: impl Fn(u64, u64)) -> Result<Rebuilt, VolumeError> {
    let pieces = Pieces::load(bucket, advance).await?;
    let mut finder = Finder::new(bucket, &pieces);
    let line = finder.find().await?;
    let looks = finder.looks;
    assemble(bucket, env, &pieces, looks, &line).await
}

/// What the volume is put together from.
#[derive(Clone, Debug, Default)]
struct Line {
    /// Position among the checkpoints.
    checkpoint: Option<usize>,
    /// The cuts above it, oldest first.
    cuts: Vec<CutName>,
}

/// What a line may end with.
#[derive(Clone, Copy, Debug)]
enum Head {
    Cut(CutName),
    Checkpoint(usize),
}

/// How far a tenure's part of the line goes.
#[derive(Clone, Copy, Debug)]
struct Bound {
    tenure: Generation,
    highest: Epoch,
    /// Its last cut, and the manifest from which the next tenure said it began.
    last: Option<(CutName, Option<CutName>)>,
}

impl Bound {
    fn allows(&self, checkpoint: &Checkpoint) -> bool {
        let (tenure, epoch) = checkpoint.name();
        if tenure == self.tenure && epoch <= self.highest {
            return true;
        }
        // Nothing but snapshots changed between the tenure's last cut and this checkpoint.
        let stands_for = |(cut, from): (CutName, Option<CutName>)| {
            checkpoint.facts.parent == Some(cut) && from.is_some_and(|from| checkpoint.name() <= from)
        };
        self.last.is_some_and(stands_for)
    }
}

/// Looks for the winning line. Checkpoints are looked at when they are come upon, each once.
struct Finder<'a> {
    bucket: &'a Bucket,
    pieces: &'a Pieces,
    looks: BTreeMap<usize, Result<Known, String>>,
    /// Checkpoints by the cut that they stand for, with all below it.
    standing: BTreeMap<Option<CutName>, Vec<usize>>,
    /// What tenures began from, as their claims say.
    began: BTreeMap<Generation, Option<CutName>>,
}

impl<'a> Finder<'a> {
    fn new(bucket: &'a Bucket, pieces: &'a Pieces) -> Self {
        let mut standing: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (number, checkpoint) in pieces.checkpoints.iter().enumerate() {
            standing.entry(checkpoint.facts.parent).or_default().push(number);
        }
        Self { bucket, pieces, looks: BTreeMap::new(), standing, began: BTreeMap::new() }
    }

    async fn began_from(&mut self, tenure: Generation) -> Result<Option<CutName>, VolumeError> {
        if let Some(known) = self.began.get(&tenure) {
            return Ok(*known);
        }
        let from = began_from(self.bucket, tenure).await?;
        self.began.insert(tenure, from);
        Ok(from)
    }

    /// The newest cut or checkpoint that is whole with all that it needs: of the highest tenure, or of what that one
    /// began from.
    async fn find(&mut self) -> Result<Line, VolumeError> {
        let Pieces { cuts, checkpoints, .. } = self.pieces;
        let claimed = self.bucket.list_claims(None).await?.last().map(|claim| claim.0);
        let of_objects = cuts.keys().next_back().map(|cut| cut.0);
        let of_pages = checkpoints.last().map(|checkpoint| checkpoint.last.0);
        let tenure = claimed.max(of_objects).max(of_pages).unwrap_or_default();
        let mut bound = Bound { tenure, highest: Epoch(u64::MAX), last: None };
        let mut first_fault = None;
        loop {
            for head in self.heads(&bound) {
                match self.trace(head).await? {
                    Ok(line) => return Ok(line),
                    Err(fault) => drop(first_fault.get_or_insert(fault)),
                }
            }
            bound = match self.below(&bound).await? {
                Some(below) if below.tenure < bound.tenure => below,
                Some(_) | None => {
                    let why = first_fault.map_or(String::new(), |fault| format!(" ({fault})"));
                    let detail = format!(
                        "no object belongs to a whole cut of the last writer's line, together with all that it was built \
                         on{why}"
                    );
                    return Err(VolumeError::NoManifest { detail });
                }
            };
        }
    }

    /// What the line may end with within `bound`, newest first.
    fn heads(&self, bound: &Bound) -> Vec<Head> {
        let Pieces { cuts, checkpoints, .. } = self.pieces;
        let cuts = cuts.range((bound.tenure, Epoch(0))..=(bound.tenure, bound.highest));
        let mut heads: Vec<_> = cuts.map(|(name, _)| ((name.1, 0), Head::Cut(*name))).collect();
        for (number, checkpoint) in checkpoints.iter().enumerate().filter(|(_, it)| bound.allows(it)) {
            heads.push(((checkpoint.epoch, number + 1), Head::Checkpoint(number)));
        }
        heads.sort_unstable_by_key(|(age, _)| std::cmp::Reverse(*age));
        heads.into_iter().map(|(_, head)| head).collect()
    }

    /// Where no head of a tenure can be used: what the first of them was built on, or what the claim says.
    async fn below(&mut self, bound: &Bound) -> Result<Option<Bound>, VolumeError> {
        let Bound { tenure, highest, .. } = *bound;
        let Pieces { cuts, checkpoints, .. } = self.pieces;
        let from = self.began_from(tenure).await?;
        let cut = cuts.range((tenure, Epoch(0))..=(tenure, highest)).next().and_then(|(_, cut)| cut.parent());
        let mapped = checkpoints.iter().filter(|it| it.last.0 == tenure).find_map(|it| it.facts.parent);
        let last = cut.or(mapped).filter(|last| last.0 < tenure);
        Ok(last.or(from).map(|(tenure, highest)| Bound {
            tenure,
            highest,
            last: last.map(|last| (last, from)),
        }))
    }

    /// What is wrong with a checkpoint; `None` where it is whole.
    async fn fault(&mut self, number: usize) -> Result<Option<String>, VolumeError> {
        let look = match self.looks.entry(number) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(unknown) => {
                let checkpoint = &self.pieces.checkpoints[number];
                unknown.insert(maps::look(self.bucket, self.pieces, checkpoint).await?)
            }
        };
        Ok(look.as_ref().err().cloned())
    }

    /// The line up to `head`; why there is none.
    async fn trace(&mut self, head: Head) -> Result<Result<Line, String>, VolumeError> {
        let mut next = match head {
            Head::Cut(name) => Some(name),
            Head::Checkpoint(number) => {
                let line = Line { checkpoint: Some(number), cuts: Vec::new() };
                return Ok(self.fault(number).await?.map_or(Ok(line), Err));
            }
        };
        let mut above: Vec<CutName> = Vec::new();
        loop {
            if let Some(number) = self.checkpoint_below(next, &above).await? {
                above.reverse();
                return Ok(Ok(Line { checkpoint: Some(number), cuts: above }));
            }
            let Some((generation, epoch)) = next else {
                above.reverse();
                return Ok(Ok(Line { checkpoint: None, cuts: above }));
            };
            let Some(cut) = self.pieces.cuts.get(&(generation, epoch)) else {
                return Ok(Err(format!("of epoch {epoch} of generation {generation} nothing is there")));
            };
            if let Some(fault) = cut.fault() {
                return Ok(Err(format!("epoch {epoch} of generation {generation}: {fault}")));
            }
            next = cut.parent();
            // Epochs only fall on the way back: what says otherwise leads nowhere.
            if next.is_some_and(|parent| parent.1 >= epoch || parent.0 > generation) {
                return Ok(Err(format!(
                    "epoch {epoch} of generation {generation} names a later one as its base; where this is a clone, that is \
                     of its origin, which manifests alone know"
                )));
            }
            above.push((generation, epoch));
        }
    }

    /// The newest whole checkpoint that maps up to `cut`, for a line that goes on from there with `above`, newest first.
    async fn checkpoint_below(
        &mut self,
        cut: Option<CutName>,
        above: &[CutName],
    ) -> Result<Option<usize>, VolumeError> {
        // Those that a line may end with are heads themselves.
        let Some(first) = above.last() else { return Ok(None) };
        let Some(standing) = self.standing.get(&cut).cloned() else { return Ok(None) };
        let from = self.began_from(first.0).await?;
        for number in standing.into_iter().rev() {
            let checkpoint = &self.pieces.checkpoints[number];
            let in_line = match checkpoint.last.0 {
                tenure if tenure == first.0 => true,
                // Fenced by then, or of a line that was given up.
                tenure => tenure < first.0 && from.is_none_or(|from| checkpoint.name() <= from),
            };
            if !in_line || checkpoint.epoch >= first.1 {
                continue;
            }
            if self.fault(number).await?.is_none() && self.is_apart(number, above) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Whether the cuts have other numbers than the checkpoint's pages: one that no manifest had leaves its own free.
    fn is_apart(&self, number: usize, cuts: &[CutName]) -> bool {
        let Some(Ok(known)) = self.looks.get(&number) else { return false };
        let pages: BTreeSet<_> = known.pages.iter().map(|page| page.sequence).collect();
        let pieces = cuts.iter().filter_map(|name| self.pieces.cuts.get(name)).flat_map(|cut| &cut.pieces);
        pieces.into_iter().all(|piece| !pages.contains(&piece.listed.sequence))
    }
}

/// Cuts that are neither in the line nor in the maps that it begins with.
fn left_out(pieces: &Pieces, line: &Line, known: &Known) -> Vec<(Epoch, Generation, String)> {
    let taken: BTreeSet<_> = line.cuts.iter().collect();
    let is_mapped = |listed: &ListedObject| known.table.contains_key(&(listed.generation, listed.sequence));
    let others = pieces.cuts.iter().rev().filter(|(name, cut)| {
        !taken.contains(name) && !cut.pieces.iter().all(|piece| is_mapped(&piece.listed))
    });
    let why =
        |cut: &pieces::Cut| cut.fault().unwrap_or_else(|| "it is not in the last writer's line".to_owned());
    others.map(|(name, cut)| (name.1, name.0, why(cut))).collect()
}

async fn assemble(
    bucket: &Bucket,
    env: &Env,
    pieces: &Pieces,
    mut looks: BTreeMap<usize, Result<Known, String>>,
    line: &Line,
) -> Result<Rebuilt, VolumeError> {
    let Checkpointed { roots, mapped_blocks, head } = checkpointed(pieces, line);
    let known = line.checkpoint.and_then(|number| looks.remove(&number)?.ok()).unwrap_or_default();
    let (name, facts) = match line.cuts.last().and_then(|name| Some((*name, pieces.cuts.get(name)?))) {
        Some((name, cut)) => (name, cut.pieces.first().map(|piece| piece.facts)),
        None => head.map_or(((Generation(0), Epoch(0)), None), |(name, facts)| (name, Some(facts))),
    };
    let facts = facts.ok_or_else(|| VolumeError::NoManifest { detail: "there is no cut".to_owned() })?;
    let delta = load_cuts(bucket, pieces, line, roots.epoch).await?;
    let data = delta.extents.iter().filter(|extent| extent.target != Target::Hole);
    let added: u64 = data.map(|extent| extent.count).sum();
    let replaced = maps::mapped_below(bucket, roots.blocks.as_ref(), &delta.extents).await?;
    let used_blocks = (mapped_blocks + added).saturating_sub(replaced);
    // Its pages came with a manifest of a later epoch than they map up to.
    let pages = known.pages.iter().map(|page| ListedObject { epoch: roots.epoch.next(), ..*page });
    let objects: Vec<ListedObject> = pages.chain(delta.listed).collect();
    let bytes = known.table.values().chain(objects.iter().map(|listed| &listed.bytes)).sum();
    let totals =
        Totals { objects: (known.table.len() + objects.len()) as u64, object_bytes: bytes, mapped_blocks };
    let listed = bucket.list_manifests().await?;
    let floor = listed.last().map_or(pieces.floor, |name| name.0.max(pieces.floor));
    let epoch = match &known.pages[..] {
        [] => name.1,
        _ => name.1.max(roots.epoch.next()),
    };
    let last_snapshot = known.snapshots.iter().next_back().map_or(0, |snapshot| snapshot.id);
    let manifest = Manifest {
        volume: bucket.header.volume,
        generation: name.0,
        nonce: nonce_of(bucket, name.0, facts.log.log).await?,
        epoch,
        parent: None,
        oldest_kept: epoch,
        header: bucket.header_digest,
        data_cut: if line.cuts.is_empty() { facts.parent } else { Some(name) },
        log: facts.log,
        writer: claims::writer(env),
        time_ms: facts.time_ms,
        size_bytes: facts.size_bytes,
        next_sequence: pieces.highest.max(known.highest()).next(),
        closed: false,
        unpublished_bytes: 0,
        roots,
        objects,
        inherited: Vec::new(),
        snapshots: Vec::new(),
        // Numbers of snapshots are never used twice, and there was none without an epoch of its own.
        next_snapshot: epoch.0.max(last_snapshot).saturating_add(1),
        owners: Vec::new(),
        totals,
    };
    let passed = looks.into_iter().rev().filter_map(|(number, look)| {
        let (generation, epoch) = pieces.checkpoints[number].name();
        Some((epoch, generation, look.err()?))
    });
    let link = ManifestLink { generation: name.0, epoch, digest: [0; 32] };
    Ok(Rebuilt {
        epoch: name.1,
        time_ms: facts.time_ms,
        size_bytes: facts.size_bytes,
        used_bytes: used_blocks * u64::from(bucket.block_bytes()),
        checkpoint: line.checkpoint.map(|number| pieces.checkpoints[number].epoch),
        snapshots_epoch: line.checkpoint.map(|number| pieces.checkpoints[number].epoch),
        cuts: line.cuts.len() as u64,
        passed: passed.collect(),
        left_out: left_out(pieces, line, &known),
        snapshots: known.snapshots,
        damaged: pieces.damaged.clone(),
        base: Base { published: Published { manifest, link }, rebuilt: true, floor, listed },
    })
}

/// What a line begins with.
struct Checkpointed {
    roots: Roots,
    mapped_blocks: u64,
    /// The checkpoint as the end of the line.
    head: Option<(CutName, Facts)>,
}

fn checkpointed(pieces: &Pieces, line: &Line) -> Checkpointed {
    match line.checkpoint.map(|number| &pieces.checkpoints[number]) {
        Some(checkpoint) => Checkpointed {
            roots: checkpoint.maps.roots.clone(),
            mapped_blocks: checkpoint.maps.mapped_blocks,
            head: Some((checkpoint.name(), checkpoint.facts)),
        },
        None => Checkpointed {
            roots: Roots { epoch: Epoch(0), blocks: None, objects: None, snapshots: None },
            mapped_blocks: 0,
            head: None,
        },
    }
}

/// What the cuts of the line change in the maps as of `epoch`.
async fn load_cuts(
    bucket: &Bucket,
    pieces: &Pieces,
    line: &Line,
    epoch: Epoch,
) -> Result<Delta, VolumeError> {
    let mut delta = Delta::new(bucket.block_bytes(), epoch);
    let cuts = line.cuts.iter().filter_map(|name| pieces.cuts.get(name));
    let loads = cuts.flat_map(|cut| &cut.pieces).map(|piece| bucket.load_index(piece.listed));
    let mut loads = futures::stream::iter(loads).buffered(LOADS_MAX);
    while let Some(new) = loads.try_next().await? {
        delta.apply(&new);
    }
    Ok(delta)
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
