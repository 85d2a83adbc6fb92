//! Opening a volume: the claim, the newest whole cut, and what the log holds above it.
//!
//! # Crash consistency
//! Until the first manifest of the new tenure is put, nothing in the bucket has changed but a claim, and nothing in the log
//! at all. The log's identity notes the tenure before that manifest can exist, so a log whose tenure published the
//! newest manifest is always known as such.

use std::sync::Arc;

use futures::stream::{StreamExt, TryStreamExt};
use tokio::sync::watch;
use wal::Lsn;

use super::{
    Volume,
    bucket::{Bucket, Published},
    claims::{self, Tenure},
    core::{Core, Progress},
    env::{Env, Local, random_bytes},
    error::VolumeError,
    frames::Frames,
    layer::{Content, Layer, Piece},
    local,
    log::{Log, Opener},
    payload::PayloadMemory,
    publish::{Publisher, Start},
    record::{self, LogRecord},
    settings::Settings,
    state::State,
};
use crate::{
    cache::FrameCache,
    format::{
        envelope::Content as Sealed,
        ids::{Epoch, Generation, LogId, LogPosition},
        local::{LOG, LogIdentity, SEEN, Seen, TENURES_MAX},
        manifest::Manifest,
    },
    map::delta::Delta,
};

/// Indexes read at once when a volume is opened.
const INDEX_LOADS_MAX: usize = 16;
/// Manifests read, from the newest back, to find where this host's log left the line.
const CHAIN_MAX: usize = 64;

/// What the caller of [`open`] agrees to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreed {
    /// Take the volume from a host that has not closed it.
    pub takeover: bool,
    /// Go on with an older copy of the bucket than this host has seen.
    pub rollback: bool,
    /// Give up what the local log holds of a line that lost.
    pub discard: bool,
}

/// What was found in the log above the newest manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Writes and zeroes.
    pub records: u64,
    /// Bytes that they write or zero.
    pub bytes: u64,
    /// When the first and the last were written, milliseconds since 1970.
    pub times_ms: Option<(u64, u64)>,
    /// What was cut off at the log's end, which nobody was promised: bytes, and why.
    pub torn: Option<(u64, String)>,
}

/// What opening a volume came upon.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// The newest manifest before.
    pub newest: Manifest,
    /// Whether its writer had closed the volume.
    pub was_clean: bool,
    /// From the log of this host.
    pub replayed: Replayed,
    /// Records of a lost line that were given up, with the caller's word.
    pub discarded: u64,
}

/// How the log of this host relates to the newest manifest.
#[derive(Debug)]
struct LogPlan {
    identity: LogIdentity,
    /// Whether the newest manifest was published from this log.
    belongs: bool,
    /// Records of a lost line.
    lost_records: u64,
}

