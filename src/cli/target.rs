//! Which volume, in which store, with which folder on this host.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;

use super::{exit, secret::SecretArgs};
use crate::{
    control::client::{Client, find},
    store::{
        StoreError,
        location::{Backend, Location},
        open::{OpenOptions, Opened, open_store, os_random},
        retry::RetryOptions,
        s3_config::S3Options,
    },
    volume::{
        bucket::Bucket,
        env::{Env, System, Threads},
        host::{HostRoot, host_name},
    },
};

/// How long a command waits for the first answer of a store. Later, a store that is away is waited for without end.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// Where the volume is.
#[derive(Clone, Debug, Args)]
pub(super) struct Target {
    /// BUCKET/VOLUME, or file:DIR/VOLUME.
    #[arg(value_name = "VOLUME")]
    location: Location,
    /// Address of the S3 server, if not Amazon's; also AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL.
    #[arg(long, value_name = "URL", help_heading = "Store")]
    endpoint: Option<String>,
    /// Region; also AWS_REGION and the profile.
    #[arg(long, help_heading = "Store")]
    region: Option<String>,
    /// Profile in the AWS configuration files; also AWS_PROFILE.
    #[arg(long, help_heading = "Store")]
    profile: Option<String>,
    /// Where logs and caches of volumes are kept [default: $XDG_STATE_HOME/s3bd, or ~/.local/state/s3bd].
    #[arg(long, value_name = "DIR", env = "S3BD_STATE_DIR", help_heading = "Store")]
    state_dir: Option<PathBuf>,
}

/// A store that was opened, and the rest of the environment.
pub(super) struct Outside {
    pub(super) env: Env,
    pub(super) opened: Opened,
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
        let mut location = self.location.clone();
        if let Backend::Directory(path) = &mut location.backend {
            let whole = std::fs::canonicalize(&*path).or_else(|_| std::path::absolute(&*path));
            *path = whole.unwrap_or_else(|_| path.clone());
        }
        location.to_string()
    }

    /// Whether requests to the store are paid for one by one.
    pub(super) fn is_bucket(&self) -> bool {
        matches!(self.location.backend, Backend::Bucket(_))
    }

    /// Another volume, with the same ways to a store and the same folders.
    pub(super) fn at(&self, location: Location) -> Self {
        Self { location, ..self.clone() }
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
        self.find_server().await?.ok_or_else(|| {
            exit::not_open(format!(
                "{}: not open on this host (no server of it in {}): {otherwise}",
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
        self.refuse_snapshot()?;
        let root = self.state_dir()?;
        let found = find(&root, &self.identity()).await.with_context(|| root.display().to_string())?;
        let mut clients = found.clients;
        if clients.len() > 1 {
            // Buckets of one name in two stores: only the store knows which volume is meant.
            let outside = self.outside().await?;
            let (header, _) = Bucket::header(&*outside.env.store).await.with_context(|| self.name())?;
            clients.retain(|client| client.hello().volume == header.volume.to_string());
        }
        match (clients.pop(), found.silent.into_iter().next()) {
            (Some(client), _) => Ok(Some(client)),
            (None, Some((path, error))) => {
                let text =
                    format!("no server of it was found, but one that may be it is at {}", path.display());
                Err(anyhow::Error::new(error).context(text).context(self.name()))
            }
            (None, None) => Ok(None),
        }
    }

    /// Opens the store and puts the environment together. Makes no request.
    ///
    /// # Errors
    /// Also where a snapshot is named.
    pub(super) async fn outside(&self) -> anyhow::Result<Outside> {
        self.refuse_snapshot()?;
        self.outside_of_snapshot().await
    }

    /// The same, of a volume or of a snapshot of it.
    pub(super) async fn outside_of_snapshot(&self) -> anyhow::Result<Outside> {
        let options = OpenOptions {
            s3: S3Options {
                endpoint: self.endpoint.clone(),
                region: self.region.clone(),
                profile: self.profile.clone(),
                ..S3Options::default()
            },
            retry: RetryOptions { first_answer_deadline: Some(FIRST_ANSWER), ..RetryOptions::default() },
            random: os_random(),
        };
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
