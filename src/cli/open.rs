//! `s3bd open`: serves a volume.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::{
    exit,
    exports::VolumeExports,
    init::{self, CompressionArg},
    progress::{describe_taken, show_upload, tell_unclosed},
    say,
    secret::SecretArgs,
    serve::{Addresses, Signals, bind, describe, server},
    served,
    size::{
        Lag, parse_duration, parse_duration_or_none, parse_lag, parse_size, parse_size_or_none, show_size,
    },
    target::Target,
    tell,
};
use crate::{
    format::slot::Argon2,
    nbd::{Device, Export, Exports},
    seal::frame::Compression,
    volume::{
        Volume,
        bucket::Bucket,
        error::VolumeError,
        open::{Agreed, open, open_read_only, open_snapshot_alone},
        settings::{Durability, Settings},
        status::Waiting,
    },
};

/// The registered port of NBD (IANA).
const PORT: u16 = 10809;

/// Serve a volume over NBD.
#[derive(Debug, Args)]
pub(super) struct Open {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    secret: SecretArgs,
    /// TCP port to listen on [default: 10809, unless --unix is given]; 0 takes a free one.
    #[arg(short, long, help_heading = "Serving")]
    port: Option<u16>,
    /// Address to listen on. NBD knows no password: whoever reaches it reads and writes the volume.
    #[arg(long, default_value = "127.0.0.1", help_heading = "Serving")]
    bind: IpAddr,
    /// Unix socket to listen on.
    #[arg(long, value_name = "PATH", help_heading = "Serving")]
    unix: Option<PathBuf>,
    /// Make the volume with this size if it does not exist.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    create: Option<u64>,
    /// Serve the newest epoch (of VOLUME@NAME always the snapshot) without claiming the volume; works while another host has it open.
    #[arg(long, conflicts_with_all = ["create", "takeover"])]
    read_only: bool,
    /// Take the volume from a host that has not closed it. What that host has not published stays in its log alone.
    #[arg(long)]
    takeover: bool,
    /// Go on although the bucket holds an older state than this host has seen.
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    tuning: Tuning,
}

/// Bounds, and what is traded for what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tuning")]
struct Tuning {
    /// When a flush is answered: when the data is on the local disk, or when it is in the bucket.
    #[arg(long, value_enum, default_value = "local")]
    durability: DurabilityArg,
    /// How new data is compressed [default: as the volume was made].
    #[arg(long, value_enum)]
    compression: Option<CompressionArg>,
    /// Upload what is this old, if not before. Each upload is three requests.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    commit_interval: Duration,
    /// Size of the cache on disk; 0 for none.
    #[arg(long, value_name = "SIZE", value_parser = parse_size_or_none, default_value = "10G")]
    cache_size: u64,
    /// Size of the log on disk: what may wait for upload. Writes wait when it is full.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "4G")]
    wal_size: u64,
    /// Memory for unpacked data; as much as half of it again holds what waits for upload.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    memory_size: u64,
    /// How far behind the bucket may be, as a time (10m) or a size (2G), or one of each; writes wait where it would be more
    /// [default: no more than the log holds].
    #[arg(long, value_name = "TIME|SIZE", value_parser = parse_lag)]
    max_lag: Vec<Lag>,
    /// How long what the newest epoch does not need any more stays for readers on other hosts that have an older one.
    #[arg(long, value_name = "TIME", value_parser = parse_duration_or_none, default_value = "5m")]
    gc_grace: Duration,
    /// Answer a read with an I/O error when the store does not answer for this long [default: wait].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    read_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DurabilityArg {
    Local,
    Remote,
}

/// A log of less than this leaves no room for a segment being written and one being uploaded.
const WAL_BYTES_MIN: u64 = 64 << 20;
/// Less memory than this holds too few frames for one large request.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// A commit takes some round trips to the store: with less than this, writers would mostly wait.
const LAG_TIME_MIN: Duration = Duration::from_secs(1);
/// One record of the log.
const LAG_BYTES_MIN: u64 = 1 << 20;

impl Tuning {
    fn settings(&self) -> anyhow::Result<Settings> {
        let least = |name: &str, given: u64, least: u64| {
            let text = format!("{name} of {} is too small: at least {}", show_size(given), show_size(least));
            if given < least { Err(exit::usage(text)) } else { Ok(given) }
        };
        let (lag_time_max, lag_bytes_max) = self.lag_max()?;
        Ok(Settings {
            durability: match self.durability {
                DurabilityArg::Local => Durability::Local,
                DurabilityArg::Remote => Durability::Remote,
            },
            commit_interval: self.commit_interval,
            wal_bytes_max: least("--wal-size", self.wal_size, WAL_BYTES_MIN)?,
            cache_bytes_max: self.cache_size,
            memory_bytes_max: least("--memory-size", self.memory_size, MEMORY_BYTES_MIN)?,
            unpublished_memory_bytes_max: self.memory_size / 2,
            lag_time_max,
            lag_bytes_max,
            read_timeout: self.read_timeout,
            gc_grace: self.gc_grace,
            ..Settings::default()
        })
    }
}

impl Tuning {
    /// `--max-lag`, one of each kind at most.
    fn lag_max(&self) -> anyhow::Result<(Option<Duration>, Option<u64>)> {
        let (mut time, mut bytes) = (None, None);
        for lag in &self.max_lag {
            let twice = match *lag {
                Lag::Time(given) => time.replace(given).is_some(),
                Lag::Bytes(given) => bytes.replace(given).is_some(),
            };
            if twice {
                return Err(exit::usage("--max-lag takes one time and one size at most"));
            }
        }
        if time.is_some_and(|time| time < LAG_TIME_MIN) {
            return Err(exit::usage(format!(
                "--max-lag is too short: at least {} s",
                LAG_TIME_MIN.as_secs()
            )));
        }
        if bytes.is_some_and(|bytes| bytes < LAG_BYTES_MIN) {
            return Err(exit::usage(format!(
                "--max-lag is too small: at least {}",
                show_size(LAG_BYTES_MIN)
            )));
        }
        Ok((time, bytes))
    }
}

