//! Looking before claiming: may this host have the volume, and what becomes of its log?

use wal::{Lsn, disk::Disk};

use super::{
    base::{Base, find_whole},
    bucket::{Bucket, Published},
    claims::{self, Looked, Tenure},
    env::{Env, Local, random_bytes},
    error::{Kind, VolumeError},
    local,
    open::Agreed,
    replay::{Replayed, count_above, find_damage, goes_on_at},
    seen, takeover,
};
use crate::format::{
    claim::Writer,
    envelope::Content,
    ids::{Epoch, Generation, LogId},
    local::{LOG, LOG_COPY, LogIdentity, LogTenure, TENURES_MAX},
    manifest::Manifest,
};

/// Manifests read, from the newest back, to find where this host's log left the line.
const CHAIN_MAX: usize = 64;

/// How the log of this host relates to the newest manifest.
#[derive(Debug)]
pub(super) struct LogPlan {
    pub(super) identity: LogIdentity,
    /// Whether the newest manifest was published from this log.
    pub(super) belongs: bool,
    /// What it holds of a lost line, and the caller gave up.
    pub(super) given_up: Replayed,
}

/// What was found before claiming.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) newest: Published,
    pub(super) plan: LogPlan,
    pub(super) was_clean: bool,
    /// The highest claim.
    claimed: Option<Generation>,
    /// The highest tenure of which anything is in the bucket.
    floor: Generation,
}

/// Claims, and looks for what was published before the claim was seen; then claims once more, so that the claim says so:
/// where no manifest is left, claims alone tell what a tenure began from.
///
/// # Errors
/// `Fenced` and `MovedOn` where a later writer has published by now; those of the survey.
pub(super) async fn take(
    env: &Env,
    bucket: &Bucket,
    local: &Local,
    agreed: Agreed,
    base: Option<&Base>,
) -> Result<(Survey, Tenure, LogIdentity), VolumeError> {
    let mut first: Option<(bool, Replayed)> = None;
    loop {
        let (mut surveyed, tenure) = survey_and_claim(env, bucket, local, agreed, base).await?;
        let identity = note_tenure(env, bucket, local, &surveyed.plan, &surveyed.newest, tenure)?;
        // After the first time the newest claim is this host's own, and a log that was given up is gone.
        let found = first.get_or_insert_with(|| (surveyed.was_clean, surveyed.plan.given_up.clone()));
        surveyed.was_clean = found.0;
        if surveyed.plan.given_up == Replayed::default() {
            surveyed.plan.given_up = found.1.clone();
        }
        let now = load_base(bucket, base).await?;
        if now.link == surveyed.newest.link {
            return Ok((surveyed, tenure, identity));
        }
        if now.link.generation >= tenure.generation {
            claims::check(bucket, tenure).await?;
            return Err(VolumeError::MovedOn);
        }
        // Nothing was written under the claim: the log did not leave the line before what was published meanwhile.
        note_tenure(env, bucket, local, &surveyed.plan, &now, tenure)?;
    }
}

/// Looks, and claims if nobody else did since: a host that opened the volume meanwhile is found in use, not fenced.
async fn survey_and_claim(
    env: &Env,
    bucket: &Bucket,
    local: &Local,
    agreed: Agreed,
    base: Option<&Base>,
) -> Result<(Survey, Tenure), VolumeError> {
    loop {
        let surveyed = survey(env, bucket, Some(local), agreed, base).await?;
        begin_log(env, bucket, local, &surveyed.plan)?;
        let Survey { newest, plan, claimed, floor, .. } = &surveyed;
        let looked = Looked { from: newest.name(), claimed: *claimed, floor: *floor };
        if let Some(tenure) = claims::claim(bucket, env, plan.identity.log, looked).await? {
            return Ok((surveyed, tenure));
        }
    }
}

