//! What to tell the AWS SDK: endpoint, region, checksums, time limits; out of flags and the usual environment.
//!
//! Flags come first, then `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_DEFAULT_REGION`, then the
//! profile (`AWS_PROFILE`, `~/.aws/config`, `~/.aws/credentials`).
//!
//! # Not handled
//! - HTTP proxies. Certificates of a private authority are taken from `SSL_CERT_FILE`, not from `AWS_CA_BUNDLE`.
//! - An endpoint in a `[services]` section of a profile is used, but not recognised as custom: give `--endpoint` too.

use std::time::Duration;

use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_s3::config::{
    Builder, IdentityCache, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
};
use aws_smithy_http_client::tls;

use super::s3_credentials::CredentialSource;
use super::{ErrorKind, StoreError};

/// How to reach a bucket. `None` means: as the environment says, or as usual.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Base address of the server, `http://` or `https://`; by default Amazon's for the region.
    pub endpoint: Option<String>,
    /// Region to sign for; `us-east-1` where nothing says otherwise.
    pub region: Option<String>,
    /// Profile in the AWS configuration files. Given here, it comes before credentials in the environment.
    pub profile: Option<String>,
    /// Bucket in the path instead of in the host's name; by default so for every endpoint but Amazon's own.
    pub path_style: Option<bool>,
    /// Most calls under way at once.
    pub concurrency_max: usize,
    /// Where the credentials come from.
    pub credentials: CredentialSource,
}

impl Default for S3Options {
    fn default() -> S3Options {
        S3Options {
            endpoint: None,
            region: None,
            profile: None,
            path_style: None,
            concurrency_max: CONCURRENCY_MAX,
            credentials: CredentialSource::Chain,
        }
    }
}

/// 40 calls: what [`super::limited::Limits`] has for reads and changes together.
const CONCURRENCY_MAX: usize = 40;

/// A connection that is not up after this long is tried again; the SDK's own default is 3.1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Amazon and most servers close an idle connection after 20 s or more; ours must be the first to let go of it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The region that signatures name where nothing is configured; also the usual one of servers that have no regions.
const DEFAULT_REGION: &str = "us-east-1";

/// All that a client needs but its credentials.
#[derive(Clone)]
pub(super) struct ClientConfig {
    pub(super) builder: Builder,
    pub(super) http: SharedHttpClient,
    pub(super) endpoint: Option<String>,
    pub(super) region: Region,
    /// TLS protects the body; over plain http the signature has to.
    pub(super) over_tls: bool,
}

