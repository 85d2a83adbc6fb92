//! Opening a volume: the claim, the newest whole cut, and what the log holds above it.
//!
//! # Crash consistency
//! Until the first manifest of the new tenure is put, nothing in the bucket has changed but a claim, and nothing in the log
//! at all. The log's identity notes the tenure before that manifest can exist, so a log whose tenure published the
//! newest manifest is always known as such.

use std::{sync::Arc, time::Duration};

use futures::stream::{StreamExt, TryStreamExt};
use tokio::{sync::watch, time::Instant};
use wal::Lsn;

use super::{
    Volume,
    base::{Base, oldest_there},
    bucket::{Bucket, Published},
    claims,
    collect::Shared,
    core::{Core, Progress},
    env::{Env, Local, random_bytes},
    error::VolumeError,
    follow::at_newest,
    frames::Frames,
    layer::Layer,
    log::Log,
    payload::PayloadMemory,
    publish::{Publisher, Start},
    record,
    replay::{Replay, Replayed, find_damage, goes_on_at, reaches_back},
    room,
    settings::Settings,
    snapshot_view::Viewed,
    snapshots::SnapshotTable,
    state::State,
    survey::{Survey, survey, take},
    takeover,
};
use crate::{
    cache::FrameCache,
    format::{
        ids::{LogId, LogPosition},
        local::Seen,
        manifest::{Inherited, Manifest, ManifestLink, Snapshot, SnapshotChange},
        names,
    },
    map::delta::Delta,
};

/// Indexes read at once when a volume is opened.
const INDEX_LOADS_MAX: usize = 16;
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

/// What opening a volume came upon.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// The newest manifest before.
    pub newest: Manifest,
    /// Whether its writer had closed the volume.
    pub was_clean: bool,
    /// Whether the newest manifest was published from the log of this host: then all that was acknowledged is here.
    pub has_log: bool,
    /// From the log of this host.
    pub replayed: Replayed,
    /// What the log held of a lost line, given up with the caller's word.
    pub given_up: Replayed,
    /// Taken of the newest manifest before, for the host whose log goes on from it.
    pub taken: Option<Snapshot>,
    /// Names of the snapshots that takeovers took for logs of this host that were given up.
    pub left: Vec<String>,
}

/// How to open a volume that cannot be opened as it is.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// What to open it on; none: on the newest manifest.
    pub base: Option<Base>,
    /// End a damaged log before its damage.
    pub cut_log: bool,
    /// Close no cut before [`Core::release_cuts`], or before the volume is closed.
    pub hold_cuts: bool,
}

/// Opens the volume for writing.
pub async fn open(
    env: Env,
    bucket: Bucket,
    settings: Settings,
    agreed: Agreed,
) -> Result<(Volume, OpenReport), VolumeError> {
    open_repaired(env, bucket, settings, agreed, &Repair::default()).await
}