/// Opens the volume for writing.
pub async fn open(
    env: Env,
    bucket: Bucket,
    settings: Settings,
    agreed: Agreed,
) -> Result<(Volume, OpenReport), VolumeError> {
    let local = open_local(&env, &bucket)?;
    let (surveyed, tenure) = survey_and_claim(&env, &bucket, &local, agreed).await?;
    let Survey { newest, plan, was_clean, .. } = surveyed;
    let identity = note_tenure(&env, &bucket, &local, &plan, &newest, tenure)?;
    // Step (3): whoever wrote before the claim is seen now.
    let (newest, plan, identity) = match bucket.newest_manifest().await? {
        same if same.link == newest.link => (newest, plan, identity),
        newer => {
            let plan = plan_log(&env, &bucket, &local, &newer, agreed).await?;
            begin_log(&env, &bucket, &local, &plan)?;
            let identity = note_tenure(&env, &bucket, &local, &plan, &newer, tenure)?;
            (newer, plan, identity)
        }
    };
    let tag = random_bytes::<32>(&*env.random);
    let floor = if plan.belongs { Lsn(newest.manifest.log.lsn) } else { Lsn(0) };
    let options = wal_options(&settings, tag);
    let (log, scan) = wal::Log::open(Arc::clone(&local.wal), options, floor)?;
    if plan.belongs {
        check_reaches_back(&scan, floor)?;
    }
    let payloads = Arc::new(PayloadMemory::new(settings.unpublished_memory_bytes_max));
    let position = if plan.belongs { floor } else { log.next() };
    let mut replay = Replay::new(&bucket, identity.log, &payloads, &newest.manifest, position);
    if plan.belongs {
        replay.run(log.records(floor))?;
    }
    let Replay { layer: active, found: mut replayed, end, .. } = replay;
    replayed.torn = scan.torn.map(|torn| (torn.bytes_discarded, torn.why.to_string()));

    let first = claims::put_first_manifest(&bucket, &env, tenure, &newest, |first| {
        first.log = LogPosition { log: identity.log, lsn: position.0 };
        first.unpublished_bytes = active.data_bytes();
    })
    .await?;
    claims::check(&bucket, tenure).await?;

    let delta = load_delta(&bucket, &first.manifest).await?;
    let state = State {
        active_since: (!active.is_empty()).then(tokio::time::Instant::now),
        active,
        end,
        frozen: Default::default(),
        delta,
        checkpointing: None,
        roots: first.manifest.roots.clone(),
        size_bytes: first.manifest.size_bytes,
        closing: false,
        fault: None,
    };
    let cache = open_cache(&env, &local, &settings);
    let frames = Frames::new(bucket.clone(), env.clone(), settings.memory_bytes_max, Some(cache));
    let log =
        Log::start(log, (identity.log, &tag), Arc::clone(&bucket.keys), Arc::clone(&payloads), &settings);
    let core = Core::new(env, bucket, settings, frames, Some(Arc::new(log)), payloads, state);
    let core = Arc::new(core);
    core.published.advance(position);
    let name = first.link;
    core.progress.send_replace(Progress { generation: name.generation, epoch: name.epoch, lsn: position });
    let seen = Seen { generation: name.generation, epoch: name.epoch, digest: name.digest };
    super::publish::remember(&core, &*local.state, &seen);

    let (close, closing) = watch::channel(false);
    let kept = core.bucket.list_manifests().await?.into();
    let start = Start { tenure, newest: first, kept, closing, state_disk: Arc::clone(&local.state) };
    let publisher = tokio::spawn(Publisher::new(Arc::clone(&core), start).run());
    let report = OpenReport { newest: newest.manifest, was_clean, replayed, discarded: plan.lost_records };
    Ok((Volume::new(core, Some(publisher), close, Some(local)), report))
}

/// What [`open`] would come upon, found without changing anything.
pub async fn inspect(env: &Env, bucket: &Bucket, agreed: Agreed) -> Result<OpenReport, VolumeError> {
    let local = open_local(env, bucket)?;
    let Survey { newest, plan, was_clean, .. } = survey(env, bucket, &local, agreed).await?;
    let mut replayed = Replayed::default();
    if plan.belongs {
        let floor = Lsn(newest.manifest.log.lsn);
        let scan = wal::scan_above(&*local.wal, floor)?;
        check_reaches_back(&scan, floor)?;
        if let Some(damage) = scan.damage.clone().filter(|damage| damage.lost) {
            return Err(wal::WalError::Corrupt(damage).into());
        }
        let payloads = PayloadMemory::new(0);
        let mut replay = Replay::new(bucket, plan.identity.log, &payloads, &newest.manifest, floor);
        replay.run(scan.records(floor))?;
        replayed = replay.found;
        replayed.torn = scan.torn.map(|torn| (torn.bytes_discarded, torn.why.to_string()));
    }
    Ok(OpenReport { newest: newest.manifest, was_clean, replayed, discarded: plan.lost_records })
}

/// Opens the newest epoch for reading. Claims nothing, and uses the cache on disk where no writer on this host has it.
pub async fn open_read_only(env: Env, bucket: Bucket, settings: Settings) -> Result<Volume, VolumeError> {
    let local = env.local.open(bucket.header.volume).map_err(VolumeError::local("state directory"))?;
    let newest = bucket.newest_manifest().await?;
    let delta = load_delta(&bucket, &newest.manifest).await?;
    let state = State {
        active: Layer::default(),
        active_since: None,
        end: Lsn(0),
        frozen: Default::default(),
        delta,
        checkpointing: None,
        roots: newest.manifest.roots.clone(),
        size_bytes: newest.manifest.size_bytes,
        closing: false,
        fault: None,
    };
    let cache = local.as_ref().map(|local| open_cache(&env, local, &settings));
    let frames = Frames::new(bucket.clone(), env.clone(), settings.memory_bytes_max, cache);
    let payloads = Arc::new(PayloadMemory::new(0));
    let core = Core::new(env, bucket, settings, frames, None, payloads, state);
    Ok(Volume::new(Arc::new(core), None, watch::channel(false).0, local))
}

fn open_local(env: &Env, bucket: &Bucket) -> Result<Local, VolumeError> {
    let volume = bucket.header.volume;
    let folder = env.local.describe(volume);
    let local = env.local.open(volume).map_err(VolumeError::local(&*folder))?;
    local.ok_or(VolumeError::Locked { folder })
}

