//! Which volume, in which store, with which folder on this host.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;

use super::{exit, secret::SecretArgs, tell};
use crate::{
    control::{
        Hello,
        client::{Client, find},
    },
    store::{
        StoreError,
        location::{Backend, Location},
        open::{OpenOptions, Opened, open_store, os_random},
        retry::RetryOptions,
        s3_config::{S3Options, server_address},
    },
    volume::{
        bucket::Bucket,
        env::{Env, System, Threads},
        error::VolumeError,
        host::{HostRoot, host_name},
        seen::older_than_seen,
    },
};

/// How long a command waits for the first answer of a store. Later, a store that is away is waited for without end.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// How long a command waits for a store that answers and refuses a call: credentials that are being rotated come soon.
const REFUSAL: Duration = Duration::from_secs(30);

/// How a store is reached.
#[derive(Clone, Debug, Args)]
pub(super) struct StoreArgs {
    /// Address of the S3 server, if not Amazon's; also AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL.
    #[arg(long, value_name = "URL", help_heading = "Store")]
    endpoint: Option<String>,
    /// Region; also AWS_REGION and the profile.
    #[arg(long, help_heading = "Store")]
    region: Option<String>,
    /// Profile in the AWS configuration files; also AWS_PROFILE.
    #[arg(long, help_heading = "Store")]
    profile: Option<String>,
}

/// Where the volume is.
#[derive(Clone, Debug, Args)]
pub(super) struct Target {
    /// BUCKET/VOLUME, or file:DIR/VOLUME.
    #[arg(value_name = "VOLUME")]
    location: Location,
    #[command(flatten)]
    store: StoreArgs,
    /// Where logs and caches of volumes are kept [default: $XDG_STATE_HOME/s3bd, or ~/.local/state/s3bd].
    #[arg(long, value_name = "DIR", env = "S3BD_STATE_DIR", help_heading = "Store")]
    state_dir: Option<PathBuf>,
}

/// A store that was opened, and the rest of the environment.
pub(super) struct Outside {
    pub(super) env: Env,
    pub(super) opened: Opened,
}

impl StoreArgs {
    /// How to open a store.
    pub(super) fn options(&self) -> OpenOptions {
        OpenOptions {
            s3: S3Options {
                endpoint: self.endpoint.clone(),
                region: self.region.clone(),
                profile: self.profile.clone(),
                ..S3Options::default()
            },
            retry: RetryOptions { first_answer_deadline: Some(FIRST_ANSWER), ..RetryOptions::default() },
            random: os_random(),
        }
    }
}

impl Target {
    /// The volume's name as the user wrote it.
    pub(super) fn name(&self) -> String {
        self.location.to_string()
    }

    /// The name of its export: the volume's without its bucket, and the snapshot's where one is named.
    pub(super) fn export(&self) -> String {
        match &self.location.snapshot {
            None => self.location.volume.clone(),
            Some(snapshot) => format!("{}@{snapshot}", self.location.volume),
        }
    }

    /// The volume's location as its server calls it: with the whole path of a directory.
    pub(super) fn identity(&self) -> String {
        self.whole().to_string()
    }

    fn whole(&self) -> Location {
        let mut location = self.location.clone();
        if let Backend::Directory(path) = &mut location.backend {
            let whole = std::fs::canonicalize(&*path).or_else(|_| std::path::absolute(&*path));
            *path = whole.unwrap_or_else(|_| path.clone());
        }
        location
    }

    /// Whether requests to the store are paid for one by one.
    pub(super) fn is_bucket(&self) -> bool {
        matches!(self.location.backend, Backend::Bucket(_))
    }

    /// Another volume, with the same ways to a store and the same folders.
    pub(super) fn at(&self, location: Location) -> Self {
        Self { location, ..self.clone() }
    }

    /// How the user would write the name of another volume in the same bucket.
    pub(super) fn name_beside(&self, volume: &str) -> String {
        Location { volume: volume.to_owned(), snapshot: None, ..self.location.clone() }.to_string()
    }

    /// An error where a snapshot is named: there is no server of its own for it.
    fn refuse_snapshot(&self) -> anyhow::Result<()> {
        if self.location.snapshot.is_some() {
            return Err(exit::usage(format!(
                "{} names a snapshot; this command takes a volume",
                self.location
            )));
        }
        Ok(())
    }

    /// The volume, and the name of the snapshot.
    ///
    /// # Errors
    /// No snapshot is named.
    pub(super) fn split_snapshot(&self) -> anyhow::Result<(Self, String)> {
        let mut location = self.location.clone();
        match location.snapshot.take() {
            Some(snapshot) => Ok((self.at(location), snapshot)),
            None => Err(exit::usage(format!(
                "{} names no snapshot; this command takes VOLUME@NAME",
                self.location
            ))),
        }
    }

    /// The volume, whether a snapshot of it is named or not.
    pub(super) fn without_snapshot(&self) -> Self {
        self.at(Location { snapshot: None, ..self.location.clone() })
    }

    /// The volume's name without its bucket.
    pub(super) fn volume(&self) -> &str {
        &self.location.volume
    }