/// Looks before claiming. `local` is none where this host has no folders of the volume.
pub(super) async fn survey(
    env: &Env,
    bucket: &Bucket,
    local: Option<&Local>,
    agreed: Agreed,
    base: Option<&Base>,
) -> Result<Survey, VolumeError> {
    let newest = load_base(bucket, base).await?;
    if let Some(local) = local {
        check_seen(bucket, local, &newest, base, agreed)?;
    }
    let plan = plan_log(env, bucket, local, &newest, agreed, base.is_some()).await?;
    let claims = bucket.list_claims(None).await?;
    let was_clean =
        check_in_use(bucket, &newest, claims.last().copied(), (&plan.identity, &env.host), agreed).await?;
    let floor = base.map_or(newest.link.generation, |base| base.floor);
    Ok(Survey { newest, plan, was_clean, claimed: claims.last().map(|claim| claim.0), floor })
}

/// What the volume is opened on: the newest manifest, unless another was chosen.
async fn load_base(bucket: &Bucket, base: Option<&Base>) -> Result<Published, VolumeError> {
    match base {
        Some(base) => base.load(bucket).await,
        None => bucket.newest_manifest().await,
    }
}

/// Compares the newest manifest with the newest that this host has seen. Who goes on from another base was told of those
/// in the bucket that this gives up, but not of one that is gone.
fn check_seen(
    bucket: &Bucket,
    local: &Local,
    newest: &Published,
    base: Option<&Base>,
    agreed: Agreed,
) -> Result<(), VolumeError> {
    if agreed.rollback {
        return Ok(());
    }
    let Some(seen) = seen::load(&*local.state, bucket)? else { return Ok(()) };
    let listed = base.is_some_and(|base| base.listed.contains(&(seen.generation, seen.epoch)));
    match seen::rolled_back(&seen, newest) {
        Some(error) if !listed => Err(error),
        _ => Ok(()),
    }
}

/// Whether the last tenure was closed; an error where it is another host's and not closed.
async fn check_in_use(
    bucket: &Bucket,
    newest: &Published,
    claimed: Option<(Generation, u64)>,
    (identity, own_host): (&LogIdentity, &str),
    agreed: Agreed,
) -> Result<bool, VolumeError> {
    let manifest = &newest.manifest;
    let Some((generation, nonce)) = claimed else { return Ok(true) };
    if manifest.closed && generation <= manifest.generation {
        return Ok(true);
    }
    if agreed.takeover || identity.has(generation, nonce) {
        return Ok(false);
    }
    let (host, pid, since) = match bucket.load_claim(generation, nonce).await {
        // The claim of an opening on this host that ended before it noted its tenure.
        Ok(claim) if claim.log == identity.log => return Ok(false),
        Ok(claim) => {
            let Writer { mut host, pid, .. } = claim.writer;
            if host == own_host {
                host.push_str(", this host by its name, with a state directory that is not this one");
            }
            (host, pid, super::format_time(claim.time_ms))
        }
        Err(error) if error.kind() == Kind::Corrupt => {
            tracing::warn!(%error, "the newest claim cannot be read");
            ("another host".to_owned(), 0, "an unknown time".to_owned())
        }
        Err(error) => return Err(error),
    };
    Err(VolumeError::InUse { host, pid, since })
}