impl Open {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let settings = self.tuning.settings()?;
        if let (Some(snapshot), true) = (self.target.snapshot(), self.takeover || self.create.is_some()) {
            let text = format!(
                "{snapshot:?} is a snapshot: it is served read-only, and neither made nor taken over here"
            );
            return Err(exit::usage(text));
        }
        let outside = self.target.outside_to_serve().await?;
        let tcp = (self.unix.is_none() || self.port.is_some())
            .then(|| (self.bind, self.port.unwrap_or(PORT)).into());
        let listeners = bind(&Addresses { tcp, unix: self.unix.clone() }).await?;
        if let Some(size) = self.create {
            self.create(&outside.env, size).await?;
        }
        let bucket = self.target.unlock_in(&outside.env, &self.secret).await?;
        let codec = self.tuning.compression.map_or(bucket.header.compression, CompressionArg::codec);
        let settings = Settings { compression: Compression::of(codec), ..settings };
        let mut signals = Signals::catch()?;
        // An opening may die anywhere.
        let volume = tokio::select! {
            opened = self.open_volume(outside.env, bucket, settings) => Arc::new(opened?),
            () = signals.next() => anyhow::bail!("{}: interrupted before it was open", self.target.name()),
        };
        let export = Export {
            name: self.target.export(),
            description: self.target.name(),
            device: Arc::clone(&volume) as Arc<dyn Device>,
        };
        let exports = Arc::new(VolumeExports::new(export, Arc::clone(&volume)));
        let server = server(Arc::clone(&exports) as Arc<dyn Exports>);
        let control =
            served::serve_control(&self.target, &volume, &outside.opened, server.clients(), exports).await;
        let size = show_size(volume.info().size_bytes);
        for address in describe(&listeners, self.unix.as_ref(), &self.target.export()) {
            say(format_args!("{}: {size}, served at {address}", self.target.name()));
        }
        let failed = watch_for_failure(&volume);
        server.serve(listeners, signals.next()).await;
        failed.abort();
        let closed = close(&volume, &mut signals, &self.target.name()).await;
        if let Some(control) = control {
            control.end().await;
        }
        tracing::info!(requests = ?outside.opened.meter(), "requests made of the store");
        closed?;
        let name = self.target.name();
        volume.core().noted.tell_incomplete(Waiting::Sync).with_context(|| name.clone())?;
        if !volume.info().read_only {
            let epoch = volume.core().progress.borrow().epoch;
            say(format_args!("{name}: closed: everything is in the bucket, as epoch {epoch}"));
        }
        Ok(())
    }

    async fn create(&self, env: &crate::volume::env::Env, size: u64) -> anyhow::Result<()> {
        match Bucket::header(&*env.store).await {
            Ok(_) => Ok(()),
            Err(VolumeError::NoVolume) => {
                let compression = self.tuning.compression.unwrap_or_default();
                let new = init::New {
                    size,
                    block_size: init::BLOCK_BYTES,
                    compression,
                    secret: &self.secret,
                    cost: Argon2::RECOMMENDED,
                };
                init::make(&self.target, env, new).await
            }
            Err(error) => Err(error).with_context(|| self.target.name()),
        }
    }

    async fn open_volume(
        &self,
        env: crate::volume::env::Env,
        bucket: Bucket,
        settings: Settings,
    ) -> anyhow::Result<Volume> {
        if let Some(snapshot) = self.target.snapshot() {
            let opened = open_snapshot_alone(env, bucket, settings, snapshot).await;
            return opened.with_context(|| self.target.name());
        }
        if self.read_only {
            self.target.warn_of_older(&env, &bucket).await;
            return open_read_only(env, bucket, settings).await.with_context(|| self.target.name());
        }
        let agreed = Agreed { takeover: self.takeover, rollback: self.accept_rollback, discard: false };
        let (volume, report) =
            open(env, bucket, settings, agreed).await.with_context(|| self.target.name())?;
        tell_unclosed(&self.target.name(), &report);
        if let Some(snapshot) = &report.taken {
            tell(describe_taken(snapshot, &report.newest));
        }
        Ok(volume)
    }
}

/// Says it at once when the volume can serve no more, and not only when somebody stops the server.
fn watch_for_failure(volume: &Arc<Volume>) -> tokio::task::JoinHandle<()> {
    let core = Arc::clone(volume.core());
    tokio::spawn(async move {
        let error = core.failed().await;
        tell(format_args!("{error}; every request is answered with an error from now on"));
    })
}

/// Uploads the rest and closes; a second signal leaves at once.
pub(super) async fn close(volume: &Volume, signals: &mut Signals, name: &str) -> anyhow::Result<()> {
    let core = Arc::clone(volume.core());
    let closed = async {
        tokio::select! {
            result = volume.close() => Some(result),
            () = signals.next() => None,
        }
    };
    let result = tokio::select! {
        result = closed => result,
        () = show_upload(Arc::clone(&core), "uploading") => None,
    };
    match result {
        Some(result) => result.with_context(|| name.to_owned()),
        None => {
            let left = show_size(core.unpublished_bytes());
            let text =
                format!("left at once: {left} are in the local log only, and are uploaded at the next open");
            Err(anyhow::anyhow!(text).context(name.to_owned()))
        }
    }
}
