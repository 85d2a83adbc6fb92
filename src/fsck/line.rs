//! Key slots, manifests and their chain, claims, snapshots' pins, and names that are nobody's.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{StreamExt, TryStreamExt};

use super::{Check, Finding, ManifestName, Stage, load, malformed};
use crate::{
    format::{
        claim::Claim,
        codec,
        envelope::Content,
        ids::{Epoch, Generation},
        index::MapKind,
        manifest::{Digest, Manifest, ManifestLink, Snapshot},
        names,
        page::Page,
        slot::Slot,
    },
    seal::small::{self, OpenError},
    store::Listed,
    volume::{bucket::Bucket, error::VolumeError, info, walk::Walk},
};

/// Names looked at in each gap between the prefixes that s3bd uses.
const UNKNOWN_KEYS_MAX: usize = 100;
/// Times that the line is read because its manifests were removed under it: a writer leaves sixteen behind its newest,
/// so a second time is rare.
const LINE_READS_MAX: u32 = 8;

/// What a manifest says that the chain needs.
#[derive(Clone, Debug)]
pub(super) struct Knot {
    digest: Digest,
    parent: Option<ManifestLink>,
    nonce: u64,
    host: String,
    time_ms: u64,
    /// Written under the header that is there.
    header: bool,
}

/// The newest whole manifest, and what the others in the bucket are.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) manifest: Manifest,
    knots: BTreeMap<ManifestName, Option<Knot>>,
}