/// Finds out whether the newest manifest was published from this host's log; if not, whether the log holds anything that
/// the line of that manifest does not. `chosen`: it is not the bucket's newest.
async fn plan_log(
    env: &Env,
    bucket: &Bucket,
    local: Option<&Local>,
    newest: &Published,
    agreed: Agreed,
    chosen: bool,
) -> Result<LogPlan, VolumeError> {
    let fresh = |tenures| LogIdentity { log: LogId(random_bytes(&*env.random)), tenures };
    let new_log = |identity, given_up| LogPlan { identity, belongs: false, given_up };
    let Some(local) = local else { return Ok(new_log(fresh(Vec::new()), Replayed::default())) };
    let folder = || env.local.describe(bucket.header.volume);
    let Some(identity) = load_identity(bucket, &*local.state, agreed)? else {
        // Without an identity there is no log yet. But where one was lost, records are not given up without a word.
        // Nor is what cannot be read, and may have been records: only a log in which nothing was ever written is empty.
        let scan = wal::scan(&*local.wal)?;
        let unreadable = scan.damage.map(|damage| damage.to_string());
        let torn = scan.torn.map(|torn| torn.why.to_string());
        let records = scan.records;
        let unknown = (records > 0).then(|| format!("{records} records are whole, and cannot be read"));
        let uncounted = unreadable.or(torn).or(unknown);
        if uncounted.is_some() && !agreed.discard {
            return Err(VolumeError::LogUnknown { records, folder: folder() });
        }
        return Ok(new_log(fresh(Vec::new()), Replayed { uncounted, ..Replayed::default() }));
    };
    // Of an older copy of the bucket, what comes next may be gone from the log: then the log continues another line.
    // And what is there may be of a line that the log left earlier than that.
    if is_of(&newest.manifest, &identity)
        && (!agreed.rollback
            || (joins_on(bucket, local, &identity, newest)? && !has_left(&newest.manifest, &identity)))
    {
        // What cannot be replayed may be given up as well; what can never is.
        let damage =
            if agreed.discard { find_damage(bucket, local, identity.log, &newest.manifest)? } else { None };
        return Ok(match damage.filter(|damage| !damage.joins) {
            Some(damage) => new_log(fresh(identity.tenures), damage.beyond),
            None => LogPlan { identity, belongs: true, given_up: Replayed::default() },
        });
    }
    let left = left_line_at(bucket, newest, &identity).await?;
    // What the log itself calls published went into a line that may be gone with an older copy, or with what is damaged:
    // then all that it holds counts.
    let untold = (agreed.rollback || chosen).then_some(Lsn(0));
    let is_kept_by_snapshot = left.as_ref().is_some_and(|left| left.link.epoch < newest.manifest.oldest_kept);
    let left_at = left.as_ref().map(|left| Lsn(left.manifest.log.lsn)).or(untold);
    let count = |from| count_above(bucket, local, identity.log, from);
    let lost = match count(left_at) {
        // The log may have published more than a snapshot keeps; then its own word is the later one.
        Ok(lost) if is_kept_by_snapshot && untold.is_none() => match count(None) {
            Ok(own) if own.tally.records() < lost.tally.records() => Ok(own),
            _ => Ok(lost),
        },
        lost => lost,
    };
    let lost = match lost {
        Err(error) if agreed.discard => {
            // Without its advice, which is what is being followed.
            let why = match error {
                VolumeError::LogUncounted { detail } => detail,
                other => other.to_string(),
            };
            Replayed { uncounted: Some(why), ..Replayed::default() }
        }
        lost => lost?,
    };
    if lost.tally.records() > 0 && !agreed.discard {
        let generation = identity.tenures.last().map_or(Generation(0), |tenure| tenure.generation);
        let has_base = left.map_or(Ok(false), |left| joins_on(bucket, local, &identity, &left))?;
        return Err(VolumeError::Diverged {
            has_base,
            held: lost.tally,
            generation,
            folder: folder(),
            by: overtaker(&newest.manifest, &identity, &env.host, is_behind_seen(bucket, local, newest)?),
        });
    }
    // Nothing was ever written under a log without tenures. Another one's are kept: claims of this host stay its own.
    let identity = if identity.tenures.is_empty() { identity } else { fresh(identity.tenures) };
    Ok(new_log(identity, lost))
}

/// Who published what a log's line lost to, in words. The same host under the same log: then what is here is older than
/// what that host went on with. `is_older`: this host has seen later epochs than the bucket has.
fn overtaker(newest: &Manifest, identity: &LogIdentity, host: &str, is_older: bool) -> String {
    let Writer { host: writer, .. } = &newest.writer;
    if is_older || is_of(newest, identity) {
        format!("the bucket, an older copy, only goes up to epoch {}", newest.epoch)
    } else if writer == host && newest.log.log == identity.log {
        format!(
            "this host itself has published since, up to epoch {}, so this looks like an older copy of its state \
             directory",
            newest.epoch
        )
    } else {
        format!("another writer ({writer}) has published since, up to epoch {}", newest.epoch)
    }
}

