//! Credentials and the clients made with them: loaded once, renewed before they expire and when a server refuses them.
//!
//! The ordinary chain of the AWS SDKs: environment, profile (static keys, SSO, process, assumed roles), web identity,
//! container, and last the instance metadata, with short time limits. The whole chain is built anew at each renewal, so
//! that files which another program rotates are read again; the SDK's own cache would keep the old ones for ever.
//!
//! # Concurrency
//! One renewal at a time. Calls go on with the old credentials meanwhile, as long as these are valid.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::error::DisplayErrorContext;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::s3_config::ClientConfig;
use super::{ErrorKind, StoreError};

/// Access keys given by the program instead of its environment.
#[derive(Clone, Debug)]
pub struct StaticCredentials {
    /// Public name of the key.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: SecretString,
    /// Goes with temporary keys.
    pub session_token: Option<SecretString>,
}

/// Where credentials come from.
#[derive(Clone)]
pub enum CredentialSource {
    /// The ordinary chain.
    Chain,
    /// A function, asked again whenever a server refuses what it gave before.
    Provided(Arc<dyn Fn() -> StaticCredentials + Send + Sync>),
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CredentialSource::Chain => "Chain",
            CredentialSource::Provided(_) => "Provided(..)",
        })
    }
}

/// Longest time for the whole chain: a process or a sign-on service that takes longer is stuck.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Credentials are renewed this long before they expire, as the other AWS SDKs do.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_secs(5 * 60);

/// Loading that failed or brought nothing new is not tried again for this long: every call that waits or is refused asks.
const RENEW_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// Time limits of the instance metadata, which does not answer at all on most machines.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

const NO_CREDENTIALS: &str = "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
                              or AWS_PROFILE or --profile for a profile in ~/.aws that has them";

/// A client and the credentials it signs with.
pub(super) struct Session {
    pub(super) client: Client,
    /// Grows with each change of credentials.
    pub(super) generation: u64,
    access_key_id: String,
    secrets: Vec<SecretString>,
    renew_at: Option<Instant>,
    expires_at: Option<Instant>,
}

impl Session {
    /// The text without any of the secrets; servers repeat odd things in their errors.
    pub(super) fn redact(&self, text: &str) -> String {
        self.secrets
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), "[secret]"))
    }

    fn is_due(&self) -> bool {
        self.renew_at.is_some_and(|at| Instant::now() >= at)
    }

    fn is_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| Instant::now() >= at)
    }
}

/// The current session of a store.
pub(super) struct Sessions {
    source: CredentialSource,
    profile: Option<String>,
    config: ClientConfig,
    current: RwLock<Option<Arc<Session>>>,
    /// Held while loading.
    loading: tokio::sync::Mutex<LastLoad>,
}

/// The last loading, where it was no use.
#[derive(Default)]
struct LastLoad {
    useless_at: Option<Instant>,
    error: Option<(ErrorKind, String)>,
}

impl LastLoad {
    fn is_recent(&self) -> bool {
        self.useless_at.is_some_and(|at| at.elapsed() < RENEW_INTERVAL_MIN)
    }
}