    /// Whether another volume is in the same bucket or directory.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.whole().backend == other.whole().backend
    }

    /// The name of the snapshot, where one is named.
    pub(super) fn snapshot(&self) -> Option<&str> {
        self.location.snapshot.as_deref()
    }

    /// Connects to the server that has the volume open on this host.
    ///
    /// # Errors
    /// Nobody has: `otherwise` says what to do then.
    pub(super) async fn server(&self, otherwise: &str) -> anyhow::Result<Client> {
        let root = self.state_dir()?;
        let (server, elsewhere) = self.look_for_server().await?;
        server.ok_or_else(|| {
            let elsewhere = elsewhere.iter().map(in_another_store).collect::<String>();
            exit::not_open(format!(
                "{}: not open on this host (no server of it in {}{elsewhere}): {otherwise}",
                self.name(),
                root.display()
            ))
        })
    }

    /// Connects to the server that has the volume open on this host, if there is one.
    ///
    /// # Errors
    /// There may be one, and it does not answer.
    pub(super) async fn find_server(&self) -> anyhow::Result<Option<Client>> {
        Ok(self.look_for_server().await?.0)
    }

    /// The same, and the servers of a volume of its name in other stores.
    async fn look_for_server(&self) -> anyhow::Result<(Option<Client>, Vec<Hello>)> {
        self.refuse_snapshot()?;
        let root = self.state_dir()?;
        let endpoint = self.endpoint().await?;
        let found = find(&root, &self.identity(), endpoint.as_deref()).await;
        let found = found.with_context(|| root.display().to_string())?;
        let mut clients = found.clients;
        if clients.len() > 1 {
            // Made anew while another of its name was served: only the store knows which volume is meant.
            let outside = self.outside().await?;
            let (header, _) = Bucket::header(&*outside.env.store).await.with_context(|| self.name())?;
            clients.retain(|client| client.hello().volume == header.volume.to_string());
        }
        match (clients.pop(), found.silent.into_iter().next()) {
            (Some(client), _) => Ok((Some(client), found.elsewhere)),
            (None, Some((path, error))) => {
                let text =
                    format!("no server of it was found, but one that may be it is at {}", path.display());
                Err(anyhow::Error::new(error).context(text).context(self.name()))
            }
            (None, None) => Ok((None, found.elsewhere)),
        }
    }

    /// The S3 server that is meant, as its server on this host calls it; none for Amazon's, and for a directory.
    pub(super) async fn endpoint(&self) -> anyhow::Result<Option<String>> {
        match self.location.backend {
            Backend::Bucket(_) => server_address(&self.store.options().s3).await.with_context(|| self.name()),
            Backend::Directory(_) => Ok(None),
        }
    }

    /// Opens the store and puts the environment together, for a command that comes to an end: what the store refuses for
    /// long is an error. Makes no request.
    ///
    /// # Errors
    /// Also where a snapshot is named.
    pub(super) async fn outside(&self) -> anyhow::Result<Outside> {
        self.refuse_snapshot()?;
        self.outside_with(Some(REFUSAL)).await
    }

    /// The same, for a volume or a snapshot that is served: refusals are waited out as outages are.
    pub(super) async fn outside_to_serve(&self) -> anyhow::Result<Outside> {
        self.outside_with(None).await
    }

    async fn outside_with(&self, refusal_deadline: Option<Duration>) -> anyhow::Result<Outside> {
        let retry = RetryOptions {
            first_answer_deadline: Some(FIRST_ANSWER),
            refusal_deadline,
            ..RetryOptions::default()
        };
        let options = OpenOptions { retry, ..self.store.options() };
        let opened: Result<Opened, StoreError> = open_store(&self.location, &options).await;
        let opened = opened.with_context(|| self.name())?;
        let env = Env {
            store: opened.store(),
            local: Arc::new(HostRoot::new(self.state_dir()?)),
            clock: Arc::new(System),
            random: Arc::new(System),
            threads: Threads::Pool,
            host: host_name(),
        };
        Ok(Outside { env, opened })
    }

    /// Opens the store and unlocks the volume.
    pub(super) async fn unlock(&self, secret: &SecretArgs) -> anyhow::Result<(Outside, Bucket)> {
        let outside = self.outside().await?;
        let bucket = self.unlock_in(&outside.env, secret).await?;
        Ok((outside, bucket))
    }

    /// Unlocks the volume in a store that was opened.
    pub(super) async fn unlock_in(&self, env: &Env, secret: &SecretArgs) -> anyhow::Result<Bucket> {
        let (header, _) = Bucket::header(&*env.store).await.with_context(|| self.name())?;
        let secret = secret.obtain(&self.name(), header.protection).await?;
        Bucket::unlock(Arc::clone(&env.store), &secret).await.with_context(|| self.name())
    }

    /// Says so where the bucket is older than what this host has seen of it: who only reads is not refused.
    pub(super) async fn warn_of_older(&self, env: &Env, bucket: &Bucket) {
        match older_than_seen(env, bucket).await {
            Ok(None) => {}
            Ok(Some(warning)) | Err(warning @ VolumeError::SeenDamaged { .. }) => {
                tell(format_args!("{}: warning: {warning}", self.name()));
            }
            // Whatever else is wrong is what the command itself is about.
            Err(error) => tracing::debug!(%error, "not compared with what this host has seen"),
        }
    }

    /// Where the folders of volumes are.
    pub(super) fn state_dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.state_dir {
            return Ok(path.clone());
        }
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(state) = absolute("XDG_STATE_HOME") {
            return Ok(state.join("s3bd"));
        }
        match absolute("HOME") {
            Some(home) => Ok(home.join(".local/state/s3bd")),
            None => {
                Err(exit::usage("there is no home directory: say where logs and caches go with --state-dir"))
            }
        }
    }
}

fn in_another_store(hello: &Hello) -> String {
    match &hello.endpoint {
        Some(endpoint) => format!("; one of that name at {endpoint} is open: --endpoint {endpoint} asks it"),
        None => "; one of that name at Amazon is open: without an endpoint it is asked".to_owned(),
    }
}
