//! What can be done about a finding.

use std::fmt;

use serde::Serialize;

use super::Finding;
use crate::format::index::MapKind;

/// What can be done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Nothing needs to be done, or it goes by itself.
    Nothing,
    /// `fsck --repair` writes it anew from a whole copy, or marks what has none as unreadable.
    Repair,
    /// `fsck --repair` mends it, and nothing is lost.
    Mend,
    /// The blocks are to be overwritten.
    Overwrite,
    /// `recover` goes back to the newest manifest that is whole.
    Recover,
    /// There is no manifest to go back to: `recover --scan` makes the maps anew from the objects.
    Scan,
    /// `recover --fall-back` goes back to the newest epoch of which every page is there.
    FallBack,
    /// What is missing is put back, or `--accept-rollback` goes on without it.
    AcceptRollback,
    /// A key slot is to be removed, and its secret added anew.
    Keys,
    /// There is no second copy of it, and no data depends on it.
    Accept,
    /// Snapshots alone need it: deleting them clears it, or the object has to be put back.
    Snapshots,
    /// There is no second copy of it.
    Restore,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing needs to be done",
            Self::Repair => {
                "s3bd fsck with --repair beside the options of this check mends it from a whole copy, or marks what has none as \
                 unreadable"
            }
            Self::Mend => "s3bd fsck with --repair beside the options of this check mends it; no data is lost",
            Self::Overwrite => "overwriting the blocks clears it",
            Self::Recover => "s3bd recover goes back to the newest manifest that is whole",
            Self::Scan => "s3bd recover --scan makes the maps anew from the objects, and shows them before it publishes them",
            Self::FallBack => {
                "s3bd recover --fall-back goes back to the newest epoch whose pages are all whole, and says before what that \
                 loses; where none is, s3bd recover --scan makes the maps anew from the objects"
            }
            Self::AcceptRollback => {
                "put what is missing back from a copy of the bucket, or go on from the older epoch with --accept-rollback (s3bd open \
                 or s3bd recover): what was published later is lost then, but for what this host's log still holds"
            }
            Self::Keys => "remove the key slot, and add its password or key file anew",
            Self::Accept => "it has no second copy, and no data depends on it",
            Self::Snapshots => {
                "snapshots cannot be mended: delete those that are hit (s3bd snapshot delete), or put the objects back from a copy \
                 of the bucket"
            }
            Self::Restore => "it has no second copy: put the object back from a copy of the bucket",
        })
    }
}

impl Remedy {
    /// Whether `fsck --repair` does something about it.
    #[must_use]
    pub fn is_repair(self) -> bool {
        matches!(self, Self::Repair | Self::Mend)
    }
}

impl Finding {
    /// What can be done about it.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::InUse { .. }
            | Self::ClaimDamaged { over: true, .. }
            | Self::ClaimMissing { over: true, .. }
            | Self::ManifestAside { .. }
            | Self::ManifestPassed { .. }
            | Self::DeadObject { .. }
            | Self::MovedOn { .. }
            | Self::Strays { .. }
            | Self::UnknownKeys { .. }
            // Manifests go as newer ones are published.
            | Self::ManifestDamaged { newest: false, needed: false, .. }
            | Self::ManifestMissing { needed: false, .. }
            | Self::ManifestReplaced { needed: false, .. } => Remedy::Nothing,
            Self::ObjectMissing { listed: true, .. }
            | Self::ObjectLength { listed: true, .. }
            | Self::ObjectIndex { listed: true, mirrored: false, .. }
            | Self::ManifestDamaged { .. }
            | Self::ManifestMissing { .. }
            | Self::ManifestReplaced { .. }
            | Self::ManifestDescends { .. } => Remedy::Recover,
            Self::NoManifest => Remedy::Scan,
            Self::BehindSeen { .. } => Remedy::AcceptRollback,
            Self::SnapshotHit { .. } => Remedy::Snapshots,
            Self::ObjectMissing { pages: 0, blocks, .. }
            | Self::ObjectLength { pages: 0, blocks, instead: Some(_), .. }
                if blocks.is_empty() =>
            {
                Remedy::Snapshots
            }
            Self::ObjectIndex { mirrored: true, .. }
            | Self::ObjectMirror { .. }
            | Self::ObjectHeader { .. }
            | Self::PinStale { .. }
            | Self::UnfinishedLeft => Remedy::Mend,
            Self::ObjectMissing { .. }
            | Self::ObjectLength { .. }
            | Self::ObjectIndex { .. }
            | Self::Frame { .. }
            | Self::Page { map: MapKind::Blocks | MapKind::Objects, .. } => Remedy::Repair,
            Self::LostBlocks { .. } => Remedy::Overwrite,
            Self::SlotDamaged { .. } | Self::SlotForeign { .. } => Remedy::Keys,
            Self::ClaimDamaged { .. }
            | Self::ClaimMissing { .. }
            | Self::IndexDisagrees { .. }
            | Self::TableEntry { .. }
            | Self::ObjectUnknown { .. }
            | Self::LiveBytes { .. }
            | Self::Totals { .. }
            | Self::IndependenceDamaged { .. }
            | Self::CutIncomplete { .. } => Remedy::Accept,
            Self::HeaderMissing
            | Self::HeaderDamaged { .. }
            | Self::HeaderReplaced
            | Self::KeysUnusable { .. }
            | Self::SnapshotLost { .. }
            | Self::Page { map: MapKind::Snapshots, .. } => Remedy::Restore,
        }
    }
}
