//! Findings in words: lower case, the object first, then what is wrong, then what that means for the data.

use std::fmt;

use super::{Blocks, Finding, Severity};
use crate::{
    format::{index::MapKind, names},
    volume::{format_time, info::Party, tally::count},
};

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// What the loss of pages and blocks of one object means.
fn hits(listed: bool, pages: u64, blocks: &Blocks) -> String {
    let mut text = Vec::new();
    if listed {
        text.push(
            "the newest manifest lists it, so the volume cannot be opened (s3bd recover goes back to a manifest without \
             it), and what was written to it cannot be told"
                .to_owned(),
        );
    }
    if pages > 0 {
        text.push(format!("{} of the maps cannot be read", count(pages, "page")));
    }
    if !blocks.is_empty() {
        text.push(format!("{blocks} cannot be read"));
    }
    if text.is_empty() {
        "nothing of the newest epoch was in what is missing".to_owned()
    } else {
        text.join("; ")
    }
}

/// What the loss of a manifest behind the newest means.
fn behind(needed: bool) -> &'static str {
    match needed {
        true => "the volume cannot be opened until the newest manifest is published anew (s3bd recover)",
        false => "no data of the newest epoch is hit; the line behind it cannot be verified or gone back to",
    }
}

/// What is wrong with a claim while its tenure is over, and until then.
const OVER: &str = "nothing needs it any more, since no manifest of its generation or an earlier one is kept";
const UNTIL_OVER: &str =
    "it is a note once there is a later generation, and the manifests up to this one have been let go";

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderMissing => {
                write!(f, "volume: the header is missing: nothing of the volume can be opened without it")
            }
            Self::HeaderDamaged { error } => write!(f, "volume: {error}: nothing can be opened without it"),
            Self::HeaderReplaced => {
                write!(f, "volume: this is not the header that the manifests were written under")
            }
            Self::KeysUnusable { detail } => {
                write!(f, "keys: no key slot is usable: {detail}: without a key no data can be read")
            }
            Self::SlotDamaged { name, error } => {
                write!(f, "{name}: {error}: its password or key file does not open the volume any more")
            }
            Self::SlotForeign { name, volume } => {
                write!(f, "{name}: this key slot is of another volume, {volume}, and opens nothing here")
            }
            Self::ClaimDamaged { name, over: true, error } => write!(f, "{name}: {error}: {OVER}"),
            Self::ClaimDamaged { name, over: false, error } => {
                write!(
                    f,
                    "{name}: {error}: no data is hit; who wrote under this generation cannot be told; {UNTIL_OVER}"
                )
            }
            Self::ClaimMissing { generation, over: true } => {
                write!(f, "claims: the claim of generation {generation} is missing: {OVER}")
            }
            Self::ClaimMissing { generation, over: false } => write!(
                f,
                "claims: the claim of generation {generation} is missing: no data is hit, but a stalled writer of \
                 that time would not be kept out; {UNTIL_OVER}"
            ),
            Self::InUse { generation, holder, since_ms } => {
                write!(f, "generation {generation} is not closed: ")?;
                match holder {
                    Some(Party { host, pid, .. }) => write!(f, "{host} (process {pid})")?,
                    None => write!(f, "another host")?,
                }
                write!(f, " has the volume open")?;
                since_ms.map_or(Ok(()), |since| write!(f, " since {}", format_time(since)))?;
                write!(f, ", or ended without closing it")
            }
            Self::NoManifest => {
                write!(f, "manifests: none is whole: the volume cannot be opened (s3bd recover --scan)")
            }
            Self::BehindSeen { found, found_generation, seen, seen_generation } => write!(
                f,
                "manifests: the newest epoch is {found} of generation {found_generation}, but this host has seen epoch {seen} of \
                 generation {seen_generation}: the manifests above were removed, or an older copy of the bucket was put back; \
                 the volume is not opened here as it is, and what was published later cannot be told"
            ),
            Self::ManifestDamaged { name, newest, needed, error } => {
                write!(f, "{name}: {error}: ")?;
                match newest {
                    true => write!(
                        f,
                        "the volume cannot be opened (s3bd recover goes back to one that is whole); what follows is about \
                         the newest manifest that is whole"
                    ),
                    false => write!(f, "{}", behind(*needed)),
                }
            }
            Self::ManifestPassed { name, error } => {
                write!(
                    f,
                    "{name}: {error}: the volume goes on without it, and it is removed as newer ones are published"
                )
            }
            Self::ManifestMissing { name, child, needed } => {
                write!(f, "{name}: missing, and {child} was built on it: {}", behind(*needed))
            }
            Self::ManifestReplaced { name, child, needed } => {
                write!(f, "{name}: not the manifest that {child} was built on: {}", behind(*needed))
            }
            Self::ManifestDescends { name, parent } => {
                write!(f, "{name}: built on {parent}, which is of a later generation")
            }
            Self::ManifestAside { name, host, time_ms } => write!(
                f,
                "{name}: written by {host} at {} after it had lost the volume: not a part of it",
                format_time(*time_ms)
            ),
            Self::SnapshotLost { snapshot, manifest } => {
                write!(
                    f,
                    "snapshot {snapshot:?}: {manifest} is missing or damaged: the snapshot cannot be opened"
                )
            }
            Self::SnapshotHit { snapshot, objects, first } => write!(
                f,
                "snapshot {snapshot:?}: needs {} of what is damaged or missing, first of all {first}: what it \
                 holds in what is gone cannot be read, and without the index of an object it may not open",
                count(*objects, "object")
            ),
            Self::PinStale { snapshot, clone, volume } => write!(
                f,
                "snapshot {snapshot:?}: kept for the clone {clone} ({volume}), which does not depend on it: it was removed, \
                 flattened, or never finished; the snapshot can be deleted"
            ),
            Self::IndependenceDamaged { error } => write!(
                f,
                "{}: {error}: what this volume was a clone of cannot know that it is needed no more, and keeps its snapshot; no \
                 data is hit; where that snapshot has to go, make a full copy of this volume (s3bd clone --full) and remove it",
                names::INDEPENDENT
            ),
            Self::UnfinishedLeft => write!(
                f,
                "{}: left from when the volume was made: nothing depends on it",
                names::HEADER_UNFINISHED
            ),
            Self::CutIncomplete { epoch, found, parts } => write!(
                f,
                "epoch {epoch}: the newest manifest lists {found} of its {parts} objects: a part of what was written \
                 then is missing"
            ),
            Self::ObjectMissing { name, listed, pages, blocks } => {
                write!(f, "{name}: missing: {}", hits(*listed, *pages, blocks))
            }
            Self::ObjectLength { name, found, expected, instead, listed, pages, blocks } => {
                match instead {
                    Some(instead) => write!(f, "{name}: {instead} stands there instead, {found} bytes long")?,
                    None => write!(f, "{name}: {found} bytes long")?,
                }
                write!(f, ", {expected} were written: {}", hits(*listed, *pages, blocks))
            }
            Self::DeadObject { name, found: None } => {
                write!(f, "{name}: missing; nothing needs it any more but manifests older than the newest")
            }
            Self::DeadObject { name, found: Some(found) } => {
                write!(
                    f,
                    "{name}: {found} bytes long, which is not what was written; nothing needs it any more"
                )
            }
            Self::ObjectHeader { name, error } => {
                match error {
                    Some(error) => write!(f, "{name}: {error}")?,
                    None => write!(f, "{name}: the object header is another object's")?,
                }
                write!(f, ": no data is hit, but a volume rebuilt from its objects would lack this one")
            }
            Self::ObjectIndex { name, mirrored: true, error, .. } => {
                write!(f, "{name}: {error}: its mirror is whole, and is read instead")
            }
            Self::ObjectMirror { name, error, .. } => {
                write!(f, "{name}: the mirror of the index is damaged ({error}): the index itself is whole")
            }
            Self::ObjectIndex { name, listed: true, error, .. } => write!(
                f,
                "{name}: {error}, and so is its mirror: the newest manifest lists it, so the volume cannot be opened \
                 (s3bd recover goes back to a manifest without it)"
            ),
            Self::ObjectIndex { name, error, .. } => write!(
                f,
                "{name}: {error}, and so is its mirror: no data is hit, but a volume rebuilt from its objects would \
                 lack this one"
            ),
            Self::IndexDisagrees { name, problem, index, expected } => {
                write!(f, "{name}: its index gives {} as {index}, elsewhere it is {expected}", problem.text())
            }
            Self::TableEntry { name, problem } => {
                write!(f, "{name}: its entry in the object table makes no sense: {}", problem.text())
            }
            Self::ObjectUnknown { name, pages, blocks } => write!(
                f,
                "{name}: the maps name it ({}, {blocks}), and the object table does not know it: a \
                 collection might take it for garbage",
                count(*pages, "page")
            ),
            Self::LiveBytes { name, excess_bytes } if *excess_bytes < 0 => write!(
                f,
                "{name}: the maps name {} bytes less of it than the object table says: their space is never freed",
                excess_bytes.unsigned_abs()
            ),
            Self::LiveBytes { name, excess_bytes } => write!(
                f,
                "{name}: the maps name {excess_bytes} bytes more of it than the object table says: a collection might \
                 delete it while it is in use"
            ),
            Self::Page { at, map, level, first_key, last_key, error } => {
                write!(f, "{at}: {error}: it is a page of ")?;
                match map {
                    MapKind::Blocks => write!(
                        f,
                        "the block map, level {level}: blocks {first_key} to {last_key} \
                        cannot be read, but for what was written since the last checkpoint"
                    ),
                    MapKind::Objects => write!(
                        f,
                        "the object table, level {level}: no data is hit, but nothing is \
                        known of objects {first_key} to {last_key}, and no checkpoint can be written over it"
                    ),
                    MapKind::Snapshots => write!(
                        f,
                        "the snapshot table, level {level}: snapshots {first_key} to \
                        {last_key} cannot be found"
                    ),
                }
            }
            Self::Frame { at, blocks, error } => write!(f, "{at}: {error}: {blocks} cannot be read"),
            Self::LostBlocks { blocks } => {
                write!(f, "{blocks}: content lost earlier; reading is an error until they are overwritten")
            }
            Self::Totals { total, manifest, counted } => {
                write!(f, "the newest manifest counts {manifest} {}, and there are {counted}", total.text())
            }
            Self::Strays { objects, bytes, first, written_ms: (oldest, newest) } => write!(
                f,
                "{} ({bytes} bytes) in no list: uploads under way, or left by a writer that ended \
                 early; written from {} to {}, the first is {first}",
                count(*objects, "object"),
                format_time(*oldest),
                format_time(*newest)
            ),
            Self::MovedOn { objects } => write!(
                f,
                "the volume was written to during the check: {} collected meanwhile, and not looked at",
                count(*objects, "object")
            ),
            Self::UnknownKeys { count, first } => {
                write!(
                    f,
                    "{} below the volume that s3bd does not use, the first is {first}",
                    self::count(*count, "name")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsck::Remedy;

    #[test]
    fn one_is_no_plural() {
        let (first, written_ms) = ("objects/x".to_owned(), (0, 0));
        for (objects, shown) in [(1, "1 object ("), (2, "2 objects (")] {
            let strays = Finding::Strays { objects, bytes: 5, first: first.clone(), written_ms };
            assert!(strays.to_string().starts_with(shown), "{strays}");
        }
        let hit = Finding::SnapshotHit { snapshot: "s".to_owned(), objects: 1, first };
        assert!(hit.to_string().contains("1 object of"), "{hit}");
        let missing = Finding::ObjectMissing {
            name: "objects/x".to_owned(),
            listed: false,
            pages: 1,
            blocks: Blocks::default(),
        };
        assert!(missing.to_string().ends_with("1 page of the maps cannot be read"), "{missing}");
    }

    #[test]
    fn where_nothing_is_lost_no_remedy_speaks_of_unreadable_blocks() {
        let error = String::new();
        let index = |mirrored| Finding::ObjectIndex {
            name: String::new(),
            listed: false,
            mirrored,
            error: error.clone(),
        };
        let mirror = Finding::ObjectMirror { name: String::new(), listed: false, error: error.clone() };
        for finding in [index(true), mirror] {
            assert!(finding.remedy().is_repair());
            assert!(!finding.remedy().to_string().contains("unreadable"), "{}", finding.remedy());
        }
        assert_eq!(index(false).remedy(), Remedy::Repair);
    }
}
