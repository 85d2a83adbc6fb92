//! Checking a volume in its bucket: reads only, needs no lock and no claim, and works while the volume is open elsewhere.
//!
//! # Overview
//! It goes from what is small to what is large: header, key slots, manifests and their chain, claims ([`mod@line`]); the
//! objects that the newest manifest lists ([`listed`]); the object table, entry by entry against a listing of the
//! bucket, in the same order ([`table`]), each object by its header and index ([`object`]); the block map, with every
//! extent held against what the table says ([`map`]); and every frame, where data is read ([`data`]). What is decided
//! from loaded things is in pure functions beside the loading.
//!
//! # Concurrency
//! `Options::concurrency` requests are under way at most. Memory is bounded by that, by the newest manifest's list (as
//! at open), and by eight bytes for each object that the volume ever had, sixteen for those of a clone's origin: a listing
//! and the maps are never held whole.
//!
//! The volume may move on under a check. The line of manifests is read anew where a part of it was removed meanwhile.
//! What its newest one names exists until it is collected, so an object that turns out missing counts only if the
//! manifest that is the newest by then still needs it. Objects that nothing names may be uploads under way.
//!
//! # Errors
//! Whatever is wrong with the volume is a [`Finding`]; an `Err` is a store that cannot be asked.
//!
//! # Not handled
//! Maps of pinned epochs below the newest (which snapshots need a damaged object is told by their epochs); headers and indexes of other volumes' objects that a clone reads (that they are
//! there is checked, and with data every frame); whether an index names the same blocks for a frame as the map does (the
//! seal proves that a frame is the one meant).

pub mod blocks;
pub mod detail;
pub mod finding;
pub mod progress;
pub mod remedy;
pub mod repair;
pub mod report;
pub mod seen;

mod collected;
mod data;
mod hit;
mod line;
mod listed;
mod listing;
mod lost;
mod map;
mod object;
mod others;
mod table;
mod words;

use std::sync::Arc;

pub use self::{
    blocks::Blocks,
    finding::{Finding, Severity},
    progress::{Progress, Stage},
    remedy::Remedy,
    report::{Counts, Report},
};
use self::{data::Reader, lost::Lost, others::Others};
use crate::{
    format::{
        FormatError,
        header::Header,
        ids::{Epoch, FrameRef, Generation},
        manifest::Digest,
        names,
    },
    seal::{slot::Secret, small::OpenError},
    store::{ErrorKind, Store},
    volume::{
        bucket::{Bucket, digest, fetch_small},
        error::VolumeError,
        walk::{Direct, FETCHES_MAX},
    },
};

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// Header, key slots, claims, the chain of manifests, the newest objects' indexes, and all pages of the maps.
    Quick,
    /// And that every object exists, with its length, header and index, and that the object table agrees with the maps.
    Default,
    /// And the frames of data.
    ReadData(Sample),
}

/// Which frames of data are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// So many of each hundred, chosen at random.
    pub percent: f64,
    /// Decides which; another one at each run reaches all of them in time.
    pub seed: u64,
}

impl Sample {
    /// Every frame.
    pub const ALL: Self = Self { percent: 100.0, seed: 0 };
}

/// How to check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// How far.
    pub level: Level,
    /// Requests under way at once.
    pub concurrency: usize,
}

impl Default for Options {
    fn default() -> Self {
        // Enough to hide 30 ms of latency behind transfers; few enough that no store throttles it.
        Self { level: Level::Default, concurrency: 32 }
    }
}

