//! The bucket: S3 through the AWS SDK, each call made once.
//!
//! # Invariants
//! - The SDK retries nothing: a retry after a lost answer would report a put of our own as somebody else's.
//! - `get` returns exactly the bytes asked for, of the length that the server declared, or an error.
//!
//! # Errors and retries
//! `s3_error.rs` has the table. A server that refuses `If-None-Match`, or answers it with a lasting 412, gets plain
//! puts from then on; one that refuses `DeleteObjects` gets single deletes. Both are found out by its answers and
//! logged once.
//!
//! # Time limits
//! A put may take a minute and then as long as a thin uplink takes that is shared with seven others; a get a minute for
//! the first byte and half a minute for each piece after it.
//!
//! # Not handled
//! Multipart uploads: an object is at most 5 GB, and ours are far smaller.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, EncodingType, ObjectIdentifier};
use bytes::{Bytes, BytesMut};
use futures::future::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::Instant;

use super::s3_config::{ClientConfig, S3Options};
use super::s3_credentials::Sessions;
use super::s3_error::{Answer, Failure, classify};
use super::s3_list::{FolderListing, Listing};
use super::s3_pace::UploadPace;
use super::{
    ErrorKind, Folder, Got, Listed, Put, PutMode, Range, Store, StoreError, join_parts, resolve_range,
};

/// Time for an answer without a body to send first.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between two pieces of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Most keys of one `DeleteObjects` (S3 API).
const DELETE_KEYS_MAX: usize = 1000;

/// Single deletes under way at once, where a server wants them one by one.
const SINGLE_DELETES_MAX: usize = 8;

/// Longest key (S3 API), bytes.
const KEY_BYTES_MAX: usize = 1024;

