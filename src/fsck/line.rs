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
        independent::Independent,
        index::MapKind,
        manifest::{CloneRef, Digest, Manifest, ManifestLink, Snapshot},
        names,
        page::Page,
        slot::Slot,
    },
    seal::small::{self, OpenError},
    store::Listed,
    volume::{
        bucket::Bucket,
        error::{Kind, VolumeError},
        info, pins,
        snapshots::SnapshotTable,
        walk::Walk,
    },
};

/// Names looked at in each gap between the prefixes that s3bd uses.
const UNKNOWN_KEYS_MAX: usize = 100;
/// Times that the line is read because all its manifests were removed under it: a writer leaves sixteen, so it would
/// have to publish as many between two requests.
const LINE_READS_MAX: u32 = 8;

/// What a manifest says that the chain needs.
#[derive(Clone, Debug)]
pub(super) struct Knot {
    digest: Digest,
    parent: Option<ManifestLink>,
    nonce: u64,
    host: String,
    time_ms: u64,
    /// Epoch of its roots.
    roots: Epoch,
    /// Written under the header that is there.
    header: bool,
}

/// The newest whole manifest, and what the others in the bucket are.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) manifest: Manifest,
    knots: BTreeMap<ManifestName, Result<Knot, OpenError>>,
}

impl Head {
    /// What died up to here is needed by no manifest that is kept.
    pub(super) fn horizon(&self) -> Epoch {
        let kept = self.knots.iter().filter(|(name, _)| name.1 >= self.manifest.oldest_kept);
        let roots = kept.filter_map(|(_, knot)| Some(knot.as_ref().ok()?.roots)).min();
        roots.unwrap_or(self.manifest.roots.epoch)
    }

    /// The tenure of the oldest manifest that is kept: nothing goes back to an earlier one.
    fn oldest_generation(&self) -> Generation {
        let kept = self.knots.keys().filter(|name| name.1 >= self.manifest.oldest_kept);
        kept.map(|name| name.0).min().unwrap_or(self.manifest.generation)
    }
}