/// Unlocks the volume in `store` (its keys are below the volume's prefix) and checks it; a header or key slots that
/// are damaged are findings, too.
///
/// # Errors
/// `NoVolume`, a secret that is wrong or missing, and whatever the store refuses.
pub async fn check_store(
    store: Arc<dyn Store>,
    secret: &Secret,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, VolumeError> {
    let finding = match Bucket::unlock(Arc::clone(&store), secret).await {
        Ok(bucket) => return check(&bucket, options, progress).await,
        Err(VolumeError::Damaged { name, error }) if name == names::HEADER => {
            Finding::HeaderDamaged { error }
        }
        Err(VolumeError::NoSlot { detail }) => Finding::KeysUnusable { detail },
        Err(VolumeError::HeaderMissing) => Finding::HeaderMissing,
        Err(error) => return Err(error),
    };
    let mut report = Report::default();
    report.add(finding);
    Ok(report)
}

/// Checks an unlocked volume.
///
/// # Errors
/// Whatever the store refuses.
pub async fn check(
    bucket: &Bucket,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, VolumeError> {
    let mut check = Check::new(bucket, options, progress);
    check.run().await?;
    Ok(check.finish())
}

/// A check under way.
struct Check<'a> {
    direct: Direct,
    options: &'a Options,
    progress: &'a dyn Progress,
    report: Report,
    lost: Lost,
    others: Others,
    /// Pages of maps that were read before the object table was known.
    own_pages: Vec<FrameRef>,
    /// Dead objects that are missing, though a manifest that is kept may need them.
    dead_missing: Vec<String>,
    /// The newest manifest in the listing that the check goes by.
    newest_listed: Option<ManifestName>,
}

impl<'a> Check<'a> {
    fn new(bucket: &Bucket, options: &'a Options, progress: &'a dyn Progress) -> Self {
        let report = Report { block_bytes: bucket.block_bytes(), ..Report::default() };
        let direct = Direct::new(bucket.clone());
        Self {
            direct,
            options,
            progress,
            report,
            lost: Lost::default(),
            others: Others::default(),
            own_pages: Vec::new(),
            dead_missing: Vec::new(),
            newest_listed: None,
        }
    }

    fn bucket(&self) -> &Bucket {
        &self.direct.bucket
    }

    fn loads_max(&self) -> usize {
        self.options.concurrency.max(1)
    }

    fn add(&mut self, finding: Finding) {
        self.report.add(finding);
    }

    async fn run(&mut self) -> Result<(), VolumeError> {
        if !self.check_header().await? {
            return Ok(());
        }
        self.check_slots().await?;
        let Some(head) = self.check_line().await? else { return Ok(()) };
        self.report.epoch = Some(head.manifest.epoch);
        self.report.generation = Some(head.manifest.generation);
        self.check_unknown_keys().await?;
        let listed = self.check_listed(&head.manifest).await?;
        let snapshots = self.check_snapshots(&head).await?;
        let mut ledger = self.check_table(&head, &listed, &snapshots).await?;
        let sample = match self.options.level {
            Level::ReadData(sample) => Some(sample),
            Level::Quick | Level::Default => None,
        };
        let mut reader = Reader::new(sample);
        self.check_map(&head.manifest, &listed.delta, &mut ledger, &mut reader).await?;
        self.forget_collected(&mut reader).await?;
        self.settle(&head.manifest, ledger);
        reader.findings().into_iter().for_each(|finding| self.add(finding));
        self.name_snapshots(&head.manifest, &snapshots).await
    }

    /// The header as it is now; `false` where nothing else can be checked.
    async fn check_header(&mut self) -> Result<bool, VolumeError> {
        let found = match load(self.bucket(), names::HEADER, Header::decode).await? {
            Some((Ok(_), found)) if found == self.bucket().header_digest => return Ok(true),
            Some((Ok(_), _)) => Finding::HeaderReplaced,
            Some((Err(error), _)) => Finding::HeaderDamaged { error: error.into() },
            None => Finding::HeaderMissing,
        };
        self.add(found);
        Ok(false)
    }

    fn finish(mut self) -> Report {
        let size_blocks = self.lost.size_blocks;
        for finding in std::mem::take(&mut self.lost).findings(size_blocks) {
            self.add(finding);
        }
        self.report
    }
}

/// An object, decoded, and the digest of its bytes; `None` where there is none. Bytes that are not whole are fetched
/// again: the network damages bytes, too.
async fn load<T, E: From<FormatError>>(
    bucket: &Bucket,
    name: &str,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<Option<(Result<T, E>, Digest)>, VolumeError> {
    let mut attempt = 1;
    loop {
        let bytes = match fetch_small(&*bucket.store, name).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(too_long)) => return Ok(Some((Err(too_long.into()), digest(b"")))),
            Err(error) if error.kind == ErrorKind::NotFound && !error.key.is_empty() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match decode(&bytes) {
            Err(_) if attempt < FETCHES_MAX => attempt += 1,
            decoded => return Ok(Some((decoded, digest(&bytes)))),
        }
    }
}

/// What a name in the bucket should be and is not.
fn malformed(what: &'static str, detail: &'static str) -> OpenError {
    FormatError::Malformed { what, detail }.into()
}

/// A manifest's name, as keys order them.
type ManifestName = (Generation, Epoch);