fn open_cache(env: &Env, local: &Local, settings: &Settings) -> FrameCache {
    let disk = Arc::clone(&local.cache);
    match env.threads {
        super::env::Threads::Pool => FrameCache::open(disk, settings.cache_bytes_max),
        super::env::Threads::Inline => FrameCache::open_inline(disk, settings.cache_bytes_max),
    }
}

fn newest_name(newest: &Published) -> (Generation, Epoch) {
    (newest.link.generation, newest.link.epoch)
}

fn wal_options(settings: &Settings, tag: [u8; 32]) -> wal::Options {
    // Sixteen segments: trimming follows publishing closely, and preparing the next costs little.
    let segment_bytes =
        (settings.wal_bytes_max / 16).min(64 << 20).max(settings.wal_segment_bytes_min) & !4095;
    wal::Options { segment_bytes, log_bytes_max: settings.wal_bytes_max, tag }
}

/// What was found before claiming.
struct Survey {
    newest: Published,
    plan: LogPlan,
    was_clean: bool,
    /// The highest claim.
    claimed: Option<Generation>,
}

/// Looks, and claims if nobody else did since: a host that opened the volume meanwhile is found in use, not fenced.
async fn survey_and_claim(
    env: &Env,
    bucket: &Bucket,
    local: &Local,
    agreed: Agreed,
) -> Result<(Survey, Tenure), VolumeError> {
    loop {
        let surveyed = survey(env, bucket, local, agreed).await?;
        begin_log(env, bucket, local, &surveyed.plan)?;
        let from = newest_name(&surveyed.newest);
        let log = surveyed.plan.identity.log;
        if let Some(tenure) = claims::claim(bucket, env, log, from, surveyed.claimed).await? {
            return Ok((surveyed, tenure));
        }
    }
}

/// Looks before claiming: may this host have the volume, and what becomes of its log?
async fn survey(env: &Env, bucket: &Bucket, local: &Local, agreed: Agreed) -> Result<Survey, VolumeError> {
    let newest = bucket.newest_manifest().await?;
    let seen: Option<Seen> = local::load(&*local.state, &bucket.keys, Sealed::Seen, SEEN)?;
    if let Some(seen) = seen
        && !agreed.rollback
    {
        check_seen(&newest, &seen)?;
    }
    let plan = plan_log(env, bucket, local, &newest, agreed).await?;
    let claims = bucket.list_claims(None).await?;
    let was_clean = check_in_use(bucket, &newest, claims.last().copied(), &plan.identity, agreed).await?;
    Ok(Survey { newest, plan, was_clean, claimed: claims.last().map(|claim| claim.0) })
}

fn check_seen(newest: &Published, seen: &Seen) -> Result<(), VolumeError> {
    let found = newest_name(newest);
    let same = found == (seen.generation, seen.epoch);
    if found > (seen.generation, seen.epoch) || (same && newest.link.digest == seen.digest) {
        return Ok(());
    }
    Err(VolumeError::RolledBack {
        found: found.1,
        found_generation: found.0,
        seen: seen.epoch,
        seen_generation: seen.generation,
    })
}

/// Whether the last tenure was closed; an error where it is another host's and not closed.
async fn check_in_use(
    bucket: &Bucket,
    newest: &Published,
    claimed: Option<(Generation, u64)>,
    identity: &LogIdentity,
    agreed: Agreed,
) -> Result<bool, VolumeError> {
    let manifest = &newest.manifest;
    let Some((generation, nonce)) = claimed else { return Ok(true) };
    if manifest.closed && generation <= manifest.generation {
        return Ok(true);
    }
    if agreed.takeover || identity.tenures.contains(&(generation, nonce)) {
        return Ok(false);
    }
    let (host, pid, since) = match bucket.load_claim(generation, nonce).await {
        // The claim of an opening on this host that ended before it noted its tenure.
        Ok(claim) if claim.log == identity.log => return Ok(false),
        Ok(claim) => (claim.writer.host, claim.writer.pid, super::format_time(claim.time_ms)),
        Err(error) if error.kind() == super::error::Kind::Corrupt => {
            tracing::warn!(%error, "the newest claim cannot be read");
            ("another host".to_owned(), 0, "an unknown time".to_owned())
        }
        Err(error) => return Err(error),
    };
    Err(VolumeError::InUse { host, pid, since })
}