/// Opens the volume for writing, with what its user agreed to give up.
pub async fn open_repaired(
    env: Env,
    bucket: Bucket,
    settings: Settings,
    agreed: Agreed,
    repair: &Repair,
) -> Result<(Volume, OpenReport), VolumeError> {
    let base = repair.base.as_ref();
    let local = open_local(&env, &bucket)?;
    let (surveyed, tenure, identity) = take(&env, &bucket, &local, agreed, base).await?;
    let Survey { newest, plan, was_clean, .. } = surveyed;
    let tag = random_bytes::<32>(&*env.random);
    let floor = match plan.belongs {
        true => Some(goes_on_at(&bucket, &local, identity.log, &newest.manifest)?),
        false => None,
    };
    let unusable = match floor {
        Some(_) if repair.cut_log => {
            find_damage(&bucket, &local, identity.log, &newest.manifest)?.and_then(|damage| damage.unusable())
        }
        _ => None,
    };
    let open_log = || {
        let (options, disk) = (wal_options(&settings, tag), Arc::clone(&local.wal));
        match repair.cut_log {
            true => wal::Log::open_cut(disk, options, floor, unusable),
            false => wal::Log::open(disk, options, floor),
        }
    };
    let (log, scan) = room::with_room(&local, open_log)
        .or_else(|error| explain(error.into(), &bucket, &local, identity.log, &newest.manifest))?;
    let payloads = Arc::new(PayloadMemory::new(settings.unpublished_memory_bytes_max));
    let mut replay =
        Replay::new(&bucket, identity.log, &payloads, &newest.manifest, floor.unwrap_or_else(|| log.next()));
    if let Some(floor) = floor {
        replay
            .run(log.records(floor))
            .or_else(|error| explain(error, &bucket, &local, identity.log, &newest.manifest))?;
    }
    let Replay { layer: active, found: mut replayed, end, size_bytes, .. } = replay;
    replayed.note_torn(&scan);
    // What an earlier tenure noted last may be trimmed without a trace: where there is nothing else, the log begins here.
    let (position, end) = match floor.filter(|floor| *floor < end) {
        Some(floor) => (floor, end),
        None => (log.next(), log.next()),
    };

    let mut delta = load_delta(&bucket, &newest.manifest).await?;
    let mut snapshots = SnapshotTable::load(&bucket, &newest.manifest).await?;
    // One that was made from objects is nothing that can be pinned.
    let is_published = base.is_none_or(|base| !base.rebuilt);
    let taken = takeover::snapshot(tenure, &newest, &identity, &snapshots).filter(|_| is_published);
    let left = if plan.belongs { Vec::new() } else { takeover::taken_from(&snapshots, &identity) };
    if base.is_some() && !newest.manifest.owners.is_empty() {
        // It goes back to where it may need its origin again.
        bucket.store.delete(&[names::INDEPENDENT.to_owned()]).await?;
    }
    let oldest_there = match base.is_some() || agreed.rollback {
        true => oldest_there(&bucket.list_manifests().await?, newest.name()),
        false => newest.manifest.oldest_kept,
    };
    let first = claims::put_first_manifest(&bucket, &env, tenure, &newest, |first| {
        first.oldest_kept = first.oldest_kept.max(oldest_there);
        if base.is_some_and(|base| base.rebuilt) {
            // The line begins here. Under the base's own name there may be a manifest that nobody can read.
            first.parent = None;
            first.oldest_kept = first.epoch;
        }
        first.log = LogPosition { log: identity.log, lsn: position.0 };
        first.unpublished_bytes = active.data_bytes();
        if let Some(snapshot) = &taken {
            first.next_snapshot = snapshot.id + 1;
            first.snapshots.push(SnapshotChange::Taken(snapshot.clone()));
        }
    })
    .await?;
    claims::check(&bucket, tenure).await?;

    delta.epoch = first.manifest.epoch;
    if let Some(snapshot) = &taken {
        let change = SnapshotChange::Taken(snapshot.clone());
        snapshots.apply(&change);
        delta.snapshots.push(change);
    }
    let state = State {
        active_since: replayed.times_ms.filter(|_| !active.is_empty()).map(|(first, _)| since(&env, first)),
        active,
        end,
        frozen: Default::default(),
        cut_epoch: first.manifest.epoch,
        delta,
        checkpointing: None,
        roots: first.manifest.roots.clone(),
        snapshots,
        size_bytes,
        closing: false,
        fault: None,
    };
    let cache = open_cache(&env, &local, &settings);
    let frames = Arc::new(Frames::new(bucket.clone(), env.clone(), settings.memory_bytes_max, Some(cache)));
    let log =
        Log::start(log, (identity.log, &tag), Arc::clone(&bucket.keys), Arc::clone(&payloads), &settings);
    let core = Core::new(env, bucket, settings, frames, Some(Arc::new(log)), payloads, state);
    // Before there is a publisher, which would look at once.
    if repair.hold_cuts {
        core.hold_cuts();
    }
    let age_ms = core.env.clock.now_ms().saturating_sub(newest.manifest.time_ms);
    *core.collecting() = Shared::new(
        first.manifest.epoch,
        first.manifest.roots.epoch,
        first.manifest.oldest_kept,
        std::time::Duration::from_millis(age_ms),
    );
    let core = Arc::new(core);
    if plan.belongs && (agreed.rollback || position == end) {
        note_base(&core, &newest.link, position).await?;
    }
    core.published.advance(position);
    let name = first.link;
    core.progress.send_replace(progress(&first, position));
    let seen = Seen { generation: name.generation, epoch: name.epoch, digest: name.digest };
    super::publish::remember(&core, &*local.state, &seen);

    let (close, closing) = watch::channel(false);
    // Of a line that was given up there may be later epochs: they are not this one's to count or to remove.
    let kept = core.bucket.list_manifests().await?.into_iter().filter(|kept| kept.1 <= name.epoch).collect();
    let start = Start { tenure, newest: first, kept, closing, state_disk: Arc::clone(&local.state) };
    let publisher = tokio::spawn(Publisher::new(Arc::clone(&core), start).run());
    let (has_log, given_up) = (plan.belongs, plan.given_up);
    let report = OpenReport { newest: newest.manifest, was_clean, has_log, replayed, given_up, taken, left };
    Ok((Volume::new(core, Some(publisher), close, Some(local)), report))
}