impl ClientConfig {
    /// Reads environment and profile files.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an endpoint that is no http address.
    pub(super) async fn load(options: &S3Options) -> Result<ClientConfig, StoreError> {
        let http = http_client(options.concurrency_max);
        let loader = loader(options)
            .http_client(http.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let shared = loader.load().await;
        let endpoint = checked_endpoint(&shared)?;
        let region = shared.region().cloned().unwrap_or(Region::from_static(DEFAULT_REGION));
        let over_tls = endpoint.as_deref().is_none_or(|endpoint| endpoint.starts_with("https://"));
        let mut builder = Builder::from(&shared)
            .region(region.clone())
            .identity_cache(IdentityCache::no_cache())
            .force_path_style(options.path_style.unwrap_or(endpoint.as_deref().is_some_and(is_not_amazon)));
        if endpoint.is_some() {
            builder = builder
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        Ok(ClientConfig { builder, http, endpoint, region, over_tls })
    }
}

/// Which S3 server the options and the environment mean: its base address, written in one way; `None` for Amazon's, where
/// a bucket's name says it all. Makes no request and needs no credentials.
///
/// # Errors
/// [`ErrorKind::Invalid`] for an endpoint that is no http address.
pub async fn server_address(options: &S3Options) -> Result<Option<String>, StoreError> {
    let endpoint = checked_endpoint(&loader(options).load().await)?;
    Ok(endpoint.filter(|endpoint| is_not_amazon(endpoint)).map(|endpoint| in_one_way(&endpoint)))
}

/// Scheme and host in small letters, without the port that goes without saying and without slashes at the end.
fn in_one_way(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (scheme, authority) = (scheme.to_ascii_lowercase(), authority.to_ascii_lowercase());
    let usual_port = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.strip_suffix(usual_port).unwrap_or(&authority);
    format!("{scheme}://{authority}{}", path.trim_end_matches('/'))
}

/// What says where the server is: flags, environment, profile files.
fn loader(options: &S3Options) -> ConfigLoader {
    let mut loader =
        aws_config::defaults(BehaviorVersion::v2026_01_12()).no_credentials().region(region_chain(options));
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    match options.endpoint.clone().or_else(s3_endpoint_variable) {
        Some(endpoint) => loader.endpoint_url(endpoint),
        None => loader,
    }
}

fn checked_endpoint(shared: &SdkConfig) -> Result<Option<String>, StoreError> {
    let endpoint = shared.endpoint_url().map(str::to_owned);
    endpoint.as_deref().map_or(Ok(()), check_endpoint)?;
    Ok(endpoint)
}

fn http_client(concurrency_max: usize) -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(concurrency_max)
        .tls_provider(tls::Provider::rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https()
}

/// Flag, environment, profile, default; never the instance metadata, which stalls for seconds where there is none.
fn region_chain(options: &S3Options) -> RegionProviderChain {
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &options.profile {
        profile = profile.profile_name(name);
    }
    RegionProviderChain::first_try(options.region.clone().map(Region::new))
        .or_else(aws_config::environment::EnvironmentVariableRegionProvider::new())
        .or_else(profile.build())
        .or_else(Region::from_static(DEFAULT_REGION))
}

fn s3_endpoint_variable() -> Option<String> {
    let ignored = std::env::var("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_ok_and(|value| value == "true");
    let set = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|value| !value.is_empty());
    set.filter(|_| !ignored)
}

fn check_endpoint(endpoint: &str) -> Result<(), StoreError> {
    let invalid = |reason: String| Err(StoreError::new(ErrorKind::Invalid, "open", "", reason));
    let Some((_, rest)) =
        endpoint.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
    else {
        // Not repeated here: it may hold a password.
        return invalid("the endpoint must begin with http:// or https://".to_owned());
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    if authority.contains('@') {
        return invalid("the endpoint must not hold a name or password: use the AWS variables".to_owned());
    }
    if authority.is_empty() || endpoint.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return invalid(format!("endpoint {endpoint:?} names no host"));
    }
    Ok(())
}

fn is_not_amazon(endpoint: &str) -> bool {
    let host = endpoint.split("://").nth(1).and_then(|rest| rest.split(['/', ':']).next()).unwrap_or("");
    !(host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_with_a_password_are_refused_without_repeating_it() {
        for endpoint in ["http://me:hunter2@host", "hunter2", "ftp://hunter2", "https://", "http://a b"] {
            let error = check_endpoint(endpoint).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        check_endpoint("http://127.0.0.1:3900").unwrap();
        check_endpoint("https://s3.example.org/base/").unwrap();
    }

    #[tokio::test]
    async fn one_server_has_one_address_however_it_is_written() {
        let at = async |endpoint: &str| {
            let options = S3Options { endpoint: Some(endpoint.to_owned()), ..S3Options::default() };
            server_address(&options).await.unwrap()
        };
        let one = at("http://s3.example.org").await;
        assert_eq!(one.as_deref(), Some("http://s3.example.org"));
        for same in ["http://S3.Example.org/", "http://s3.example.org:80", "http://s3.example.org:80//"] {
            assert_eq!(at(same).await, one, "{same}");
        }
        for other in [
            "https://s3.example.org",
            "http://s3.example.org:8080",
            "http://s3.example.org/Base",
            "http://s3.example.org/base",
            "http://[::1]",
        ] {
            assert_ne!(at(other).await, one, "{other}");
        }
        assert_eq!(at("https://s3.eu-west-1.amazonaws.com").await, None);
        let bad = S3Options { endpoint: Some("s3.example.org".to_owned()), ..S3Options::default() };
        assert_eq!(server_address(&bad).await.unwrap_err().kind, ErrorKind::Invalid);
    }

    #[test]
    fn amazon_hosts_keep_the_bucket_in_the_name() {
        assert!(!is_not_amazon("https://s3.eu-west-1.amazonaws.com"));
        assert!(is_not_amazon("https://s3.example.org"));
        assert!(is_not_amazon("http://127.0.0.1:3900"));
        assert!(is_not_amazon("https://amazonaws.com.example.org"));
    }
}