/// Finds out whether the newest manifest was published from this host's log; if not, whether the log holds anything that
/// the line of that manifest does not.
async fn plan_log(
    env: &Env,
    bucket: &Bucket,
    local: &Local,
    newest: &Published,
    agreed: Agreed,
) -> Result<LogPlan, VolumeError> {
    let identity: Option<LogIdentity> = local::load(&*local.state, &bucket.keys, Sealed::LogIdentity, LOG)?;
    let fresh = |tenures| LogIdentity { log: LogId(random_bytes(&*env.random)), tenures };
    // Without an identity there is no log yet. But where one was lost, records are not given up without a word.
    let identity = identity.unwrap_or_else(|| fresh(Vec::new()));
    // Of an older copy of the bucket, what comes next may be gone from the log: then the log continues another line.
    let reaches_back = |floor| Ok::<_, VolumeError>(wal::scan_above(&*local.wal, floor)?.start <= floor);
    if is_of(&newest.manifest, &identity) && (!agreed.rollback || reaches_back(Lsn(newest.manifest.log.lsn))?)
    {
        return Ok(LogPlan { identity, belongs: true, lost_records: 0 });
    }
    let left_at = left_line_at(bucket, newest, &identity).await?;
    let lost = match count_above(bucket, local, identity.log, left_at, newest.manifest.size_bytes) {
        Err(error) if agreed.discard => {
            tracing::warn!(%error, "the log cannot be read, and is given up");
            Replayed::default()
        }
        lost => lost?,
    };
    if lost.records > 0 && !agreed.discard {
        let generation = identity.tenures.last().map_or(Generation(0), |tenure| tenure.0);
        let folder = env.local.describe(bucket.header.volume);
        return Err(VolumeError::Diverged { records: lost.records, bytes: lost.bytes, generation, folder });
    }
    // Nothing was ever written under a log without tenures. Another one's are kept: claims of this host stay its own.
    let identity = if identity.tenures.is_empty() { identity } else { fresh(identity.tenures) };
    Ok(LogPlan { identity, belongs: false, lost_records: lost.records })
}

fn is_of(manifest: &Manifest, identity: &LogIdentity) -> bool {
    manifest.log.log == identity.log && identity.tenures.contains(&(manifest.generation, manifest.nonce))
}

/// The LSN of the newest manifest in the winning line that came from this log.
async fn left_line_at(
    bucket: &Bucket,
    newest: &Published,
    identity: &LogIdentity,
) -> Result<Option<Lsn>, VolumeError> {
    if identity.tenures.is_empty() {
        return Ok(None);
    }
    if is_of(&newest.manifest, identity) {
        return Ok(Some(Lsn(newest.manifest.log.lsn)));
    }
    let mut parent = newest.manifest.parent;
    for _ in 0..CHAIN_MAX {
        let Some(link) = parent else { return Ok(None) };
        let Some(older) = bucket.load_manifest(link.generation, link.epoch).await? else { return Ok(None) };
        if is_of(&older.manifest, identity) {
            return Ok(Some(Lsn(older.manifest.log.lsn)));
        }
        parent = older.manifest.parent;
    }
    Ok(None)
}

/// A log that was trimmed above the newest manifest would be replayed with a hole: the bucket is older than the log, and
/// nobody noticed before.
fn check_reaches_back(scan: &wal::Scan, floor: Lsn) -> Result<(), VolumeError> {
    if scan.start <= floor {
        return Ok(());
    }
    let damage = wal::Corruption {
        lsn: floor,
        resumes: Some(scan.start),
        durable: scan.durable,
        segment: String::from("wal"),
        offset: 0,
        what: wal::Damage::Missing,
        lost: true,
    };
    Err(wal::WalError::Corrupt(damage).into())
}

/// What the log holds above `from`; where that is not known, above what its own records call published.
fn count_above(
    bucket: &Bucket,
    local: &Local,
    log: LogId,
    from: Option<Lsn>,
    size_bytes: u64,
) -> Result<Replayed, VolumeError> {
    let scan = wal::scan(&*local.wal)?;
    let opener = Opener::new(Arc::clone(&bucket.keys), log);
    let mut published = from.unwrap_or(Lsn(0));
    let mut above: Vec<(Lsn, u64)> = Vec::new();
    for found in scan.records(published) {
        let found = found.map_err(VolumeError::local("write-ahead log"))?;
        let lsn = found.lsn;
        let length = match record::decode(lsn, found.kind, opener.open(&found)?, size_bytes)? {
            LogRecord::Write { data, .. } => data.len() as u64,
            LogRecord::Zero { length, .. } => length,
            // Where the line itself says it, that counts: the log may have published into a line that is no more.
            LogRecord::Published { lsn, .. } => {
                published = if from.is_some() { published } else { published.max(lsn) };
                continue;
            }
            LogRecord::Closed => continue,
        };
        above.push((lsn, length));
    }
    above.retain(|(lsn, _)| *lsn >= published);
    let bytes = above.iter().map(|(_, length)| length).sum();
    Ok(Replayed { records: above.len() as u64, bytes, ..Replayed::default() })
}