impl Check<'_> {
    pub(super) async fn check_slots(&mut self) -> Result<(), VolumeError> {
        for Listed { key, .. } in self.bucket().store.list(names::KEYS, None, None).await? {
            let loaded = load(self.bucket(), &key, Slot::decode).await?;
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
            if head.is_some() || attempt == LINE_READS_MAX || !self.has_moved_on().await? {
                return Ok(head);
            }
            // All that was listed was removed by a writer that has published since.
            self.report = before.clone();
            attempt += 1;
        }
    }

    /// Manifests of lower epochs may have been removed by now.
    async fn oldest_kept_now(&self, head: &Manifest) -> Result<Epoch, VolumeError> {
        if !self.has_moved_on().await? {
            return Ok(head.oldest_kept);
        }
        for (generation, epoch) in self.bucket().list_manifests().await?.into_iter().rev() {
            match self.bucket().load_manifest(generation, epoch).await {
                Ok(Some(newer)) => return Ok(newer.manifest.oldest_kept.max(head.oldest_kept)),
                Err(error) if error.kind() != Kind::Corrupt => return Err(error),
                // Removed as well, or damaged.
                Ok(None) | Err(_) => {}
            }
        }
        Ok(head.oldest_kept)
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
        let (newest, knots) = self.load_manifests(&listed).await?;
        let Some(manifest) = newest else {
            for (name, knot) in knots {
                if let Err(error) = knot {
                    let name = names::manifest(name.0, name.1);
                    self.add(Finding::ManifestDamaged { name, newest: true, needed: true, error });
                }
            }
            self.add(Finding::NoManifest);
            return Ok(None);
        };
        let head = Head { manifest, knots };
        if head.knots.values().flatten().all(|knot| !knot.header) {
            self.add(Finding::HeaderReplaced);
            return Ok(None);
        }
        let (line, findings) = judge(&head, self.oldest_kept_now(&head.manifest).await?);
        findings.into_iter().for_each(|finding| self.add(finding));
        self.check_claims(&head, &line).await?;
        Ok(Some(head))
    }

    /// The newest that is whole, and what is known of each.
    async fn load_manifests(
        &mut self,
        listed: &[ManifestName],
    ) -> Result<(Option<Manifest>, BTreeMap<ManifestName, Result<Knot, OpenError>>), VolumeError> {
        let direct = self.direct.clone();
        let bucket = &direct.bucket;
        // The newest first: on a volume that is open elsewhere, the oldest are removed any moment.
        let loads = listed.iter().rev().map(|name| async move {
            let key = names::manifest(name.0, name.1);
            let loaded = load_small(bucket, Content::Manifest, &key, |plain| {
                let manifest = Manifest::decode(plain)?;
                let is_itself =
                    (manifest.generation, manifest.epoch) == *name && manifest.volume == bucket.header.volume;
                if is_itself { Ok(manifest) } else { Err(malformed("manifest", "its name or size")) }
            });
            let loaded = loaded.await?;
            Ok::<_, VolumeError>((*name, loaded))
        });
        let mut loads = futures::stream::iter(loads).buffered(self.loads_max()).boxed();
        let mut knots = BTreeMap::new();
        let mut newest = None;
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
                        roots: manifest.roots.epoch,
                        header: manifest.header == bucket.header_digest,
                    };
                    knots.insert(name, Ok(knot));
                    newest.get_or_insert(manifest);
                }
                Err(error) => drop(knots.insert(name, Err(error))),
            }
        }
        newest.iter().flat_map(|newest| &newest.owners).for_each(|owner| bucket.keys.add_owner(owner));
        Ok((newest, knots))
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
            Ok::<_, VolumeError>((name, *generation, loaded))
        });
        // Tenures that neither a manifest that is kept nor a writer of theirs can do anything with any more.
        let (oldest, newest) = (head.oldest_generation(), listed.last().map(|claim| claim.0));
        let is_over = |generation| generation < oldest && Some(generation) < newest;
        let mut loads = futures::stream::iter(loads).buffered(self.loads_max()).boxed();
        while let Some((name, generation, loaded)) = loads.try_next().await? {
            self.progress.advance(1);
            self.report.counts.claims += 1;
            if let Some(Err(error)) = loaded {
                self.add(Finding::ClaimDamaged { name, over: is_over(generation), error });
            }
        }
        for generation in missing_claims(&listed, line) {
            self.add(Finding::ClaimMissing { generation, over: is_over(generation) });
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
        let mut snapshots = SnapshotTable::default();
        while let Some((at, page)) = walk.next().await {
            self.own_pages.push(at.frame);
            if let Some(page) = self.take_page(at, page)?
                && let Page::Snapshots(entries) = &*page
            {
                snapshots.extend(entries);
            }
        }
        head.manifest.snapshots.iter().for_each(|change| snapshots.apply(change));
        for snapshot in snapshots.iter() {
            let pinned = (snapshot.generation, snapshot.epoch);
            if !head.knots.get(&pinned).is_some_and(Result::is_ok) {
                let manifest = names::manifest(pinned.0, pinned.1);
                self.add(Finding::SnapshotLost { snapshot: snapshot.name.clone(), manifest });
            }
            for clone in &snapshot.clones {
                if pins::is_stale(&direct.bucket, clone).await? {
                    let CloneRef { volume, name } = clone.clone();
                    self.add(Finding::PinStale { snapshot: snapshot.name.clone(), clone: name, volume });
                }
            }
        }
        Ok(snapshots.iter().cloned().collect())
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
        if let Some(at) = unknown.iter().position(|key| key == names::HEADER_UNFINISHED) {
            unknown.swap_remove(at);
            self.add(Finding::UnfinishedLeft);
        }
        if let Some(at) = unknown.iter().position(|key| key == names::INDEPENDENT) {
            unknown.swap_remove(at);
            let note = load(self.bucket(), names::INDEPENDENT, Independent::decode).await?;
            if let Some((Err(error), _)) = note {
                self.add(Finding::IndependenceDamaged { error });
            }
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

/// The tenures on the line of `head`, and what is wrong with its chain of manifests, of which those below
/// `oldest_kept` may be gone.
fn judge(head: &Head, oldest_kept: Epoch) -> (BTreeSet<(Generation, u64)>, Vec<Finding>) {
    let mut tenures = BTreeSet::new();
    let mut line = BTreeSet::new();
    let top = (head.manifest.generation, head.manifest.epoch);
    let mut faults = Vec::new();
    let mut at = top;
    let verified_to = loop {
        let Some(Ok(knot)) = head.knots.get(&at) else { break at.1 };
        line.insert(at);
        tenures.insert((at.0, knot.nonce));
        let Some(link) = knot.parent else { break Epoch(0) };
        let parent = (link.generation, link.epoch);
        let (name, child, needed) = (text(parent), text(at), at == top);
        let fault = match head.knots.get(&parent) {
            _ if parent.0 > at.0 => Finding::ManifestDescends { name: child, parent: name },
            Some(Ok(older)) if older.digest == link.digest => {
                at = parent;
                continue;
            }
            Some(Ok(_)) => Finding::ManifestReplaced { name, child, needed },
            None if parent.1 >= oldest_kept => Finding::ManifestMissing { name, child, needed },
            // Said already, or rightly gone.
            Some(Err(_)) | None => break parent.1,
        };
        faults.push(fault);
        break parent.1;
    };
    let mut findings = damaged(head, top, line.first().copied());
    findings.append(&mut faults);
    // Below where the chain ends nothing is known of a manifest's place.
    let whole = head.knots.iter().filter_map(|(name, knot)| Some((name, knot.as_ref().ok()?)));
    let aside = whole.filter(|(name, _)| {
        !line.contains(*name) && name.1 > verified_to && name.1 >= oldest_kept && **name < top
    });
    findings.extend(aside.map(|(name, knot)| Finding::ManifestAside {
        name: text(*name),
        host: knot.host.clone(),
        time_ms: knot.time_ms,
    }));
    (tenures, findings)
}

/// The manifests that do not open; an open needs the newest and its parent, and none that lies between those of the line,
/// which is known from `oldest` on: `recover` went back behind it, or its writer had lost the volume.
fn damaged(head: &Head, top: ManifestName, oldest: Option<ManifestName>) -> Vec<Finding> {
    let parent = head.manifest.parent.filter(|parent| parent.epoch >= head.manifest.oldest_kept);
    let parent = parent.map(|parent| (parent.generation, parent.epoch));
    let damaged = head.knots.iter().filter_map(|(name, knot)| Some((*name, knot.as_ref().err()?)));
    let tell = |(name, error): (ManifestName, &OpenError)| {
        let newest = name > top;
        if !newest && oldest.is_some_and(|oldest| name > oldest) {
            return Finding::ManifestPassed { name: text(name), error: error.clone() };
        }
        let needed = newest || Some(name) == parent;
        Finding::ManifestDamaged { name: text(name), newest, needed, error: error.clone() }
    };
    damaged.map(tell).collect()
}

fn text(name: ManifestName) -> String {
    names::manifest(name.0, name.1)
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