/// Notes from where the log goes on. Where that is an older epoch than it has published, what it said of later ones counts
/// no more, should another host take the volume before they are published again. And where it is here, nothing is missing
/// between that epoch and this record.
async fn note_base(core: &Core, base: &ManifestLink, lsn: Lsn) -> Result<(), VolumeError> {
    let log = core.log()?;
    let (kind, head) = record::published_head(base.generation, base.epoch, lsn);
    let appended = log.append(kind, &head, bytes::Bytes::new());
    let appended = appended.map_err(|error| VolumeError::Invalid(format!("the local log: {error}")))?;
    log.sync(appended.end).await
}

/// What [`open_repaired`] would come upon, found without changing anything: neither in the bucket nor on this host.
pub async fn inspect(
    env: &Env,
    bucket: &Bucket,
    agreed: Agreed,
    repair: &Repair,
) -> Result<OpenReport, VolumeError> {
    let volume = bucket.header.volume;
    let has_folders = env.local.exists(volume).map_err(VolumeError::local(env.local.describe(volume)))?;
    let local = if has_folders { Some(open_local(env, bucket)?) } else { None };
    let Survey { newest, plan, was_clean, .. } =
        survey(env, bucket, local.as_ref(), agreed, repair.base.as_ref()).await?;
    load_delta(bucket, &newest.manifest).await?;
    SnapshotTable::load(bucket, &newest.manifest).await?;
    let mut replayed = Replayed::default();
    if let Some(local) = local.filter(|_| plan.belongs) {
        let floor = goes_on_at(bucket, &local, plan.identity.log, &newest.manifest)?;
        let scan = wal::scan_above(&*local.wal, floor)?;
        let explain = |error| explain(error, bucket, &local, plan.identity.log, &newest.manifest);
        if let Some(damage) = scan.lost_above(floor)
            && !(repair.cut_log && reaches_back(&scan, floor))
        {
            explain(wal::WalError::Corrupt(damage).into())?;
        }
        let payloads = PayloadMemory::new(0);
        let mut replay = Replay::new(bucket, plan.identity.log, &payloads, &newest.manifest, floor);
        match replay.run(scan.records(floor)) {
            // There the log is to be cut.
            Err(VolumeError::LogRecord { .. }) if repair.cut_log => {}
            run => run.or_else(explain)?,
        }
        replayed = replay.found;
        replayed.note_torn(&scan);
    }
    let (has_log, given_up) = (plan.belongs, plan.given_up);
    Ok(OpenReport {
        newest: newest.manifest,
        was_clean,
        has_log,
        replayed,
        given_up,
        taken: None,
        left: Vec::new(),
    })
}

/// Opens the newest epoch for reading. Claims nothing, and uses the cache on disk where no writer on this host has it.
pub async fn open_read_only(env: Env, bucket: Bucket, settings: Settings) -> Result<Volume, VolumeError> {
    let local = env.local.open(bucket.header.volume).map_err(VolumeError::local("state directory"))?;
    let load = async |newest: Published| Ok((load_delta(&bucket, &newest.manifest).await?, newest));
    let (delta, newest) = at_newest(&bucket, load).await?;
    let cache = local.as_ref().map(|local| open_cache(&env, local, &settings));
    let frames = Arc::new(Frames::new(bucket.clone(), env.clone(), settings.memory_bytes_max, cache));
    let mut core = core_at(env, bucket, settings, &newest, delta, frames);
    core.following = Some(tokio::sync::Mutex::default());
    Ok(Volume::new(Arc::new(core), None, watch::channel(false).0, local))
}

