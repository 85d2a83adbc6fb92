//! What a volume is, told from its bucket alone: no lock, no claim, and works while it is open elsewhere.

use serde::{Deserialize, Serialize};

use super::{
    bucket::{Bucket, Published},
    error::{Kind, VolumeError},
    follow::at_newest,
    open::load_delta,
    snapshots::SnapshotTable,
    walk::{Direct, Walk},
};
use crate::{
    format::{
        claim::Writer,
        header::Protection,
        ids::{Epoch, Generation},
        index::{MapKind, Run},
        manifest::{Manifest, Snapshot},
        names,
        page::{Page, Target},
    },
    map::delta::Delta,
};

/// Pages under way at once.
const PAGE_LOADS_MAX: usize = 16;

/// What `s3bd info` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The volume's id, hexadecimal.
    pub volume: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Whether a password or key file is needed to read it.
    pub protected: bool,
    /// Key slots in the bucket.
    pub key_slots: u64,
    /// How new data is packed by default: "plain", "zstd", "lz4" or "xz".
    pub compression: &'static str,
    /// Size of a block, bytes.
    pub block_bytes: u32,
    /// Size of the volume, bytes.
    pub size_bytes: u64,
    /// Blocks that hold data in the newest epoch, bytes.
    pub used_bytes: u64,
    /// Objects in the bucket.
    pub objects: u64,
    /// Their lengths, bytes.
    pub stored_bytes: u64,
    /// The newest epoch.
    pub epoch: Epoch,
    /// The tenure that published it.
    pub generation: Generation,
    /// When it was published, milliseconds since 1970.
    pub published_ms: u64,
    /// Who published it.
    pub published_by: Party,
    /// Whether its last writer closed it.
    pub clean: bool,
    /// Who has it open, or died while they had; none where it is clean.
    pub open: Option<Open>,
    /// Acknowledged writes that its writer held above the newest epoch when it published that, bytes.
    pub unpublished_bytes: u64,
    /// Of a clone, the name of the volume whose objects it reads.
    pub clone_of: Option<String>,
    /// Snapshots, by number.
    pub snapshots: Vec<SnapshotInfo>,
}

/// A process on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Version of s3bd.
    pub version: String,
}

impl From<&Writer> for Party {
    fn from(writer: &Writer) -> Self {
        Self { host: writer.host.clone(), pid: writer.pid, version: writer.version.clone() }
    }
}

/// A tenure that was not closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Open {
    /// Its generation.
    pub generation: Generation,
    /// Who has it; none where the claim cannot be read.
    pub by: Option<Party>,
    /// When it was claimed, milliseconds since 1970.
    pub since_ms: Option<u64>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The epoch it pins.
    pub epoch: Epoch,
    /// When it was taken, milliseconds since 1970.
    pub time_ms: u64,
    /// Size of the volume then, bytes.
    pub size_bytes: u64,
    /// Names of the clones that depend on it.
    pub clones: Vec<String>,
}

/// Reads what there is to tell: the newest manifest, the indexes and the few pages that its list touches, the newest
/// claim.
///
/// # Errors
/// `Corrupt` ones where something of that is damaged: `fsck` says more.
pub async fn info(bucket: &Bucket) -> Result<Info, VolumeError> {
    at_newest(bucket, async |newest: Published| at(bucket, &newest.manifest).await).await
}

async fn at(bucket: &Bucket, manifest: &Manifest) -> Result<Info, VolumeError> {
    let delta = load_delta(bucket, manifest).await?;
    let direct = Direct::new(bucket.clone());
    let used_blocks = used_blocks(&direct, manifest, &delta).await?;
    let open = find_open(bucket, manifest, &bucket.list_claims(None).await?).await?;
    let slots = bucket.store.list(names::KEYS, None, None).await?;
    Ok(Info {
        volume: bucket.header.volume.to_string(),
        created_ms: bucket.header.created_ms,
        protected: bucket.header.protection == Protection::Secret,
        compression: bucket.header.compression.name(),
        key_slots: slots.len() as u64,
        block_bytes: bucket.block_bytes(),
        size_bytes: manifest.size_bytes,
        used_bytes: used_blocks.saturating_mul(bucket.block_bytes().into()),
        objects: manifest.totals.objects,
        stored_bytes: manifest.totals.object_bytes,
        epoch: manifest.epoch,
        generation: manifest.generation,
        published_ms: manifest.time_ms,
        published_by: (&manifest.writer).into(),
        clean: open.is_none(),
        open,
        unpublished_bytes: manifest.unpublished_bytes,
        clone_of: manifest.owners.first().map(|owner| owner.name.clone()),
        snapshots: SnapshotTable::load(bucket, manifest).await?.iter().map(SnapshotInfo::from).collect(),
    })
}

impl From<&Snapshot> for SnapshotInfo {
    fn from(snapshot: &Snapshot) -> Self {
        let Snapshot { id, epoch, time_ms, size_bytes, .. } = *snapshot;
        let clones = snapshot.clones.iter().map(|clone| clone.name.clone()).collect();
        Self { id, name: snapshot.name.clone(), epoch, time_ms, size_bytes, clones }
    }
}

/// Blocks with data: those of the checkpoint, less those that the list hides, and those that it brings.
async fn used_blocks(direct: &Direct, manifest: &Manifest, delta: &Delta) -> Result<u64, VolumeError> {
    let touched = |first: u64, last: u64| {
        let run = Run { block: first, count: (last - first).saturating_add(1) };
        delta.extents.overlapping(run).next().is_some()
    };
    let root = manifest.roots.blocks.as_ref().filter(|_| !delta.extents.is_empty());
    let mut walk = Walk::new(direct, MapKind::Blocks, root, PAGE_LOADS_MAX, touched);
    let mut hidden = 0_u64;
    while let Some((_, page)) = walk.next().await {
        let page = page?;
        let Page::Blocks(extents) = &*page else { continue };
        for extent in extents {
            let run = Run { block: extent.block, count: extent.count };
            hidden += delta.extents.overlapping(run).map(|over| over.count).sum::<u64>();
        }
    }
    let brought =
        delta.extents.iter().filter(|extent| extent.target != Target::Hole).map(|extent| extent.count);
    Ok(manifest.totals.mapped_blocks.saturating_add(brought.sum()).saturating_sub(hidden))
}

/// The tenure that is not closed, if there is one: that of a claim above the newest manifest, or of that manifest.
/// `claims` are all there are, oldest first.
pub async fn find_open(
    bucket: &Bucket,
    newest: &Manifest,
    claims: &[(Generation, u64)],
) -> Result<Option<Open>, VolumeError> {
    let above = claims.last().filter(|claim| claim.0 > newest.generation);
    let (generation, nonce) = match above {
        Some(claim) => *claim,
        None if newest.closed => return Ok(None),
        None => (newest.generation, newest.nonce),
    };
    match bucket.load_claim(generation, nonce).await {
        Ok(claim) => {
            let by = Some((&claim.writer).into());
            Ok(Some(Open { generation, by, since_ms: Some(claim.time_ms) }))
        }
        // Damaged or missing: then nobody can say who.
        Err(error) if error.kind() == Kind::Corrupt => {
            Ok(Some(Open { generation, by: None, since_ms: None }))
        }
        Err(error) => Err(error),
    }
}