impl Check<'_> {
    pub(super) async fn check_slots(&mut self) -> Result<(), VolumeError> {
        for Listed { key, .. } in self.bucket().store.list(names::KEYS, None, None).await? {
            let loaded = load(self.bucket(), &key, |bytes| Slot::decode(bytes)).await?;
            let Some((loaded, _)) = loaded else { continue };
            self.report.counts.key_slots += 1;
            match loaded {
                Err(error) => self.add(Finding::SlotDamaged { name: key, error }),
                Ok(slot) if slot.volume != self.bucket().header.volume => {
                    self.add(Finding::SlotForeign { name: key, volume: slot.volume.to_string() });
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// The line of manifests, from the newest that is there at one moment.
    pub(super) async fn check_line(&mut self) -> Result<Option<Head>, VolumeError> {
        let before = self.report.clone();
        let mut attempt = 1;
        loop {
            let head = self.check_line_once().await?;
            let said = &self.report.findings[before.findings.len()..];
            let absent = said
                .iter()
                .any(|finding| matches!(finding, Finding::ManifestMissing { .. } | Finding::NoManifest));
            if !absent || attempt == LINE_READS_MAX || !self.has_moved_on().await? {
                return Ok(head);
            }
            // What was missing was removed by a writer that has published since.
            self.report = before.clone();
            attempt += 1;
        }
    }

    /// Whether there is another newest manifest than when the line was read.
    pub(super) async fn has_moved_on(&self) -> Result<bool, VolumeError> {
        Ok(self.bucket().list_manifests().await?.last() != self.newest_listed.as_ref())
    }

    /// All manifests, the chain of the newest, and the claims behind them; `None` where no manifest can be used.
    async fn check_line_once(&mut self) -> Result<Option<Head>, VolumeError> {
        let listed = self.bucket().list_manifests().await?;
        self.newest_listed = listed.last().copied();
        self.progress.begin(Stage::Line, Some(listed.len() as u64));
        let Some(head) = self.load_manifests(&listed).await? else {
            self.add(Finding::NoManifest);
            return Ok(None);
        };
        if head.knots.values().flatten().all(|knot| !knot.header) {
            self.add(Finding::HeaderReplaced);
            return Ok(None);
        }
        let (line, findings) = judge(&head);
        findings.into_iter().for_each(|finding| self.add(finding));
        self.check_claims(&head, &line).await?;
        Ok(Some(head))
    }

    async fn load_manifests(&mut self, listed: &[ManifestName]) -> Result<Option<Head>, VolumeError> {
        let direct = self.direct.clone();
        let bucket = &direct.bucket;
        let loads = listed.iter().map(|name| async move {
            let key = names::manifest(name.0, name.1);
            let loaded = load_small(bucket, Content::Manifest, &key, |plain| {
                let manifest = Manifest::decode(plain)?;
                let is_itself =
                    (manifest.generation, manifest.epoch) == *name && manifest.volume == bucket.header.volume;
                if is_itself { Ok(manifest) } else { Err(malformed("manifest", "its own name")) }
            });
            let loaded = loaded.await?;
            Ok::<_, VolumeError>((*name, loaded))
        });
        let mut loads = futures::stream::iter(loads).buffered(self.loads_max());
        let mut knots = BTreeMap::new();
        let mut newest = None;
        let last = listed.last();
        while let Some((name, loaded)) = loads.try_next().await? {
            self.progress.advance(1);
            let Some(loaded) = loaded else { continue };
            self.report.counts.manifests += 1;
            match loaded {
                Ok((manifest, digest)) => {
                    let knot = Knot {
                        digest,
                        parent: manifest.parent,
                        nonce: manifest.nonce,
                        host: manifest.writer.host.clone(),
                        time_ms: manifest.time_ms,
                        header: manifest.header == bucket.header_digest,
                    };
                    knots.insert(name, Some(knot));
                    newest = Some(manifest);
                }
                Err(error) => {
                    knots.insert(name, None);
                    let newest = last == Some(&name);
                    let name = names::manifest(name.0, name.1);
                    self.add(Finding::ManifestDamaged { name, newest, error });
                }
            }
        }
        let Some(manifest) = newest else { return Ok(None) };
        manifest.owners.iter().for_each(|owner| bucket.keys.add_owner(owner));
        Ok(Some(Head { manifest, knots }))
    }

    async fn check_claims(
        &mut self,
        head: &Head,
        line: &BTreeSet<(Generation, u64)>,
    ) -> Result<(), VolumeError> {
        // Listed after the manifests: whoever published had claimed before.
        let listed = self.bucket().list_claims(None).await?;
        self.progress.begin(Stage::Line, Some((head.knots.len() + listed.len()) as u64));
        let direct = self.direct.clone();
        let bucket = &direct.bucket;
        let loads = listed.iter().map(|(generation, nonce)| async move {
            let name = names::claim(*generation, *nonce);
            let loaded = load_small(bucket, Content::Claim, &name, |plain| {
                let claim: Claim = codec::decode("claim", plain)?;
                let is_itself = (claim.generation, claim.nonce) == (*generation, *nonce);
                if is_itself { Ok(claim) } else { Err(malformed("claim", "its own name")) }
            });
            let loaded = loaded.await?;
            Ok::<_, VolumeError>((name, loaded))
        });
        let mut loads = futures::stream::iter(loads).buffered(self.loads_max());
        while let Some((name, loaded)) = loads.try_next().await? {
            self.progress.advance(1);
            self.report.counts.claims += 1;
            if let Some(Err(error)) = loaded {
                self.add(Finding::ClaimDamaged { name, error });
            }
        }
        for generation in missing_claims(&listed, line) {
            self.add(Finding::ClaimMissing { generation });
        }
        self.check_in_use(&head.manifest, &listed).await
    }

    async fn check_in_use(
        &mut self,
        head: &Manifest,
        listed: &[(Generation, u64)],
    ) -> Result<(), VolumeError> {
        // What is wrong with the claim itself has been said.
        if let Some(open) = info::find_open(self.bucket(), head, listed).await? {
            let info::Open { generation, by, since_ms } = open;
            self.add(Finding::InUse { generation, holder: by, since_ms });
        }
        Ok(())
    }

    /// The snapshots, each with its manifest.
    pub(super) async fn check_snapshots(&mut self, head: &Head) -> Result<Vec<Snapshot>, VolumeError> {
        let direct = self.direct.clone();
        let root = head.manifest.roots.snapshots.as_ref();
        let mut walk = Walk::new(&direct, MapKind::Snapshots, root, self.loads_max(), |_, _| true);
        let mut snapshots = Vec::new();
        while let Some((at, page)) = walk.next().await {
            self.own_pages.push(at.frame);
            if let Some(page) = self.take_page(at, page)?
                && let Page::Snapshots(entries) = &*page
            {
                snapshots.extend_from_slice(entries);
            }
        }
        info::apply_snapshots(&mut snapshots, &head.manifest.snapshots);
        for snapshot in &snapshots {
            let pinned = (snapshot.generation, snapshot.epoch);
            if !head.knots.get(&pinned).is_some_and(Option::is_some) {
                let manifest = names::manifest(pinned.0, pinned.1);
                self.add(Finding::SnapshotLost { snapshot: snapshot.name.clone(), manifest });
            }
        }
        Ok(snapshots)
    }

    /// Names below the volume that s3bd does not use: in the gaps between its prefixes, and within those of small
    /// objects.
    pub(super) async fn check_unknown_keys(&mut self) -> Result<(), VolumeError> {
        let store = self.bucket().store.clone();
        let mut unknown: Vec<String> = Vec::new();
        for (prefix, is_known) in [
            (names::CLAIMS, (|key| names::parse_claim(key).is_some()) as fn(&str) -> bool),
            (names::KEYS, is_slot),
            (names::MANIFESTS, |key| names::parse_manifest(key).is_some()),
        ] {
            let listed = store.list(prefix, None, None).await?;
            unknown.extend(listed.into_iter().map(|line| line.key).filter(|key| !is_known(key)));
        }
        let prefixes = [names::CLAIMS, names::KEYS, names::MANIFESTS, names::OBJECTS];
        // No name of s3bd's has a tilde, which sorts after all that they have.
        let mut after: Option<String> = None;
        for next in prefixes.iter().map(Some).chain([None]) {
            let listed = store.list("", after.as_deref(), Some(UNKNOWN_KEYS_MAX)).await?;
            let in_gap = listed
                .into_iter()
                .map(|line| line.key)
                .take_while(|key| next.is_none_or(|next| !key.starts_with(next) && key.as_str() < *next))
                .filter(|key| key != names::HEADER && !prefixes.iter().any(|prefix| key.starts_with(prefix)));
            unknown.extend(in_gap);
            after = next.map(|next| format!("{next}~"));
        }
        if let Some(first) = unknown.iter().min() {
            self.add(Finding::UnknownKeys { count: unknown.len() as u64, first: first.clone() });
        }
        Ok(())
    }
}

fn is_slot(key: &str) -> bool {
    let number = key.strip_prefix(names::KEYS).and_then(|number| u32::from_str_radix(number, 16).ok());
    number.is_some_and(|number| names::slot(number) == key)
}

/// A small sealed object, opened and decoded, and the digest of its bytes; `None` where there is none.
async fn load_small<T>(
    bucket: &Bucket,
    content: Content,
    name: &str,
    decode: impl Fn(&[u8]) -> Result<T, OpenError>,
) -> Result<Option<Result<(T, Digest), OpenError>>, VolumeError> {
    let open = |bytes: &[u8]| decode(&small::open(&bucket.keys, content, name, bytes)?);
    let loaded = load(bucket, name, open).await?;
    Ok(loaded.map(|(loaded, digest)| loaded.map(|value| (value, digest))))
}

/// The tenures on the line of `head`, and what is wrong with its chain of manifests.
fn judge(head: &Head) -> (BTreeSet<(Generation, u64)>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut tenures = BTreeSet::new();
    let mut line = BTreeSet::new();
    let mut at = (head.manifest.generation, head.manifest.epoch);
    let verified_to = loop {
        let Some(Some(knot)) = head.knots.get(&at) else { break at.1 };
        line.insert(at);
        tenures.insert((at.0, knot.nonce));
        let Some(link) = knot.parent else { break Epoch(0) };
        let parent = (link.generation, link.epoch);
        let names = |name: ManifestName| names::manifest(name.0, name.1);
        if parent.0 > at.0 {
            findings.push(Finding::ManifestDescends { name: names(at), parent: names(parent) });
            break at.1;
        }
        match head.knots.get(&parent) {
            Some(Some(older)) if older.digest != link.digest => {
                findings.push(Finding::ManifestReplaced { name: names(parent), child: names(at) });
                break parent.1;
            }
            // Said already.
            Some(None) => break parent.1,
            Some(Some(_)) => {}
            None if parent.1 >= head.manifest.oldest_kept => {
                findings.push(Finding::ManifestMissing { name: names(parent), child: names(at) });
                break parent.1;
            }
            None => break parent.1,
        }
        at = parent;
    };
    // Below where the chain ends nothing is known of a manifest's place.
    let aside = head.knots.iter().filter_map(|(name, knot)| Some((name, knot.as_ref()?)));
    let aside = aside.filter(|(name, _)| {
        !line.contains(name) && name.1 > verified_to && name.1 >= head.manifest.oldest_kept
    });
    findings.extend(aside.map(|(name, knot)| Finding::ManifestAside {
        name: names::manifest(name.0, name.1),
        host: knot.host.clone(),
        time_ms: knot.time_ms,
    }));
    (tenures, findings)
}

/// Generations that were and have no claim: of tenures on the line, and in the gaps between claims, which each are
/// one higher than the highest before.
fn missing_claims(listed: &[(Generation, u64)], line: &BTreeSet<(Generation, u64)>) -> BTreeSet<Generation> {
    let there: BTreeSet<_> = listed.iter().copied().collect();
    // The manifest of `init` needs no claim.
    let tenures = line.iter().filter(|tenure| tenure.0 > Generation(0) && !there.contains(tenure));
    let mut missing: BTreeSet<Generation> = tenures.map(|tenure| tenure.0).collect();
    let mut expected = 1;
    for (generation, _) in listed {
        // A forged name may leave room for any number: the first of a gap stands for it.
        if generation.0 > expected {
            missing.insert(Generation(expected));
        }
        expected = expected.max(generation.0.saturating_add(1));
    }
    missing
}