/// The identity of the log, or its copy where it is lost or damaged.
fn load_identity(
    bucket: &Bucket,
    state: &dyn Disk,
    agreed: Agreed,
) -> Result<Option<LogIdentity>, VolumeError> {
    let load = |name| local::load(state, &bucket.keys, Content::LogIdentity, name);
    let first = load(LOG);
    if let Ok(Some(_)) = first {
        return first;
    }
    match (first, load(LOG_COPY)) {
        (first, Ok(Some(copy))) => {
            let detail = first.err().map_or("it is missing".to_owned(), |error| error.to_string());
            tracing::warn!(%detail, "the file \"log\" in the state directory cannot be used: its copy is");
            Ok(Some(copy))
        }
        (Err(error), _) | (_, Err(error)) if agreed.discard => {
            tracing::warn!(%error, "which log this is cannot be known, and it is given up");
            Ok(None)
        }
        (first, copy) => first.and(copy),
    }
}

/// Whether the log has every record above what is published.
fn joins_on(
    bucket: &Bucket,
    local: &Local,
    identity: &LogIdentity,
    published: &Published,
) -> Result<bool, VolumeError> {
    // What the log notes of a manifest is of its own line: of one that it left there may be another of the same name.
    let floor = match has_left(&published.manifest, identity) {
        true => Lsn(published.manifest.log.lsn),
        false => goes_on_at(bucket, local, identity.log, &published.manifest)?,
    };
    Ok(wal::start(&*local.wal)? <= floor)
}

pub(super) fn is_of(manifest: &Manifest, identity: &LogIdentity) -> bool {
    manifest.log.log == identity.log
        && identity.has_published(manifest.generation, manifest.nonce, manifest.epoch)
}

/// Whether a manifest of this log is later than where the log left its line: both went on from an older copy.
fn has_left(manifest: &Manifest, identity: &LogIdentity) -> bool {
    identity.left_before(manifest.generation, manifest.nonce, manifest.epoch)
}

/// The newest manifest in the winning line that came from this log.
async fn left_line_at(
    bucket: &Bucket,
    newest: &Published,
    identity: &LogIdentity,
) -> Result<Option<Published>, VolumeError> {
    if identity.tenures.is_empty() {
        return Ok(None);
    }
    if is_of(&newest.manifest, identity) {
        return Ok(Some(newest.clone()));
    }
    let mut parent = newest.manifest.parent;
    for _ in 0..CHAIN_MAX {
        let Some(link) = parent else { break };
        let older = match bucket.load_manifest(link.generation, link.epoch).await {
            Ok(Some(older)) => older,
            Ok(None) => break,
            Err(error) if error.kind() == Kind::Corrupt => break,
            Err(error) => return Err(error),
        };
        if is_of(&older.manifest, identity) {
            return Ok(Some(older));
        }
        parent = older.manifest.parent;
    }
    // Where none keeps it, what the log says of itself is all there is.
    takeover::pinned(bucket, newest, identity).await
}

/// A log whose line lost, and the manifest that both lines have.
#[derive(Debug)]
pub(super) struct Fenced {
    pub(super) identity: LogIdentity,
    pub(super) base: Published,
}