/// Clears a log that belongs to no line any more, and gives the folder to the new one. Before the claim, so that the claim
/// of an opening that dies is known as this host's own.
fn begin_log(env: &Env, bucket: &Bucket, local: &Local, plan: &LogPlan) -> Result<(), VolumeError> {
    if plan.belongs {
        return Ok(());
    }
    let clear = || {
        for name in local.wal.list()? {
            local.wal.remove(&name)?;
        }
        local.wal.sync()
    };
    // Before the new identity: what an interrupted clearing leaves is then still known to be the old log's.
    clear().map_err(VolumeError::local("write-ahead log"))?;
    store_identity(env, bucket, local, &plan.identity)
}

/// Notes the tenure in the log's identity.
fn note_tenure(
    env: &Env,
    bucket: &Bucket,
    local: &Local,
    plan: &LogPlan,
    newest: &Published,
    tenure: Tenure,
) -> Result<LogIdentity, VolumeError> {
    let mut identity = plan.identity.clone();
    if !identity.tenures.contains(&(tenure.generation, tenure.nonce)) {
        identity.tenures.push((tenure.generation, tenure.nonce));
    }
    // Never the newest manifest's own, however many openings came to nothing since.
    let surplus = identity.tenures.len().saturating_sub(TENURES_MAX);
    let old = identity.tenures.iter().take(surplus).take_while(|old| old.0 < newest.link.generation).count();
    identity.tenures.drain(..old);
    store_identity(env, bucket, local, &identity)?;
    Ok(identity)
}

fn store_identity(
    env: &Env,
    bucket: &Bucket,
    local: &Local,
    identity: &LogIdentity,
) -> Result<(), VolumeError> {
    local::store(&*local.state, &bucket.keys, &*env.random, Sealed::LogIdentity, LOG, identity)
}

/// Loads what the manifest lists on top of its roots.
pub async fn load_delta(bucket: &Bucket, manifest: &Manifest) -> Result<Delta, VolumeError> {
    let mut delta = Delta::new(bucket.block_bytes(), manifest.roots.epoch);
    let loads = manifest.objects.iter().copied().map(|listed| bucket.load_index(listed));
    let objects: Vec<_> = futures::stream::iter(loads).buffered(INDEX_LOADS_MAX).try_collect().await?;
    objects.iter().for_each(|new| delta.apply(new));
    delta.snapshots = manifest.snapshots.clone();
    delta.epoch = manifest.epoch;
    Ok(delta)
}

/// Lays the log's records onto a layer.
struct Replay<'a> {
    opener: Opener,
    payloads: &'a PayloadMemory,
    size_bytes: u64,
    layer: Layer,
    found: Replayed,
    /// End of the last record in the layer: what the log notes after it is never published itself, so nobody may wait
    /// for that.
    end: Lsn,
}

impl<'a> Replay<'a> {
    fn new(bucket: &Bucket, log: LogId, payloads: &'a PayloadMemory, newest: &Manifest, start: Lsn) -> Self {
        let opener = Opener::new(Arc::clone(&bucket.keys), log);
        let (layer, found) = (Layer::default(), Replayed::default());
        Self { opener, payloads, size_bytes: newest.size_bytes, layer, found, end: start }
    }

    fn run(&mut self, records: wal::Records) -> Result<(), VolumeError> {
        for found in records {
            let found = found.map_err(VolumeError::local("write-ahead log"))?;
            let plain = self.opener.open(&found)?;
            match record::decode(found.lsn, found.kind, plain, self.size_bytes)? {
                LogRecord::Write { offset, time_ms, data } => {
                    self.end = found.end;
                    let end = offset + data.len() as u64;
                    let payload = self.payloads.payload(found.lsn, found.end, Some(data));
                    self.payloads.trim(found.end);
                    self.lay(Piece { start: offset, end, content: Content::Data(payload, 0) }, time_ms);
                }
                LogRecord::Zero { offset, time_ms, length } => {
                    self.end = found.end;
                    self.lay(Piece { start: offset, end: offset + length, content: Content::Zero }, time_ms);
                }
                LogRecord::Published { .. } | LogRecord::Closed => {}
            }
        }
        Ok(())
    }

    fn lay(&mut self, piece: Piece, time_ms: u64) {
        self.found.records += 1;
        self.found.bytes += piece.end - piece.start;
        let first = self.found.times_ms.map_or(time_ms, |times| times.0);
        self.found.times_ms = Some((first, time_ms));
        self.layer.insert(piece);
    }
}