/// Opens an epoch for reading.
pub(super) async fn read_only_at(
    env: Env,
    bucket: Bucket,
    settings: Settings,
    epoch: &Published,
    local: Option<Local>,
) -> Result<Volume, VolumeError> {
    let cache = local.as_ref().map(|local| open_cache(&env, local, &settings));
    let frames = Arc::new(Frames::new(bucket.clone(), env.clone(), settings.memory_bytes_max, cache));
    let delta = load_delta(&bucket, &epoch.manifest).await?;
    let core = core_at(env, bucket, settings, epoch, delta, frames);
    Ok(Volume::new(Arc::new(core), None, watch::channel(false).0, local))
}

/// A snapshot of an open volume, for reading: through the same memory and the same cache.
///
/// # Errors
/// `Fenced` and `NoSnapshot` where what it needs is gone because another host has the volume by now, or the snapshot was
/// deleted; damage to its manifest or an index, and what the store refuses.
pub async fn open_snapshot(source: &Arc<Core>, snapshot: &Snapshot) -> Result<Volume, VolumeError> {
    let (env, bucket, settings) = (source.env.clone(), source.bucket.clone(), source.settings.clone());
    let viewed = Viewed { snapshot: snapshot.clone(), source: Some(Arc::clone(source)) };
    let (pinned, delta) = viewed.load(&bucket).await?;
    let mut core = core_at(env, bucket, settings, &pinned, delta, Arc::clone(&source.frames));
    core.viewed = Some(viewed);
    Ok(Volume::new(Arc::new(core), None, watch::channel(false).0, None))
}

/// Opens a snapshot for reading. Claims nothing.
///
/// # Errors
/// `NoSnapshot`, damage, and what the store refuses.
pub async fn open_snapshot_alone(
    env: Env,
    bucket: Bucket,
    settings: Settings,
    name: &str,
) -> Result<Volume, VolumeError> {
    let local = env.local.open(bucket.header.volume).map_err(VolumeError::local("state directory"))?;
    let snapshot = find_snapshot(&bucket, name).await?;
    let viewed = Viewed { snapshot, source: None };
    let (pinned, delta) = viewed.load(&bucket).await?;
    let cache = local.as_ref().map(|local| open_cache(&env, local, &settings));
    let frames = Arc::new(Frames::new(bucket.clone(), env.clone(), settings.memory_bytes_max, cache));
    let mut core = core_at(env, bucket, settings, &pinned, delta, frames);
    core.viewed = Some(viewed);
    Ok(Volume::new(Arc::new(core), None, watch::channel(false).0, local))
}

async fn find_snapshot(bucket: &Bucket, name: &str) -> Result<Snapshot, VolumeError> {
    at_newest(bucket, async |newest: Published| {
        SnapshotTable::load(bucket, &newest.manifest).await?.get(name).cloned()
    })
    .await
}

/// The manifest that the snapshot of this name pins.
///
/// # Errors
/// `NoSnapshot`, damage, and what the store refuses.
pub async fn manifest_of_snapshot(bucket: &Bucket, name: &str) -> Result<Published, VolumeError> {
    pinned_manifest(bucket, &find_snapshot(bucket, name).await?).await
}

/// The manifest that a snapshot pins.
///
/// # Errors
/// `NoManifest` where it is gone, damage, and what the store refuses.
pub async fn pinned_manifest(bucket: &Bucket, snapshot: &Snapshot) -> Result<Published, VolumeError> {
    let pinned = bucket.load_manifest(snapshot.generation, snapshot.epoch).await?;
    pinned.ok_or_else(|| VolumeError::NoManifest {
        detail: format!(
            "{}, which snapshot {:?} pins, is missing",
            names::manifest(snapshot.generation, snapshot.epoch),
            snapshot.name
        ),
    })
}

