//! What the errors of S3 servers mean for the caller.
//!
//! | answer | read | put, delete |
//! |---|---|---|
//! | no connection, no address | Retry | Retry |
//! | connection lost, no answer in time, unreadable answer | Retry | OutcomeUnknown |
//! | 503 SlowDown and the like, 429, 408, 507 | Retry | Retry |
//! | any other 5xx but 501 | Retry | OutcomeUnknown |
//! | 409 (conditional request conflict, operation aborted) | Retry | Retry |
//! | 404 NoSuchKey / NoSuchBucket | NotFound of the key / of the bucket | the same |
//! | 404 without such a code: something else answers at this address | Denied | Denied |
//! | 416 | Short | |
//! | 403 InvalidObjectState: in an archive (Glacier) | Archived | Denied |
//! | 401, any other 403; 400 with an expired token | Denied; Retry once there are other credentials | the same |
//! | 400 damaged or slow body | Retry | Retry |
//! | 301, 400 wrong region; 501; any other 4xx | Invalid | Invalid |
//! | certificate not trusted | Denied | Denied |

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::{ErrorKind, StoreError};

/// A call that failed, with what the layer above needs to decide.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) status: Option<u16>,
    pub(super) code: String,
    pub(super) reason: String,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, reason: impl Into<String>) -> Failure {
        Failure { kind, status: None, code: String::new(), reason: reason.into() }
    }

    /// No answer came, of a read or of a change.
    pub(super) fn lost(change: bool, reason: impl Into<String>) -> Failure {
        let kind = if change { ErrorKind::OutcomeUnknown } else { ErrorKind::Retry };
        Failure::new(kind, reason)
    }

    pub(super) fn is_of_bucket(&self) -> bool {
        self.code == "NoSuchBucket"
    }

    /// Other credentials may be accepted.
    pub(super) fn refuses_credentials(&self) -> bool {
        self.kind == ErrorKind::Denied
            && (is_expired_code(&self.code) || matches!(self.status, Some(401 | 403)))
    }

    /// The server cannot do create-only puts.
    pub(super) fn refuses_condition(&self) -> bool {
        let names_it = self.reason.to_ascii_lowercase().contains("if-none-match");
        self.status == Some(501)
            || self.code == "NotImplemented"
            || (matches!(self.status, Some(400 | 405)) && names_it)
    }

    /// The server cannot delete many objects with one call, or wants an MD5 for it, which the SDK does not send.
    pub(super) fn refuses_bulk_delete(&self) -> bool {
        let wants_md5 = self.reason.to_ascii_lowercase().contains("md5");
        matches!(self.status, Some(405 | 411 | 501))
            || matches!(self.code.as_str(), "NotImplemented" | "MethodNotAllowed" | "MissingContentMD5")
            || (self.status == Some(400) && (wants_md5 || self.code == "InvalidDigest"))
    }

    pub(super) fn into_error(self, operation: &'static str, key: &str) -> StoreError {
        let key = if self.kind == ErrorKind::NotFound && self.is_of_bucket() { "" } else { key };
        let right = right_for(operation).filter(|_| self.code == "AccessDenied");
        let reason = match right {
            Some(right) => format!("{}; the credentials need the right to {right}", self.reason),
            None => self.reason,
        };
        StoreError::new(self.kind, operation, key, reason)
    }
}

/// What a policy has to allow for a call (IAM actions of S3).
fn right_for(operation: &str) -> Option<&'static str> {
    match operation {
        "get" | "head" => Some("s3:GetObject"),
        "put" => Some("s3:PutObject"),
        "delete" => Some("s3:DeleteObject"),
        "list" => Some("s3:ListBucket"),
        _ => None,
    }
}

/// Sorts an error of the SDK; `change` says whether the call may have changed anything.
pub(super) fn classify<E>(error: &SdkError<E, HttpResponse>, change: bool) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => {
            Failure::new(ErrorKind::Invalid, format!("the request could not be made: {}", chain_of(error)))
        }
        SdkError::DispatchFailure(failure) => dispatch_failure(&chain_of(error), failure.is_user(), change),
        SdkError::ServiceError(refused) => {
            let meta = refused.err().meta();
            let region = refused.raw().headers().get("x-amz-bucket-region");
            let answer = Answer {
                status: refused.raw().status().as_u16(),
                code: meta.code().unwrap_or_default(),
                message: meta.message().unwrap_or_default(),
                region,
            };
            answer.classify(change)
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let failure = Failure::lost(change, format!("HTTP {status}, unreadable: {}", chain_of(error)));
            Failure { status: Some(status), ..failure }
        }
        // A time limit, and whatever the SDK may add.
        _ => Failure::lost(change, chain_of(error)),
    }
}