/// A bucket.
pub struct S3 {
    bucket: String,
    endpoint: Option<String>,
    region: String,
    sessions: Sessions,
    sign_payload: bool,
    pace: UploadPace,
    /// The server answered a create-only put as it should: 412, and the object was there.
    create_proven: AtomicBool,
    create_refused: AtomicBool,
    bulk_delete_refused: AtomicBool,
    /// An answer proved that the bucket is there.
    bucket_seen: AtomicBool,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl S3 {
    /// Reads the configuration and the credentials. Makes no request to the bucket.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a bad endpoint and where there are no credentials; [`ErrorKind::Denied`] where these
    /// cannot be had.
    pub async fn connect(bucket: &str, options: &S3Options) -> Result<S3, StoreError> {
        let config = ClientConfig::load(options).await?;
        let (endpoint, region) = (config.endpoint.clone(), config.region.to_string());
        let sign_payload = !config.over_tls;
        let sessions = Sessions::new(options.credentials.clone(), options.profile.clone(), config);
        sessions.current().await?;
        Ok(S3 {
            bucket: bucket.to_owned(),
            endpoint,
            region,
            sessions,
            sign_payload,
            pace: UploadPace::default(),
            create_proven: AtomicBool::new(false),
            create_refused: AtomicBool::new(false),
            bulk_delete_refused: AtomicBool::new(false),
            bucket_seen: AtomicBool::new(false),
        })
    }

    /// Whether create-only puts are made with `If-None-Match`; `false` once the server has refused one.
    pub fn creates_conditionally(&self) -> bool {
        !self.create_refused.load(Ordering::Relaxed)
    }

    /// Whether objects that are deleted or replaced stay as old versions: the bucket has versioning, or had it once.
    ///
    /// # Errors
    /// The server refuses to say, or knows no versions.
    pub async fn keeps_old_versions(&self) -> Result<bool, StoreError> {
        let ask = |client: Client| client.get_bucket_versioning().bucket(&self.bucket).send();
        let answer = self.call(false, ANSWER_TIMEOUT, ask).await;
        // Of a bucket that never had it, there is no status.
        answer.map(|answer| answer.status.is_some()).map_err(|failure| failure.into_error("versioning", ""))
    }

    /// Makes one call with the current credentials, within `limit`.
    async fn call<T, E, F>(
        &self,
        change: bool,
        limit: Duration,
        send: impl FnOnce(Client) -> F,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let session = match self.sessions.current().await {
            Ok(session) => session,
            Err(error) => return Err(Failure::new(error.kind, error.reason)),
        };
        let error = match tokio::time::timeout(limit, send(session.client.clone())).await {
            Ok(Ok(answer)) => {
                self.bucket_seen.store(true, Ordering::Relaxed);
                return Ok(answer);
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(Failure::lost(change, format!("no answer within {} s", limit.as_secs()))),
        };
        let mut failure = classify(&error, change);
        failure.reason = session.redact(&failure.reason);
        if failure.refuses_credentials() && self.sessions.renew(session.generation).await {
            failure.kind = ErrorKind::Retry;
        }
        Err(failure)
    }

    // ---- put

    async fn put_once(&self, key: &str, body: &Bytes, create: bool) -> Result<(), Failure> {
        let (bytes, began) = (body.len() as u64, Instant::now());
        let limit = self.pace.limit(bytes);
        let put = async |client: Client| {
            let request = client.put_object().bucket(&self.bucket).key(key);
            let request = request.set_if_none_match(create.then(|| "*".to_owned()));
            let request = request.body(ByteStream::from(body.clone())).customize();
            match self.sign_payload {
                true => request.send().await,
                false => request.disable_payload_signing().send().await,
            }
        };
        match self.call(true, limit, put).await {
            Ok(_) => {
                self.pace.answered(bytes, began.elapsed());
                Ok(())
            }
            Err(failure) => {
                if began.elapsed() >= limit {
                    self.pace.ran_out();
                }
                Err(failure)
            }
        }
    }

    /// A create-only put; `None` where the server has turned out to know no such thing, and nothing was changed.
    async fn put_create(&self, key: &str, body: &Bytes) -> Result<Option<Put>, StoreError> {
        if self.create_refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // A 412 for a name that is not there may be a race with a delete, once.
        for _ in 0..2 {
            match self.put_once(key, body, true).await {
                Ok(()) => return Ok(Some(Put::Created)),
                Err(failure) if failure.status == Some(412) => {}
                Err(failure) if failure.refuses_condition() => {
                    self.remember_refused(&self.create_refused, "create-only puts", &failure.reason);
                    return Ok(None);
                }
                Err(failure) => return Err(failure.into_error("put", key)),
            }
            if self.create_proven.load(Ordering::Relaxed) || self.head(key).await?.is_some() {
                self.create_proven.store(true, Ordering::Relaxed);
                return Ok(Some(Put::Exists));
            }
        }
        self.remember_refused(&self.create_refused, "create-only puts", "412 for names that do not exist");
        Ok(None)
    }

    fn remember_refused(&self, flag: &AtomicBool, what: &str, reason: &str) {
        if !flag.swap(true, Ordering::Relaxed) {
            tracing::info!(bucket = self.bucket, reason, "the store has no {what}: doing without");
        }
    }

    // ---- get

    async fn get_once(&self, key: &str, range: Range) -> Result<Got, Failure> {
        let header = match range {
            Range::Full => None,
            Range::Part { length: 0, .. } | Range::Suffix { length: 0 } => {
                return Err(Failure::new(ErrorKind::Invalid, "a range of no bytes"));
            }
            Range::Part { offset, length } => {
                let end = offset.checked_add(length - 1);
                let end = end.ok_or_else(|| Failure::new(ErrorKind::Short, "the range ends beyond 2^64"))?;
                Some(format!("bytes={offset}-{end}"))
            }
            Range::Suffix { length } => Some(format!("bytes=-{length}")),
        };
        let get = |client: Client| client.get_object().bucket(&self.bucket).key(key).set_range(header).send();
        let answer = match self.call(false, ANSWER_TIMEOUT, get).await {
            // The last bytes of an object that has none.
            Err(failure) if failure.status == Some(416) && matches!(range, Range::Suffix { .. }) => {
                return Ok(Got { bytes: Bytes::new(), object_bytes: 0 });
            }
            answer => answer?,
        };
        let place = Place::of(&answer, range)?;
        let bytes = read_body(answer.body, place.body_bytes).await?;
        Ok(Got { bytes, object_bytes: place.object_bytes })
    }

    // ---- list, head

    async fn list_page(
        &self,
        listing: &Listing<'_>,
        prefix: &str,
        delimiter: Option<&str>,
    ) -> Result<ListPage, Failure> {
        let (after, token) = (listing.start_after(), listing.token());
        let list = |client: Client| {
            let request = client.list_objects_v2().bucket(&self.bucket).encoding_type(EncodingType::Url);
            let request = request.set_prefix((!prefix.is_empty()).then(|| prefix.to_owned()));
            let request =
                request.max_keys(listing.page_keys_max()).set_delimiter(delimiter.map(str::to_owned));
            request.set_start_after(after).set_continuation_token(token).send()
        };
        self.call(false, ANSWER_TIMEOUT, list).await
    }

    /// Whether a 404 to a HEAD, which has no body to say so, may mean the bucket.
    async fn check_bucket(&self) -> Result<(), StoreError> {
        if self.bucket_seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.list("", None, Some(1)).await.map(|_| ())
    }

    // ---- delete

    async fn delete_batch(&self, keys: &[String]) -> Result<(), StoreError> {
        // One key needs no list, and XML has no way to write control characters.
        let (mut single, mut bulk) = (Vec::new(), Vec::new());
        for key in keys {
            let alone = keys.len() == 1 || key.contains(|c: char| c.is_control());
            if alone { single.push(key) } else { bulk.push(key) }
        }
        self.delete_singly(&single).await?;
        if bulk.is_empty() {
            return Ok(());
        }
        if !self.bulk_delete_refused.load(Ordering::Relaxed) {
            match self.delete_bulk(&bulk).await {
                Err(refused) if refused.refuses_bulk_delete() => {
                    self.remember_refused(
                        &self.bulk_delete_refused,
                        "deletes of many objects",
                        &refused.reason,
                    );
                }
                result => return result.map_err(|failure| failure.into_error("delete", bulk[0])),
            }
        }
        self.delete_singly(&bulk).await
    }

    async fn delete_bulk(&self, keys: &[&String]) -> Result<(), Failure> {
        let invalid =
            |error: aws_sdk_s3::error::BuildError| Failure::new(ErrorKind::Invalid, error.to_string());
        let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(*key).build());
        let objects = objects.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        let list = Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(invalid)?;
        let delete = |client: Client| client.delete_objects().bucket(&self.bucket).delete(list).send();
        let answer = self.call(true, ANSWER_TIMEOUT, delete).await?;
        let refused = answer.errors().iter().find(|error| error.code() != Some("NoSuchKey"));
        match refused {
            None => Ok(()),
            Some(error) => {
                let code = error.code().unwrap_or_default();
                // The line of one key has no status of its own; these are the codes that come with it.
                let status = match code {
                    "AccessDenied" => 403,
                    "MethodNotAllowed" | "NotImplemented" => 501,
                    _ => 500,
                };
                let message =
                    format!("{} ({})", error.message().unwrap_or_default(), error.key().unwrap_or_default());
                Err(Answer { status, code, message: &message, region: None }.classify(true))
            }
        }
    }

    async fn delete_singly(&self, keys: &[&String]) -> Result<(), StoreError> {
        let deletes: Vec<_> = keys.iter().map(|key| self.delete_one(key).boxed()).collect();
        stream::iter(deletes).buffer_unordered(SINGLE_DELETES_MAX).try_collect().await
    }

    async fn delete_one(&self, key: &str) -> Result<(), StoreError> {
        let delete = |client: Client| client.delete_object().bucket(&self.bucket).key(key).send();
        match self.call(true, ANSWER_TIMEOUT, delete).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.status == Some(404) && failure.code == "NoSuchKey" => Ok(()),
            Err(failure) => Err(failure.into_error("delete", key)),
        }
    }
}