impl Sessions {
    pub(super) fn new(source: CredentialSource, profile: Option<String>, config: ClientConfig) -> Sessions {
        Sessions {
            source,
            profile,
            config,
            current: RwLock::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// A session to call with.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where there are no credentials and never were; [`ErrorKind::Denied`] where they could not
    /// be had this time.
    pub(super) async fn current(&self) -> Result<Arc<Session>, StoreError> {
        let session = self.load_current();
        match session {
            Some(session) if !session.is_due() => Ok(session),
            Some(session) if !session.is_expired() => {
                // Still good: only one call renews, and failing to is no harm yet.
                if let Ok(mut last) = self.loading.try_lock() {
                    self.renew_quietly(&mut last).await;
                }
                Ok(self.load_current().unwrap_or(session))
            }
            _ => {
                let mut last = self.loading.lock().await;
                match (self.load_current(), &last.error) {
                    (Some(session), _) if !session.is_expired() => Ok(session),
                    // All that there is; the clock of this host may be wrong.
                    (Some(session), None) if last.is_recent() => Ok(session),
                    (_, Some((kind, reason))) if last.is_recent() => {
                        Err(StoreError::new(*kind, "open", "", reason))
                    }
                    _ => self.load(&mut last).await,
                }
            }
        }
    }

    /// Asks for other credentials than those of `generation`, which a server refused; says whether there are any.
    pub(super) async fn renew(&self, generation: u64) -> bool {
        let mut last = self.loading.lock().await;
        if self.load_current().is_none_or(|session| session.generation == generation) {
            self.renew_quietly(&mut last).await;
        }
        self.load_current().is_some_and(|session| session.generation != generation)
    }

    async fn renew_quietly(&self, last: &mut LastLoad) {
        if last.is_recent() {
            return;
        }
        if let Err(error) = self.load(last).await {
            tracing::warn!(%error, "credentials could not be renewed");
        }
    }

    async fn load(&self, last: &mut LastLoad) -> Result<Arc<Session>, StoreError> {
        let before = self.load_current();
        let provided = tokio::time::timeout(LOAD_TIMEOUT, self.provide()).await;
        let (kind, reason) = match provided {
            Ok(Ok(credentials)) => {
                let session = self.store(credentials);
                let is_new = before.is_none_or(|before| before.generation != session.generation);
                *last = LastLoad { useless_at: (!is_new).then(Instant::now), error: None };
                return Ok(session);
            }
            Ok(Err(Problem::NotFound)) if before.is_none() => (ErrorKind::Invalid, NO_CREDENTIALS.to_owned()),
            Ok(Err(Problem::NotFound)) => (ErrorKind::Denied, NO_CREDENTIALS.to_owned()),
            Ok(Err(Problem::Failed(reason))) => {
                (ErrorKind::Denied, format!("{NO_CREDENTIALS}; the last place asked said: {reason}"))
            }
            Err(_) => (ErrorKind::Denied, format!("no credentials after {} s", LOAD_TIMEOUT.as_secs())),
        };
        *last = LastLoad { useless_at: Some(Instant::now()), error: Some((kind, reason.clone())) };
        Err(StoreError::new(kind, "open", "", reason))
    }

    /// Makes a client for new credentials; keeps the one there is if they are the same.
    fn store(&self, credentials: Credentials) -> Arc<Session> {
        let secrets = [Some(credentials.secret_access_key()), credentials.session_token()];
        let secrets: Vec<_> =
            secrets.into_iter().flatten().filter(|s| !s.is_empty()).map(SecretString::from).collect();
        let remaining = remaining_life(&credentials);
        let access_key_id = credentials.access_key_id().to_owned();
        let now = Instant::now();
        let previous = self.load_current();
        let same = previous.as_ref().filter(|session| {
            session.access_key_id == credentials.access_key_id() && same_secrets(&session.secrets, &secrets)
        });
        let generation = match (same, &previous) {
            (Some(session), _) => session.generation,
            (None, Some(session)) => session.generation + 1,
            (None, None) => 0,
        };
        let client = match same {
            Some(session) => session.client.clone(),
            None => {
                let builder = self.config.builder.clone().http_client(self.config.http.clone());
                Client::from_conf(builder.credentials_provider(credentials).build())
            }
        };
        let session = Arc::new(Session {
            client,
            generation,
            access_key_id,
            secrets,
            // Short-lived ones are used for half of their life at least.
            renew_at: remaining.map(|life| now + life.saturating_sub(RENEW_BEFORE_EXPIRY).max(life / 2)),
            expires_at: remaining.map(|life| now + life),
        });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&session));
        session
    }

    fn load_current(&self) -> Option<Arc<Session>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn provide(&self) -> Result<Credentials, Problem> {
        let provider = match &self.source {
            CredentialSource::Chain => self.chain().await,
            CredentialSource::Provided(provide) => return Ok(from_static(provide())),
        };
        provider.provide_credentials().await.map_err(|error| {
            // The SDK does not let its error's type be named outside its own crates; its words are part of its tests.
            match error.to_string().contains("was not enabled") {
                true => Problem::NotFound,
                false => Problem::Failed(DisplayErrorContext(&error).to_string()),
            }
        })
    }

    async fn chain(&self) -> SharedCredentialsProvider {
        let config = ProviderConfig::without_region()
            .with_http_client(self.config.http.clone())
            .with_region(Some(self.config.region.clone()));
        if let Some(profile) = &self.profile {
            let provider = ProfileFileCredentialsProvider::builder().configure(&config).profile_name(profile);
            return SharedCredentialsProvider::new(provider.build());
        }
        let metadata = aws_config::imds::Client::builder()
            .configure(&config)
            .connect_timeout(METADATA_TIMEOUT)
            .read_timeout(METADATA_TIMEOUT)
            .max_attempts(1)
            .build();
        let chain = DefaultCredentialsChain::builder()
            .region(self.config.region.clone())
            .configure(config)
            .imds_client(metadata);
        SharedCredentialsProvider::new(chain.build().await)
    }
}

enum Problem {
    NotFound,
    Failed(String),
}

fn from_static(provided: StaticCredentials) -> Credentials {
    Credentials::new(
        provided.access_key_id,
        provided.secret_access_key.expose_secret(),
        provided.session_token.map(|token| token.expose_secret().to_owned()),
        None,
        "s3bd",
    )
}

fn same_secrets(a: &[SecretString], b: &[SecretString]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.expose_secret() == b.expose_secret())
}

/// How long credentials are still valid; `None` for ever.
#[expect(
    clippy::disallowed_methods,
    reason = "expiry is a wall clock time of the provider's; nothing simulated"
)]
fn remaining_life(credentials: &Credentials) -> Option<Duration> {
    let expiry = credentials.expiry()?;
    Some(expiry.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}