fn core_at(
    env: Env,
    bucket: Bucket,
    settings: Settings,
    epoch: &Published,
    delta: Delta,
    frames: Arc<Frames>,
) -> Core {
    let Published { manifest, .. } = epoch;
    let state = State {
        active: Layer::default(),
        active_since: None,
        end: Lsn(0),
        frozen: Default::default(),
        cut_epoch: manifest.epoch,
        delta,
        checkpointing: None,
        roots: manifest.roots.clone(),
        snapshots: SnapshotTable::default(),
        size_bytes: manifest.size_bytes,
        closing: false,
        fault: None,
    };
    let payloads = Arc::new(PayloadMemory::new(0));
    let core = Core::new(env, bucket, settings, frames, None, payloads, state);
    core.progress.send_replace(progress(epoch, Lsn(0)));
    core
}

/// Says of a damaged log what it still holds.
fn explain<T>(
    error: VolumeError,
    bucket: &Bucket,
    local: &Local,
    log: LogId,
    newest: &Manifest,
) -> Result<T, VolumeError> {
    let is_damage = match &error {
        VolumeError::Log(error) => matches!(**error, wal::WalError::Corrupt(_)),
        VolumeError::LogRecord { .. } => true,
        _ => false,
    };
    if is_damage && let Some(damage) = find_damage(bucket, local, log, newest)? {
        return Err(VolumeError::LogDamaged(Box::new(damage)));
    }
    Err(error)
}

pub(super) fn open_local(env: &Env, bucket: &Bucket) -> Result<Local, VolumeError> {
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

/// The moment at which the clock stood at `time_ms`; now, where it has been put back since.
fn since(env: &Env, time_ms: u64) -> Instant {
    let age = Duration::from_millis(env.clock.now_ms().saturating_sub(time_ms));
    let now = Instant::now();
    now.checked_sub(age).unwrap_or(now)
}

fn progress(newest: &Published, lsn: Lsn) -> Progress {
    let (generation, epoch) = newest.name();
    let Manifest { nonce, time_ms, .. } = newest.manifest;
    Progress { generation, nonce, epoch, lsn, time_ms }
}

/// Length of a segment of the log, bytes.
pub(super) fn wal_segment_bytes(settings: &Settings) -> u64 {
    // Sixteen segments: trimming follows publishing closely, and preparing the next costs little.
    (settings.wal_bytes_max / 16).min(64 << 20).max(settings.wal_segment_bytes_min) & !4095
}

fn wal_options(settings: &Settings, tag: [u8; 32]) -> wal::Options {
    let segment_bytes = wal_segment_bytes(settings);
    wal::Options { segment_bytes, log_bytes_max: settings.wal_bytes_max, tag }
}

/// Loads what the manifest lists on top of its roots.
pub async fn load_delta(bucket: &Bucket, manifest: &Manifest) -> Result<Delta, VolumeError> {
    let mut delta = Delta::new(bucket.block_bytes(), manifest.roots.epoch);
    inherit(bucket, &manifest.inherited, &mut delta).await?;
    let loads = manifest.objects.iter().copied().map(|listed| bucket.load_index(listed));
    let objects: Vec<_> = futures::stream::iter(loads).buffered(INDEX_LOADS_MAX).try_collect().await?;
    objects.iter().for_each(|new| delta.apply(new));
    delta.snapshots = manifest.snapshots.clone();
    delta.epoch = manifest.epoch;
    Ok(delta)
}

/// Lays what a clone's manifest lists of other volumes: first of all.
pub(super) async fn inherit(
    bucket: &Bucket,
    inherited: &[Inherited],
    delta: &mut Delta,
) -> Result<(), VolumeError> {
    let loads =
        inherited.iter().copied().map(|inherited| bucket.load_index_of(inherited.owner, inherited.object));
    let objects: Vec<_> = futures::stream::iter(loads).buffered(INDEX_LOADS_MAX).try_collect().await?;
    objects.iter().for_each(|new| delta.inherit(new));
    Ok(())
}