type ListPage = aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

/// Lengths of an object and of the body that was sent of it, which is exactly the range asked for.
struct Place {
    object_bytes: u64,
    body_bytes: u64,
}

impl Place {
    /// Checks an answer's headers against the range asked for.
    fn of(answer: &GetObjectOutput, range: Range) -> Result<Place, Failure> {
        let short = |reason: String| Failure::new(ErrorKind::Short, reason);
        let declared = answer.content_length().and_then(|length| u64::try_from(length).ok());
        let Some(body_bytes) = declared else {
            return Err(Failure::new(ErrorKind::Retry, "the answer declares no length"));
        };
        let lies_without =
            |object_bytes| short(format!("{range:?} does not lie within {object_bytes} bytes"));
        let Some(content_range) = answer.content_range() else {
            return match range {
                Range::Full => Ok(Place { object_bytes: body_bytes, body_bytes }),
                _ => Err(Failure::new(
                    ErrorKind::Invalid,
                    "the server ignores ranges, or does not say which it sends",
                )),
            };
        };
        let parsed = parse_content_range(content_range);
        let Some((first, last, object_bytes)) = parsed else {
            return Err(Failure::new(
                ErrorKind::Invalid,
                format!("content-range {content_range:?} has no length"),
            ));
        };
        let (offset, length) =
            resolve_range(range, object_bytes).ok_or_else(|| lies_without(object_bytes))?;
        if (length, body_bytes) == (0, 0) {
            // The end of an object that has no bytes: no header can say that, and servers differ (Garage: 0-2^64).
            return Ok(Place { object_bytes, body_bytes });
        }
        if (first, last.checked_sub(first)) != (offset, length.checked_sub(1)) || body_bytes != length {
            let reason = format!("asked for {range:?}, got {content_range:?} in {body_bytes} bytes");
            return Err(Failure::new(ErrorKind::Retry, reason));
        }
        Ok(Place { object_bytes, body_bytes })
    }
}