/// Finds out where the line of this host's log left the winning one. Where its newest manifest cannot be used, the newest
/// whole one stands for it, as it does for `recover`.
pub(super) async fn fenced_log(env: &Env, bucket: &Bucket, local: &Local) -> Result<Fenced, VolumeError> {
    let folder = env.local.describe(bucket.header.volume);
    let (newest, fell_back) = match bucket.newest_manifest().await {
        Err(error) if error.is_of_line() => (find_whole(bucket).await?.base.ok_or(error)?.published, true),
        newest => (newest?, false),
    };
    let Some(identity) = load_identity(bucket, &*local.state, Agreed::default())? else {
        return Err(VolumeError::NothingFenced { folder });
    };
    let left = left_line_at(bucket, &newest, &identity).await?;
    let is_base_there = left.is_some();
    let base = match left {
        Some(left) if joins_on(bucket, local, &identity, &left)? => Some(left),
        _ => None,
    };
    if base.is_some() && is_of(&newest.manifest, &identity) && !has_left(&newest.manifest, &identity) {
        return Err(VolumeError::NothingFenced { folder });
    }
    // What the log itself calls published may have gone into a line that is no more: then all that it holds counts.
    let is_untold = fell_back || is_base_there || is_behind_seen(bucket, local, &newest)?;
    let from = base.as_ref().map(|base| Lsn(base.manifest.log.lsn)).or(is_untold.then_some(Lsn(0)));
    match (count_above(bucket, local, identity.log, from), base) {
        (Ok(held), _) if held.tally.records() == 0 => Err(VolumeError::NothingFenced { folder }),
        (Ok(_) | Err(VolumeError::LogUncounted { .. }), Some(base)) => Ok(Fenced { identity, base }),
        (Ok(Replayed { tally: held, .. }), None) => Err(VolumeError::NoBase { held, folder }),
        (Err(error), _) => Err(error),
    }
}

/// Whether the bucket may be an older copy than this host has seen.
fn is_behind_seen(bucket: &Bucket, local: &Local, newest: &Published) -> Result<bool, VolumeError> {
    match check_seen(bucket, local, newest, None, Agreed::default()) {
        Err(VolumeError::RolledBack { .. } | VolumeError::SeenDamaged { .. }) => Ok(true),
        seen => seen.map(|()| false),
    }
}

/// Clears a log that belongs to no line any more, and gives the folder to the new one. Before the claim, so that the claim
/// of an opening that dies is known as this host's own.
fn begin_log(env: &Env, bucket: &Bucket, local: &Local, plan: &LogPlan) -> Result<(), VolumeError> {
    if plan.belongs {
        return Ok(());
    }
    let clear = || {
        let mut names = local.wal.list()?;
        // The newest first, each for good: what a crash leaves is then a whole log, and is counted again.
        names.sort_unstable();
        for name in names.iter().rev() {
            local.wal.remove(name)?;
            local.wal.sync()?;
        }
        local.wal.sync()
    };
    // Before the new identity: what an interrupted clearing leaves is then still known to be the old log's.
    clear().map_err(VolumeError::local("write-ahead log"))?;
    store_identity(env, bucket, &*local.state, &plan.identity)
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
    let Tenure { generation, nonce } = tenure;
    identity.tenures.retain(|old| (old.generation, old.nonce) != (generation, nonce));
    identity.tenures.push(LogTenure { generation, nonce, from: newest.link.epoch });
    // Never the newest manifest's own, however many openings came to nothing since.
    let surplus = identity.tenures.len().saturating_sub(TENURES_MAX);
    let old = identity
        .tenures
        .iter()
        .take(surplus)
        .take_while(|old| old.generation < newest.link.generation)
        .count();
    identity.tenures.drain(..old);
    store_identity(env, bucket, &*local.state, &identity)?;
    Ok(identity)
}

/// The volume went back to a snapshot, and the log of this tenure says nothing of that. It is laid on no manifest up to epoch
/// `from` any more.
///
/// # Errors
/// The state directory cannot be written to.
pub(super) fn forget_up_to(
    env: &Env,
    bucket: &Bucket,
    state: &dyn Disk,
    tenure: Tenure,
    from: Epoch,
) -> Result<(), VolumeError> {
    let Some(identity) = load_identity(bucket, state, Agreed::default())? else { return Ok(()) };
    let Tenure { generation, nonce } = tenure;
    let identity = LogIdentity { tenures: vec![LogTenure { generation, nonce, from }], ..identity };
    store_identity(env, bucket, state, &identity)
}

/// The copy first: it is never older, so nothing is forgotten where the other is lost.
fn store_identity(
    env: &Env,
    bucket: &Bucket,
    state: &dyn Disk,
    identity: &LogIdentity,
) -> Result<(), VolumeError> {
    for name in [LOG_COPY, LOG] {
        local::store(state, &bucket.keys, &*env.random, Content::LogIdentity, name, identity)?;
    }
    Ok(())
}