fn dispatch_failure(chain: &str, is_user: bool, change: bool) -> Failure {
    if is_user {
        return Failure::new(ErrorKind::Invalid, chain);
    }
    // hyper-util's words for "there was no connection to send anything on".
    let never_connected = chain.contains("client error (Connect)") || chain.contains("dns error");
    if never_connected && chain.to_ascii_lowercase().contains("certificate") {
        return Failure::new(ErrorKind::Denied, chain);
    }
    Failure::lost(change && !never_connected, chain)
}

/// An HTTP answer that is an error.
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) code: &'a str,
    pub(super) message: &'a str,
    pub(super) region: Option<&'a str>,
}

impl Answer<'_> {
    pub(super) fn classify(&self, change: bool) -> Failure {
        let kind = self.kind(change);
        let mut reason = format!("HTTP {}", self.status);
        for part in [self.code, self.message] {
            if !part.is_empty() {
                reason = format!("{reason} {part}");
            }
        }
        if let Some(advice) = self.advice() {
            reason = format!("{reason}; {advice}");
        }
        Failure { kind, status: Some(self.status), code: self.code.to_owned(), reason }
    }

    fn kind(&self, change: bool) -> ErrorKind {
        let lost = if change { ErrorKind::OutcomeUnknown } else { ErrorKind::Retry };
        match (self.status, self.code) {
            (_, code) if is_expired_code(code) => ErrorKind::Denied,
            (_, code) if is_busy_code(code) => ErrorKind::Retry,
            (408 | 429 | 507, _) | (409, "ConditionalRequestConflict" | "OperationAborted") => {
                ErrorKind::Retry
            }
            (400, code) if is_transit_code(code) => ErrorKind::Retry,
            (404, "NoSuchKey" | "NoSuchBucket") => ErrorKind::NotFound,
            // The SDK's code for a 404 without any is NotFound; only a HEAD may have none.
            (403, "InvalidObjectState") if !change => ErrorKind::Archived,
            (401 | 403 | 404 | 409, _) => ErrorKind::Denied,
            (416, _) => ErrorKind::Short,
            (307, _) => ErrorKind::Retry,
            (501, _) => ErrorKind::Invalid,
            (500.., _) => lost,
            (300..=499, _) => ErrorKind::Invalid,
            // An error in an answer of success, as S3 sends it for what took long.
            _ => lost,
        }
    }

    fn advice(&self) -> Option<String> {
        let wrong_region = matches!(self.status, 301 | 307)
            || matches!(
                self.code,
                "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException"
            );
        match (wrong_region, self.region) {
            (true, Some(region)) => {
                return Some(format!("the bucket is in region {region}: set --region {region}"));
            }
            (true, None) => {
                return Some("the region or the endpoint is not the bucket's: set --region".to_owned());
            }
            (false, _) => {}
        }
        match (self.status, self.code) {
            (_, "RequestTimeTooSkewed") => Some("set this host's clock".to_owned()),
            (_, "NoSuchBucket") => Some("create the bucket first".to_owned()),
            (403, "InvalidObjectState") => Some(
                "the object is in an archive: restore it for good (copy it to a class that can be read), and keep archive \
                 classes from this bucket"
                    .to_owned(),
            ),
            (403, "") => Some("no reason given; for a HEAD there never is one".to_owned()),
            (404, "NoSuchKey") => None,
            (404, _) => Some("this is no answer of an S3 server: check the endpoint".to_owned()),
            _ => None,
        }
    }
}

fn is_expired_code(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "InvalidToken" | "RequestExpired"
    )
}

/// Said before anything was done.
fn is_busy_code(code: &str) -> bool {
    matches!(
        code,
        "SlowDown"
            | "ServiceUnavailable"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "TooManyRequests"
    )
}

/// The body did not come over as it was sent.
fn is_transit_code(code: &str) -> bool {
    matches!(
        code,
        "RequestTimeout"
            | "IncompleteBody"
            | "BadDigest"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch"
    )
}

/// The error and its causes, one after the other.
fn chain_of(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