/// `bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4).
fn parse_content_range(header: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, total.parse().ok()?))
}

/// Reads a body of exactly `body_bytes`.
async fn read_body(mut body: ByteStream, body_bytes: u64) -> Result<Bytes, Failure> {
    let retry = |reason: String| Failure::new(ErrorKind::Retry, reason);
    let mut pieces = BytesMut::new();
    loop {
        let piece = tokio::time::timeout(PIECE_TIMEOUT, body.try_next()).await;
        let got = pieces.len();
        let piece = piece
            .map_err(|_| retry(format!("the body stalled after {got} of {body_bytes} bytes")))?
            .map_err(|error| {
                retry(format!("the body broke off after {got} of {body_bytes} bytes: {error}"))
            })?;
        let Some(piece) = piece else { break };
        if got == 0 && piece.len() as u64 == body_bytes {
            return Ok(piece);
        }
        if (got + piece.len()) as u64 > body_bytes {
            return Err(retry(format!("the body is longer than the {body_bytes} bytes declared")));
        }
        if got == 0 {
            pieces.reserve(usize::try_from(body_bytes).unwrap_or(0).min(BODY_RESERVE_BYTES_MAX));
        }
        pieces.extend_from_slice(&piece);
    }
    match pieces.len() as u64 == body_bytes {
        true => Ok(pieces.freeze()),
        false => Err(retry(format!("the body ended after {} of {body_bytes} bytes", pieces.len()))),
    }
}

/// What is reserved at most on a server's word: the size of a usual object, and room.
const BODY_RESERVE_BYTES_MAX: usize = 32 << 20;

fn check_key(operation: &'static str, key: &str) -> Result<(), StoreError> {
    let problem = match key.len() {
        0 => "the key is empty",
        1..=KEY_BYTES_MAX => return Ok(()),
        _ => "the key is longer than 1024 bytes",
    };
    Err(StoreError::new(ErrorKind::Invalid, operation, key, problem))
}

#[async_trait]
impl Store for S3 {
    /// Several parts are copied into one buffer: the SDK signs and sends a single one.
    async fn put(&self, key: &str, body: &[Bytes], mode: PutMode) -> Result<Put, StoreError> {
        check_key("put", key)?;
        let body = join_parts(body);
        if mode == PutMode::Create
            && let Some(put) = self.put_create(key, &body).await?
        {
            return Ok(put);
        }
        match self.put_once(key, &body, false).await {
            Ok(()) => Ok(Put::Created),
            Err(failure) => Err(failure.into_error("put", key)),
        }
    }

    async fn get(&self, key: &str, range: Range) -> Result<Got, StoreError> {
        check_key("get", key)?;
        self.get_once(key, range).await.map_err(|failure| failure.into_error("get", key))
    }

    async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        check_key("head", key)?;
        let head = |client: Client| client.head_object().bucket(&self.bucket).key(key).send();
        match self.call(false, ANSWER_TIMEOUT, head).await {
            Ok(answer) => {
                let length = answer.content_length().and_then(|length| u64::try_from(length).ok());
                let missing =
                    || StoreError::new(ErrorKind::Retry, "head", key, "the answer declares no length");
                length.map(Some).ok_or_else(missing)
            }
            Err(failure) if failure.status == Some(404) => self.check_bucket().await.map(|()| None),
            Err(failure) => Err(failure.into_error("head", key)),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Listed>, StoreError> {
        let mut listing = Listing::new(prefix, start_after, limit);
        while !listing.is_complete() {
            let page = self.list_page(&listing, prefix, None).await;
            let added = page.and_then(|page| listing.add(&page));
            added.map_err(|failure| failure.into_error("list", prefix))?;
        }
        Ok(listing.finish())
    }

    async fn list_folder(&self, prefix: &str) -> Result<Folder, StoreError> {
        let mut listing = FolderListing::new(prefix);
        while !listing.is_complete() {
            let page = self.list_page(listing.page(), prefix, Some("/")).await;
            let added = page.and_then(|page| listing.add(&page));
            added.map_err(|failure| failure.into_error("list", prefix))?;
        }
        Ok(listing.finish())
    }

    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            check_key("delete", key)?;
        }
        for batch in keys.chunks(DELETE_KEYS_MAX) {
            self.delete_batch(batch).await?;
        }
        Ok(())
    }
}
