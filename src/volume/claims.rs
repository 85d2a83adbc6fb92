//! Who may write: claims, and the check after every publish.
//!
//! # Overview
//! A claimant (1) puts a claim above all that it lists, (2) lists again: with another of the same generation it takes a
//! higher one and begins anew, with a higher one it lost, (3) reads the newest manifest, and begins anew where that is
//! another than it claimed on, (4) puts its own first one on top, (5) lists once more and serves only if its claim is still
//! the highest. After every publish, and before it trims the log, answers a remote flush or deletes anything, a writer asks
//! whether there is a claim above its own, and whether its own is still there: it is not where an older copy of the bucket
//! was put back under it.
//!
//! # Invariants
//! - Everyone writes, then reads. Either (3) sees an old writer's manifest, or that manifest came after (1), and the
//!   old writer's check sees the claim and does not count the manifest as published.
//! - Two claimants of one generation cannot both miss the other at (2): a generation that serves is unique, and with
//!   it every name it writes.
//! - Claims are never deleted while the volume lives.
//!
//! Needs a store whose PUT is seen by the next GET and LIST; no conditional writes.

use super::{
    bucket::{Bucket, Published},
    env::{Env, random_bytes},
    error::VolumeError,
};
use crate::{
    format::{
        claim::{Claim, Writer},
        ids::{Epoch, Generation, LogId},
        manifest::Manifest,
    },
    store::Put,
};

/// A claim that was put, before it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Its generation.
    pub generation: Generation,
    /// Its nonce.
    pub nonce: u64,
}

/// What a claimant saw when it looked.
#[derive(Clone, Copy, Debug)]
pub struct Looked {
    /// The manifest that it is going to build on.
    pub from: (Generation, Epoch),
    /// The highest claim.
    pub claimed: Option<Generation>,
    /// The highest tenure of which anything is in the bucket.
    pub floor: Generation,
}

/// This process, as it signs claims and manifests.
#[must_use]
pub fn writer(env: &Env) -> Writer {
    Writer { host: env.host.clone(), pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() }
}

/// Steps (1) and (2): puts a claim that is the highest and alone of its generation. `None`, and nothing was put, where
/// there is a claim above those of `looked`: it is time to look again.
///
/// # Errors
/// `Fenced` where a higher claim came in between.
pub async fn claim(
    bucket: &Bucket,
    env: &Env,
    log: LogId,
    looked: Looked,
) -> Result<Option<Tenure>, VolumeError> {
    let highest = bucket.list_claims(None).await?.last().map(|claim| claim.0);
    if highest > looked.claimed {
        return Ok(None);
    }
    let mut generation = highest.max(Some(looked.floor)).unwrap_or_default().next();
    loop {
        let nonce = u64::from_le_bytes(random_bytes(&*env.random));
        let claim = Claim {
            generation,
            nonce,
            from: Some(looked.from),
            writer: writer(env),
            log,
            time_ms: env.clock.now_ms(),
        };
        let put = bucket.put_claim(&claim, random_bytes(&*env.random)).await?;
        let before = Generation(generation.0 - 1);
        let claims = bucket.list_claims(Some(before)).await?;
        if let Some(higher) = claims.iter().find(|claim| claim.0 > generation) {
            return Err(VolumeError::Fenced { ours: generation, found: higher.0 });
        }
        let alone = claims.iter().all(|claim| claim.1 == nonce);
        if alone && put == Put::Created {
            return Ok(Some(Tenure { generation, nonce }));
        }
        tracing::info!(%generation, "another host claimed the same generation at the same moment: claiming a higher one");
        generation = generation.next();
    }
}

/// Step (4): the same state as `newest`, under the new tenure. `changed` sets what the tenure changes.
pub async fn put_first_manifest(
    bucket: &Bucket,
    env: &Env,
    tenure: Tenure,
    newest: &Published,
    changed: impl FnOnce(&mut Manifest),
) -> Result<Published, VolumeError> {
    let mut first = newest.manifest.clone();
    first.generation = tenure.generation;
    first.nonce = tenure.nonce;
    first.epoch = newest.manifest.epoch.next();
    first.parent = Some(newest.link);
    first.writer = writer(env);
    first.time_ms = env.clock.now_ms();
    first.closed = false;
    changed(&mut first);
    bucket.put_manifest(&first, random_bytes(&*env.random)).await
}

/// Step (5), and the check after every publish: is there a claim above this one, and is this one there?
///
/// # Errors
/// `Fenced`, `ClaimGone`: what was just put does not count as published.
pub async fn check(bucket: &Bucket, tenure: Tenure) -> Result<(), VolumeError> {
    let ours = tenure.generation;
    let claims = bucket.list_claims(Some(Generation(ours.0.saturating_sub(1)))).await?;
    if let Some(higher) = claims.last().filter(|claim| claim.0 > ours) {
        return Err(VolumeError::Fenced { ours, found: higher.0 });
    }
    // Without it, the next claimant takes this very generation.
    if claims.contains(&(ours, tenure.nonce)) { Ok(()) } else { Err(VolumeError::ClaimGone { ours }) }
}
